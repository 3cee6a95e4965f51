"use strict";
// Uploads one video with ali-oss. The app server creates the video and renews the credentials
// (POST /grants). What is needed to resume is kept in localStorage: no credentials are.

const PART_SIZE = 1024 * 1024; // bytes
const MOST_PARTS = 9000; // OSS takes 10,000
const SAMPLE = 64 * 1024; // bytes at each end of a file that identify it
const MOST_FAILURES = 8; // in a row, without a part that was sent
const PREFIX = "vod-upload ";

const element = (id) => document.getElementById(id);
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
let running = null; // the ali-oss client of the upload that runs
let isPaused = false;

/** An error that another attempt does not change. */
class Refused extends Error {}

// --- records of unfinished uploads ---------------------------------------------------------

function records() {
  const names = Object.keys(localStorage).filter((name) => name.startsWith(PREFIX));
  return names.map((name) => JSON.parse(localStorage.getItem(name)));
}

function save(record) {
  localStorage.setItem(PREFIX + record.referenceId, JSON.stringify(record));
}

function forget(record) {
  localStorage.removeItem(PREFIX + record.referenceId);
  showRecords();
}

/** SHA-256 of a file's size and of both its ends: the same file when it is chosen again. */
async function fingerprint(file) {
  const ends = new Blob([
    `${file.size} ${file.lastModified} `, file.slice(0, SAMPLE), file.slice(-SAMPLE),
  ]);
  const digest = await crypto.subtle.digest("SHA-256", await ends.arrayBuffer());
  return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function recordOf(file, title) {
  const print = await fingerprint(file);
  const known = records().find((record) => record.fingerprint === print);
  if (known) return known;
  const record = {
    referenceId: crypto.randomUUID(), // with it, a repeated request creates no second video
    fingerprint: print,
    title: title || file.name,
    name: file.name,
    size: file.size,
    videoId: null,
    target: null,
    checkpoint: null,
  };
  save(record);
  return record;
}

// --- the app server ------------------------------------------------------------------------

/** Create the record's video, or renew its credentials. */
async function grant(record) {
  const fields = record.videoId
    ? { action: "renew", video_id: record.videoId }
    : {
        action: "create",
        title: record.title,
        file_name: record.name,
        file_size: String(record.size),
        reference_id: record.referenceId,
      };
  const answer = await fetch("/grants", {
    method: "POST",
    headers: {
      "Authorization": `Bearer ${element("token").value}`,
      "Content-Type": "application/json",
    },
    body: JSON.stringify(fields),
  });
  if (answer.status === 401) throw new Refused("The access token is not valid. Correct it.");
  if (answer.status === 404 || answer.status === 410) {
    forget(record);
    throw new Refused("The video no longer exists. Upload the file again.");
  }
  if (answer.status < 500 && !answer.ok) throw new Refused(await answer.text());
  if (!answer.ok) throw new Error(await answer.text());
  return decoded(await answer.json());
}

function decoded(answer) {
  const address = JSON.parse(atob(answer.UploadAddress));
  const auth = JSON.parse(atob(answer.UploadAuth));
  const inHost = /\boss-([a-z]{2}-[a-z0-9-]+?)(?:-internal)?\./.exec(address.Endpoint);
  return {
    videoId: answer.VideoId,
    endpoint: address.Endpoint,
    bucket: address.Bucket,
    key: address.FileName,
    region: `oss-${inHost ? inHost[1] : auth.Region}`,
    lifeMs: 1000 * (Number(auth.Expiration) || 1800),
    credentials: {
      accessKeyId: auth.AccessKeyId,
      accessKeySecret: auth.AccessKeySecret,
      stsToken: auth.SecurityToken,
    },
  };
}

// --- OSS -----------------------------------------------------------------------------------

function clientOf(record, granted) {
  return new OSS({
    ...granted.credentials,
    endpoint: granted.endpoint,
    bucket: granted.bucket,
    region: granted.region,
    authorizationV4: true,
    timeout: 120e3,
    refreshSTSTokenInterval: granted.lifeMs / 2,
    refreshSTSToken: async () => (await grant(record)).credentials,
  });
}

/** Send what OSS does not have yet. */
async function send(record, file, progressed) {
  const granted = await grant(record);
  const target = `${granted.bucket}/${granted.key}`;
  if (record.target !== target) record.checkpoint = null; // its parts are somewhere else
  Object.assign(record, { videoId: granted.videoId, target });
  save(record);
  running = clientOf(record, granted);
  const partSize = Math.max(PART_SIZE, Math.ceil(file.size / MOST_PARTS));
  if (record.checkpoint) {
    progressed(record.checkpoint.doneParts.length / (Math.ceil(file.size / partSize) + 1));
  }
  if (isPaused) throw Object.assign(new Error("paused"), { name: "cancel" });
  try {
    await running.multipartUpload(granted.key, file, {
      partSize,
      parallel: 3,
      disabledMD5: false,
      checkpoint: record.checkpoint ? { ...record.checkpoint, file } : undefined,
      progress: (fraction, checkpoint) => {
        if (checkpoint) record.checkpoint = { ...checkpoint, file: undefined };
        save(record);
        progressed(fraction);
      },
    });
  } catch (error) {
    running.cancel();
    if (error.status !== 404 && error.name !== "abort") throw error;
    if (await isStored(granted.key, file.size)) return;
    record.checkpoint = null; // OSS does not know the upload any more
    save(record);
    throw error;
  }
}

/** Whether the object is complete: the answer to an earlier request was lost. */
async function isStored(key, size) {
  try {
    const { res } = await running.head(key);
    return Number(res.headers["content-length"]) === size;
  } catch {
    return false;
  }
}

async function upload(record, file) {
  let failures = 0;
  let sent = record.checkpoint?.doneParts.length ?? 0; // parts
  for (;;) {
    try {
      return await send(record, file, (fraction) => {
        if (record.checkpoint?.doneParts.length > sent) failures = 0;
        sent = record.checkpoint?.doneParts.length ?? 0;
        showProgress(fraction, "Uploading.");
      });
    } catch (error) {
      failures += 1;
      if (error instanceof Refused || error.name === "cancel") throw error;
      if (failures >= MOST_FAILURES) throw error;
      const seconds = Math.min(2 ** (failures - 1), 30);
      show(`Request failed (${error.code || error.message}). Retrying in ${seconds} s.`);
      await pause(1000 * seconds);
    }
  }
}

/** Run a task while no other tab works on the record's upload. */
function alone(record, task) {
  return navigator.locks.request(PREFIX + record.referenceId, { ifAvailable: true }, (lock) => {
    if (!lock) throw new Refused("Another tab uploads this file.");
    return task();
  });
}

/** Abort the upload at OSS, so that its parts are not kept, and forget it. */
async function discard(record) {
  if (record.checkpoint) {
    const { name, uploadId } = record.checkpoint;
    const client = clientOf(record, await grant(record));
    await client.abortMultipartUpload(name, uploadId).catch((error) => {
      if (error.status !== 404) throw error; // 404: OSS has no such upload any more
    });
  }
  forget(record);
}

// --- the page ------------------------------------------------------------------------------

function show(text) {
  if (element("status").textContent !== text) element("status").textContent = text;
}

function showProgress(fraction, text) {
  const percent = Math.floor(fraction * 100);
  element("progress").value = percent;
  element("percent").textContent = `${percent} %`;
  show(text);
}

function showRecords() {
  const items = records().map((record) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Discard";
    button.setAttribute("aria-label", `Discard ${record.name}`);
    button.disabled = element("upload").disabled;
    button.addEventListener("click", () => discardRecord(record));
    item.append(`${record.name}, ${(record.size / 1e6).toFixed(1)} MB `, button);
    return item;
  });
  element("records").replaceChildren(...items);
  element("unfinished").hidden = items.length === 0;
}

