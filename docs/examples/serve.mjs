// Upload a file through `vodup serve` and follow it. Node 18 or later, no packages.
//
//   node serve.mjs http://127.0.0.1:7374 TOKEN-FILE movie.mp4

import { readFile } from "node:fs/promises";

const [service, tokenFile, path] = process.argv.slice(2);
const token = (await readFile(tokenFile, "ascii")).trim();
const headers = { authorization: `Bearer ${token}`, "content-type": "application/json" };

async function call(route, options = {}) {
  const answer = await fetch(service + route, { headers, ...options });
  if (!answer.ok) {
    const problem = await answer.json();
    throw new Error(`${problem.title}: ${problem.detail} ${problem.next_step ?? ""}`);
  }
  return answer;
}

async function* eventsOf(id) {
  const answer = await call(`/v1/uploads/${id}/events`);
  let text = "";
  for await (const piece of answer.body.pipeThrough(new TextDecoderStream())) {
    text += piece;
    let end;
    while ((end = text.indexOf("\n\n")) >= 0) {
      const data = text.slice(0, end).split("\n").find((line) => line.startsWith("data: "));
      text = text.slice(end + 2);
      if (data) yield JSON.parse(data.slice(6));
    }
  }
}

const request = { method: "POST", body: JSON.stringify({ path, title: "From Node" }) };
let upload = await (await call("/v1/uploads", request)).json();
for await (const event of eventsOf(upload.id)) {
  if (event.type === "upload.progress") console.error(`${event.done_bytes} of ${event.size} bytes`);
  if (event.type === "upload") upload = event;
}
console.log(JSON.stringify({ status: upload.status, video_id: upload.video_id }));
process.exit(upload.status === "done" ? 0 : 1);
