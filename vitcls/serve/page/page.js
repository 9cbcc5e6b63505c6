"use strict";

const part = (id) => document.getElementById(id);
let token = null;    // of this tab alone: it is kept nowhere
let chosen = null;   // the image that is shown
let latest = 0;      // an answer that comes after the next image was chosen is too late
const shown = { image: null, attribution: null };  // addresses of blobs

async function ask(path, options = {}) {
  const headers = token === null ? {} : { Authorization: `Bearer ${token}` };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch {
    throw new Error("The server cannot be reached.");
  }
  if (response.status === 401) {
    part("login").hidden = false;
    part("token").focus();
  }
  if (response.ok) return response;
  let message = `The server answered with status ${response.status}.`;
  try {
    message = (await response.json()).message || message;
  } catch {
    // not from this server: the status is all that is known
  }
  throw new Error(message);
}

function form(file) {
  const body = new FormData();
  body.append("image", file, file.name || "image");
  return { method: "POST", body };
}

function say(status, problem = "", isSeen = true) {
  part("status").textContent = status;
  part("status").classList.toggle("unseen", !isSeen);
  part("problem").textContent = problem;
}

async function describe() {
  try {
    const found = await (await ask("labels")).json();
    const task = found.task === "multilabel" ? "any number of" : "one of";
    part("model").textContent = `${found.model}: ${task} ${found.labels.length} classes`;
    part("looked").dataset.can = found.attribution;
    part("login").hidden = true;
    return true;
  } catch (error) {
    say("", error.message);
    return false;
  }
}

function percent(score) {
  return `${(100 * score).toFixed(1)} %`;
}

function bar({ label, score }) {
  const item = document.createElement("li");
  const line = document.createElement("div");
  line.className = "line";
  const name = document.createElement("span");
  name.textContent = label;
  const number = document.createElement("span");
  number.className = "score";
  number.textContent = percent(score);
  line.append(name, number);
  const frame = document.createElement("div");
  frame.className = "bar";
  const filled = document.createElement("div");
  filled.style.width = `${100 * score}%`;
  frame.append(filled);
  item.append(line, frame);
  return item;
}

function keep(kind, blob) {
  if (shown[kind] !== null) URL.revokeObjectURL(shown[kind]);
  shown[kind] = blob === null ? null : URL.createObjectURL(blob);
}

function showImage(kind) {
  const image = part("image");
  image.src = shown[kind];
  image.alt = kind === "image" ? "The image that was chosen" : "The image in grey, and in colour what spoke for its class";
  part("explain").setAttribute("aria-pressed", kind === "attribution");
}

function showAnswer(answer) {
  part("label").textContent = answer.label;
  part("present").hidden = answer.present === undefined;
  if (answer.present !== undefined) {
    part("present").textContent = `There: ${answer.present.join(", ") || "none of the classes"}`;
  }
  part("bars").replaceChildren(...answer.best.map(bar));
  part("looked").hidden = part("looked").dataset.can !== "true";
}

async function classify(file) {
  const number = ++latest;
  chosen = file;
  keep("image", file);
  keep("attribution", null);
  part("result").hidden = true;
  say("Looking ...");
  try {
    const { images } = await (await ask("predict", form(file))).json();
    if (number !== latest) return;
    showImage("image");
    part("name").textContent = file.name;
    showAnswer(images[0]);
    part("result").hidden = false;
    say(`${images[0].label}: ${percent(images[0].score)}`, "", false);  // for those who hear the page
  } catch (error) {
    if (number === latest) say("", error.message);
  }
}

async function explain() {
  if (part("explain").getAttribute("aria-pressed") === "true") {
    showImage("image");
    return;
  }
  const number = latest;
  try {
    if (shown.attribution === null) {
      say("Looking ...");
      const picture = await (await ask("attribution", form(chosen))).blob();
      if (number !== latest) return;
      keep("attribution", picture);
    }
    showImage("attribution");
    say("Shown: where it looked.", "", false);
  } catch (error) {
    if (number === latest) say("", error.message);
  }
}

function take(files) {
  const file = [...files].find((one) => one.type.startsWith("image/")) || files[0];
  if (file !== undefined) classify(file);
}

for (const [button, input] of [["choose", "file"], ["photograph", "camera"]]) {
  part(button).addEventListener("click", () => part(input).click());
  part(input).addEventListener("change", () => {
    take(part(input).files);
    part(input).value = "";  // the same file may be chosen again
  });
}
part("explain").addEventListener("click", explain);
part("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  token = part("token").value;
  say("");
  if (await describe()) part("choose").focus();
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();  // else the browser would leave the page for the file
  part("drop").classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (event.relatedTarget === null) part("drop").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  part("drop").classList.remove("over");
  take(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => take(event.clipboardData.files));
describe();