function setBusy(busy) {
  const hadFocus = document.activeElement !== document.body;
  for (const id of ["token", "file", "title", "upload"]) element(id).disabled = busy;
  element("pause").disabled = !busy;
  if (hadFocus) element(busy ? "pause" : "upload").focus(); // what is disabled loses it
  if (!busy) running = null;
  showRecords();
}

async function uploadChosen() {
  const file = element("file").files[0];
  isPaused = false;
  setBusy(true);
  show("Starting.");
  try {
    const record = await recordOf(file, element("title").value);
    showRecords();
    await alone(record, () => upload(record, file));
    forget(record);
    showProgress(1, `Finished. VideoId: ${record.videoId}`);
  } catch (error) {
    show(error.name === "cancel"
      ? "Paused. Press Upload to resume."
      : `Upload failed: ${error.message}`);
  } finally {
    setBusy(false);
  }
}

async function discardRecord(record) {
  setBusy(true);
  try {
    await alone(record, () => discard(record));
    showProgress(0, `The upload of ${record.name} was discarded.`);
  } catch (error) {
    show(`The upload of ${record.name} was not discarded: ${error.message}`);
  } finally {
    setBusy(false);
  }
}

element("form").addEventListener("submit", (event) => {
  event.preventDefault();
  uploadChosen();
});
element("pause").addEventListener("click", () => {
  isPaused = true;
  show("Pausing.");
  if (running) running.cancel();
});
addEventListener("beforeunload", (event) => {
  if (running) event.preventDefault();
});
addEventListener("storage", showRecords);
if (location.hash.startsWith("#token=")) {
  element("token").value = decodeURIComponent(location.hash.slice("#token=".length));
  history.replaceState(null, "", location.pathname);
}
showRecords();
