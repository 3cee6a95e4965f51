"use strict";
// What a page does with the clients under test. Every function returns a promise.

const PART = 100 * 1024; // bytes, the smallest part OSS takes

/** A file whose bytes depend on the seed; the test computes the same. */
function makeFile(size, seed) {
  const bytes = new Uint8Array(size);
  for (let i = 0; i < size; i++) bytes[i] = (i * 31 + (i >> 8) * seed) & 255;
  return new File([bytes], "movie.mp4", { type: "video/mp4", lastModified: 1 });
}

async function grant(video) {
  const answer = await fetch("/grant" + (video ? `?video=${video}` : ""));
  if (!answer.ok) throw new Error(`grant: ${answer.status}`);
  return answer.json();
}

function credentials(answer) {
  const auth = JSON.parse(atob(answer.UploadAuth));
  return {
    accessKeyId: auth.AccessKeyId,
    accessKeySecret: auth.AccessKeySecret,
    stsToken: auth.SecurityToken,
  };
}

/** An ali-oss client of one video that renews its credentials every `renewEvery` ms. */
async function ossClient(v4, renewEvery) {
  const answer = await grant();
  const address = JSON.parse(atob(answer.UploadAddress));
  const client = new OSS({
    ...credentials(answer),
    region: "oss-cn-shanghai",
    endpoint: address.Endpoint,
    bucket: address.Bucket,
    authorizationV4: v4,
    refreshSTSTokenInterval: renewEvery,
    refreshSTSToken: async () => credentials(await grant(answer.VideoId)),
  });
  return { client, key: address.FileName, video: answer.VideoId };
}

/** What a failed call shows to the page. */
async function failure(call) {
  try {
    await call();
  } catch (error) {
    return { name: error.name, code: error.code, status: error.status, message: error.message };
  }
  return null;
}

/** Put a file `wait` ms after the credentials were issued. */
async function put(v4, size, seed, wait = 0) {
  const { client, key, video } = await ossClient(v4, wait || 3600e3);
  await new Promise((resolve) => setTimeout(resolve, wait));
  const result = await client.put(key, makeFile(size, seed));
  const crc = result.res.headers["x-oss-hash-crc64ecma"];
  return { video, crc, requestId: result.res.headers["x-oss-request-id"] };
}

/** Upload in parts; with `stopAfter`, cancel after that many and resume `wait` ms later. */
async function multipart(v4, size, seed, renewEvery, stopAfter = 0, wait = 0) {
  const { client, key, video } = await ossClient(v4, renewEvery);
  const file = makeFile(size, seed);
  let kept = null;
  const options = {
    partSize: PART,
    parallel: 2,
    disabledMD5: false,
    progress: (_, checkpoint) => {
      kept = JSON.stringify({ ...checkpoint, file: undefined });
      if (stopAfter && checkpoint.doneParts.length === stopAfter) client.cancel();
    },
  };
  if (stopAfter) {
    const stopped = await failure(() => client.multipartUpload(key, file, options));
    if (stopped?.name !== "cancel") throw new Error(`not cancelled: ${JSON.stringify(stopped)}`);
    stopAfter = 0;
    await new Promise((resolve) => setTimeout(resolve, wait));
    // While ali-oss renews, parallel requests still use the old credentials.
    Object.assign(client.options, credentials(await grant(video)));
  }
  const checkpoint = kept === null ? undefined : JSON.parse(kept);
  await client.multipartUpload(key, file, { ...options, checkpoint });
  return { video };
}

/** Upload with the web uploader of VOD; resolves with what its callbacks were told. */
async function vodUpload(size, seed) {
  const seen = { video: null, created: 0, renewed: 0, failed: null };
  await new Promise((resolve) => {
    const uploader = new AliyunUpload.Vod({
      userId: "1",
      region: "cn-shanghai",
      partSize: PART,
      parallel: 2,
      retryCount: 0,
      addFileSuccess: () => uploader.startUpload(),
      onUploadstarted: async (info) => {
        const answer = await grant(info.videoId);
        seen.created += info.videoId ? 0 : 1;
        uploader.setUploadAuthAndAddress(
          info, answer.UploadAuth, answer.UploadAddress, answer.VideoId);
      },
      onUploadTokenExpired: async (info) => {
        seen.renewed += 1;
        uploader.resumeUploadWithAuth((await grant(info.videoId)).UploadAuth);
      },
      onUploadSucceed: (info) => { seen.video = info.videoId; },
      onUploadFailed: (_, code, message) => { seen.failed = { code, message }; resolve(); },
      onUploadEnd: resolve,
    });
    uploader.addFile(makeFile(size, seed), null, null, null, '{"Vod":{}}');
  });
  return seen;
}
