"use strict";
// ali-oss in Node: a job as JSON on standard input.
const fs = require("fs");
const path = require("path");
const job = JSON.parse(fs.readFileSync(0, "utf8"));
const OSS = require(path.join(job.modules, "ali-oss"));
const [step, version] = job.step.split("-");
const client = new OSS({
  accessKeyId: job.id,
  accessKeySecret: job.secret,
  stsToken: job.token,
  region: "oss-cn-shanghai",
  endpoint: job.endpoint,
  bucket: job.bucket,
  authorizationV4: version === "v4",
});
const kept = path.join(job.folder, "checkpoint.json");

async function upload() {
  const checkpoint = fs.existsSync(kept) ? JSON.parse(fs.readFileSync(kept, "utf8")) : undefined;
  await client.multipartUpload(job.key, job.source, {
    partSize: 102400,
    parallel: 1,
    checkpoint,
    progress: async (_, point) => point && fs.writeFileSync(kept, JSON.stringify(point)),
  });
}

async function others() {
  const film = fs.readFileSync(job.source);
  const got = await client.get(job.key);
  if (!got.content.equals(film)) throw new Error("other bytes");
  await client.head(job.key);
  const { uploadId } = await client.initMultipartUpload(job.key);
  for (const number of [1, 2]) {
    await client.uploadPart(job.key, uploadId, number, job.source, 0, 102400);
  }
  const { parts } = await client.listParts(job.key, uploadId);
  if (parts.length !== 2) throw new Error(`${parts.length} parts`);
  await client.listUploads({ "max-uploads": 10 });
  await client.abortMultipartUpload(job.key, uploadId);
  await client.put(job.key, film);
  await client.list({ "max-keys": 10 });
  const { objects } = await client.listV2({ "max-keys": "10" });
  if (objects.map((o) => o.name).join() !== job.key) throw new Error("other objects");
  await client.deleteMulti([job.key]);
  await client.delete(job.key);
}

({ upload, others })[step]().catch((error) => {
  console.error(error.code, error.status, error.message);
  process.exit(1);
});
