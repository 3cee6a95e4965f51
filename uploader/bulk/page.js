"use strict";
const byId = (id) => document.getElementById(id);
const parser = new DOMParser();
let hasEnded = false;
const source = new EventSource("events");
source.onmessage = (message) => {
  const data = JSON.parse(message.data);
  if (byId("state").textContent !== data.state) byId("state").textContent = data.state;
  byId("live").replaceChildren(...parser.parseFromString(data.html, "text/html").body.children);
  hasEnded = data.ended;
};
source.onerror = () => {
  if (hasEnded) source.close();
  else byId("state").textContent = "Connection lost; reconnecting";
};
