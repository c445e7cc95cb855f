/* The page: opens a video or the camera, runs the network, and shows its predictions. Every name is set as text, never as HTML. */
import { cropped, prepare, sampleClips, seenAt } from "./frames.js";
import { VideoReader } from "./video.js";

const TOP = 5, LIVE_SPAN = 60, WAITING = 4;
const at = (id) => document.getElementById(id), video = at("video");
const tell = (node, text) => { if (node.textContent !== String(text)) node.textContent = text; };
const child = (list, place, kind) => list.children[place] || list.appendChild(at(kind).content.firstChild.cloneNode(true));
const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}.${Math.floor(10 * (seconds % 1))}`;
let card, job = null, points = [], rows = [], shown = {};

/* What tests and the console can use. `last` holds the pixels and the logits of the newest call of the network. */
const twoStream = window.twoStream = { prepare, sampleClips, seenAt, last: null, result: null, onrun: null };

function say(text, kind = "") {
  tell(at("state"), text);
  at("state").className = kind;
}

function tellFact(name, value) {
  shown[name] = value;
  at("facts").replaceChildren(...Object.entries(shown).filter(([, text]) => text !== null).flatMap((row) =>
    row.map((textContent, place) => Object.assign(document.createElement(place ? "dd" : "dt"), { textContent }))));
}

/* The worker is made from a blob, so that the policy of this page (no connections elsewhere) applies to it too. */
function startWorker() {
  const address = JSON.stringify(new URL("worker.js", location.href).href), waiting = new Map();
  const worker = new Worker(URL.createObjectURL(new Blob([`import ${address};`], { type: "text/javascript" })), { type: "module" });
  worker.onmessage = ({ data }) => {
    const { done, failed } = waiting.get(data.id);
    waiting.delete(data.id);
    data.error ? failed(new Error(`The network cannot be run: ${data.error}`)) : done(data);
  };
  worker.onerror = () => [...waiting.values()].forEach(({ failed }) => failed(new Error("The file worker.js cannot be loaded; export the page again")));
  let id = 0;
  return (kind, content = {}) => new Promise((done, failed) => {
    waiting.set(++id, { done, failed });
    worker.postMessage({ id, kind, ...content });
  });
}

/* Run the network on resized frames, and return the logits. */
async function run(frames, view, box, numbers) {
  const clip = cropped(frames, view.resize, box), shape = [1, 3, frames.length, box[2] - box[0], box[3] - box[1]];
  const found = await twoStream.call("run", { clip, shape });
  const { logits, ms } = found, mirror = box[4] && card.mirror_labels;
  twoStream.last = { clip, shape, logits, numbers };
  if (twoStream.onrun) twoStream.onrun(twoStream.last);
  tellFact(card.stream ? "Time per step" : "Time per clip", `${ms.toFixed(0)} ms`);
  return mirror ? mirror.map((label) => logits[label]) : logits;
}

const logSum = (values) => { const most = Math.max(...values); return most + Math.log(values.reduce((sum, x) => sum + Math.exp(x - most), 0)); };
const columns = (views) => views[0].map((_, label) => views.map((view) => view[label]));
const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;

/* The probabilities of the classes from the logits of several views; see `aggregate_views` in Python. */
function probabilities(views) {
  if (!views.flat().every(Number.isFinite)) throw new Error("The network gives values that are not finite; export the run again");
  const softmax = (logits) => { const total = logSum(logits); return logits.map((x) => Math.exp(x - total)); };
  const chances = card.multi_label ? (logits) => logits.map((x) => 1 / (1 + Math.exp(-x))) : softmax;
  return card.aggregate === "logits" ? chances(columns(views).map(mean)) : columns(views.map(chances)).map(mean);
}

const ranked = (scores) => scores.map((score, label) => [card.class_names[label], score]).sort((a, b) => b[1] - a[1]);

function listClasses(scores, when) {
  const best = scores ? ranked(scores).slice(0, TOP) : [], list = at("classes");
  while (list.children.length > best.length) list.lastChild.remove();
  best.forEach(([name, score], place) => {
    const [label, value, bar] = child(list, place, "item").children;
    tell(label, name);
    tell(value, `${(100 * score).toFixed(1)} %`);
    bar.style.setProperty("--fill", rows.includes(name) ? `var(--s${rows.indexOf(name) + 1})` : "var(--muted)");
    bar.style.backgroundSize = `${100 * score}% 100%`;
  });
  tell(at("when"), when || "");
  at("note").hidden = best.length > 0;
  tell(at("spoken"), best.length ? best[0][0] : "");
}

/* One row per leading class. `points`: {start, scores}, each until the next one. */
function drawTimeLine(begin, end, place = null) {
  const x = (seconds) => (1000 * Math.min(1, Math.max(0, seconds - begin) / Math.max(end - begin, 1e-3))).toFixed(1);
  const sums = new Map(), guesses = points.map(({ scores }) => ranked(scores).slice(0, TOP));
  for (const best of guesses) best.forEach(([name, score], rank) => sums.set(name, (sums.get(name) || 0) + score + (rank ? 0 : 10)));
  const leading = [...sums.keys()].sort((a, b) => sums.get(b) - sums.get(a)).slice(0, TOP), fresh = leading.filter((name) => !rows.includes(name));
  rows = rows.map((name) => leading.includes(name) ? name : fresh.shift()).concat(fresh).filter(Boolean);
  while (at("rows").children.length > rows.length) at("rows").lastChild.remove();
  rows.forEach((name, number) => {
    const [label, svg] = child(at("rows"), number, "row").children, paths = ["", ""];
    points.forEach(({ start, scores }, index) => {
      const score = scores[card.class_names.indexOf(name)], first = guesses[index][0][0] === name;
      paths[first ? 1 : 0] += `M${x(start)} 100V${(100 - 100 * score).toFixed(1)}H${x((points[index + 1] || { start: end }).start)}V100Z`;
    });
    tell(label, name);
    svg.setAttribute("aria-label", `Probability of ${name} over time`);
    svg.style.fill = `var(--s${number + 1})`;
    paths.forEach((path, index) => svg.children[index].setAttribute("d", path));
    svg.lastChild.style.visibility = place === null ? "hidden" : "visible";
    for (const side of ["x1", "x2"]) svg.lastChild.setAttribute(side, x(place || 0));
  });
  at("time").hidden = !points.length;
  [begin, (begin + end) / 2, end].forEach((seconds, index) => tell(at("axis").children[index], clock(seconds)));
}

/* Show the video, or the place where one can be dropped. */
function show(shown) {
  at("empty").hidden = shown;
  video.hidden = !shown;
}

/* Stop what runs, and begin something else. */
function begin(text) {
  stop();
  const mine = job = { stopped: false, close: [] };
  [points, rows] = [[], []];
  at("time").hidden = true;
  show(true);
  at("stop").hidden = false;
  listClasses(null);
  tellFact("Video", null);
  say(text);
  return mine;
}

function stop() {
  if (job) {
    job.stopped = true;
    for (const close of job.close.splice(0)) close();
  }
  at("stop").hidden = at("progress").hidden = true;
}

/* Do something with a job, and tell its errors. */
async function attempt(mine, work) {
  try {
    await work();
  } catch (error) {
    if (!mine.stopped) {
      stop();
      if (!points.length) show(false);
      say(error.message, "warn");
    }
  }
}

async function openFile(file) {
  const mine = begin(`Reading ${file.name}`), address = URL.createObjectURL(file);
  await attempt(mine, async () => {
    Object.assign(video, { srcObject: null, src: address, controls: true });
    const reader = await VideoReader.open(file, address), { times } = reader;
    mine.close.push(() => reader.close());
    if (mine.stopped) return;
    const span = times.at(-1) - times[0], gap = span / Math.max(1, times.length - 1) || 0.04;
    tellFact("Video", `${times.length} frames, ${(1 / gap).toFixed(2)} a second${reader.exact ? "" : " (measured)"}`);
    const numbers = card.fps ? seenAt(times, card.fps) : times.map((_, place) => place + 1);
    const seen = { frames: numbers.length, end: span + gap, time: (number) => number > numbers.length ? span + gap : times[numbers[number - 1] - 1] - times[0],
      read: async (number) => prepare(await reader.read(numbers[number - 1]), reader.canvas.width, reader.canvas.height, card.stored, card.views.resize) };
    await (card.stream ? scoreSteps : scoreClips)(mine, seen);
    if (mine.stopped) return;
    stop();
    say(`${file.name}: ${points.length} ${points.length === 1 ? "prediction" : "predictions"}`);
  });
}

function advance(part, end) {
  Object.assign(at("progress"), { hidden: false, value: part });
  drawTimeLine(0, end);
}

/* Score all views of a video as `two-stream predict` does. A frame is kept until the last clip that shows it. */
async function scoreClips(mine, seen) {
  const clips = sampleClips(card.clip, seen.frames), views = [], kept = new Map(), until = new Map();
  clips.forEach((clip, place) => clip.forEach((number) => until.set(number, place)));
  for (const [place, clip] of clips.entries()) {
    for (const [index, number] of clip.entries()) {
      if (!kept.has(number)) kept.set(number, await seen.read(number));
      if (mine.stopped) return;
      Object.assign(at("progress"), { hidden: false, value: (place + 0.5 * index / clip.length) / clips.length });
    }
    const own = [], frames = clip.map((number) => kept.get(number));
    for (const box of card.views.boxes) {
      own.push(await run(frames, card.views, box, clip));
      if (mine.stopped) return;
    }
    views.push(...own);
    points.push({ start: seen.time(Math.min(...clip)), scores: probabilities(own) });
    advance((place + 1) / clips.length, seen.end);
    twoStream.result = probabilities(views);
    listClasses(twoStream.result, clips.length > 1 ? `mean of ${place + 1 < clips.length ? `${place + 1} of ` : ""}${clips.length} clips` : "");
    for (const number of clip) if (until.get(number) === place) kept.delete(number);
  }
}

/* Run the step network over a video. */
async function scoreSteps(mine, seen) {
  const { frames_per_step: count, warm_up: warmUp } = card.stream, stride = card.clip.stride, most = Math.ceil(seen.frames / stride);
  const steps = Math.floor(most / count);
  if (steps <= warmUp) throw new Error(`The video has ${most} frames for the network, and the first prediction needs ${(warmUp + 1) * count}; use a longer video`);
  await twoStream.call("restart");
  for (let step = 0; step < steps; step++) {
    const numbers = Array.from({ length: count }, (_, place) => (step * count + place) * stride + 1), frames = [];
    for (const number of numbers) frames.push(await seen.read(number));
    if (mine.stopped) return;
    const logits = await run(frames, card.views, card.views.boxes[0], numbers);
    if (mine.stopped) return;
    // The logits of the steps that warm up have no meaning.
    if (step >= warmUp) points.push({ start: seen.time(numbers.at(-1)), scores: twoStream.result = probabilities([logits]) });
    advance((step + 1) / steps, seen.end);
    if (points.length) listClasses(twoStream.result, `at ${clock(points.at(-1).start)}`);
  }
}

const CAMERA = {
  NotAllowedError: "The browser does not allow this page to use the camera; allow it in the settings of the page, and try again",
  NotFoundError: "No camera was found; connect one, or open a video",
  NotReadableError: "The camera is used by another program; close that program, and try again",
};

async function useCamera() {
  const mine = begin("Waiting for the camera");
  await attempt(mine, async () => {
    if (!navigator.mediaDevices) throw new Error("The camera needs an address that begins with https:// or http://localhost");
    const stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 640 }, height: { ideal: 480 } } }).catch((error) => {
      throw new Error(CAMERA[error.name] || `The camera cannot be used (${error.message})`);
    });
    mine.close.push(() => stream.getTracks().forEach((track) => track.stop()));
    if (mine.stopped) return mine.close.at(-1)();
    stream.getVideoTracks()[0].addEventListener("ended", () => attempt(mine, () => { throw new Error("The camera was disconnected"); }));
    Object.assign(video, { srcObject: stream, controls: false });
    await video.play();
    await twoStream.call("restart");
    watch(mine);
  });
}

/* Keep the newest frames of the camera, at the frame rate of the network, and predict whenever the network is free. */
function watch(mine) {
  const canvas = document.createElement("canvas"), pen = canvas.getContext("2d", { willReadFrequently: true });
  const { live, stream } = card, step = stream ? stream.frames_per_step : 0, size = stream ? WAITING * step : live.window.at(-1) + 1;
  let start = null, seen = -1, fed = 0, busy = false, dropped = 0;
  const held = [];

  async function predict(now) {
    busy = true;
    const chosen = stream ? held.splice(0, step) : live.window.map((place) => held[place]);
    const logits = await run(chosen.map((frame) => frame.pixels), live, live.boxes[0], chosen.map((frame) => frame.number));
    busy = false;
    if (mine.stopped) return;
    if (stream && fed++ < stream.warm_up) return say(`The first prediction comes after ${stream.warm_up + 1} steps (${fed} done)`);
    const scores = twoStream.result = probabilities([logits]);
    points = points.concat({ start: now, scores }).filter((_, place, all) => (all[place + 1] || { start: now }).start >= now - LIVE_SPAN);
    drawTimeLine(points[0].start, now + 0.01);
    listClasses(scores, "now");
    say(`Live${dropped ? `; ${dropped} frames were left out, because the network is slower than the camera` : ""}`);
  }

  function onFrame(stamp, facts) {
    if (mine.stopped) return;
    again();
    const time = ((facts && facts.captureTime) || stamp) / 1000;
    if (start === null) start = time;
    const newest = card.fps ? Math.round((time - start) * card.fps) : seen + 1;
    if (newest <= seen || !video.videoWidth) return;
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    pen.drawImage(video, 0, 0);
    const pixels = prepare(pen.getImageData(0, 0, canvas.width, canvas.height).data, canvas.width, canvas.height, card.stored, live.resize);
    while (seen < newest) {
      seen++;
      if (!stream || seen % card.clip.stride === 0) held.push({ pixels, number: seen + 1 });
    }
    while (held.length > size) dropped += held.shift() && stream ? 1 : 0;
    if (!stream && held.length < size) return say(`Collecting frames: ${held.length} of ${size}`);
    if (!busy && held.length >= (step || size)) attempt(mine, () => predict(time - start));
  }

  const again = () => video.requestVideoFrameCallback ? video.requestVideoFrameCallback(onFrame) : requestAnimationFrame(onFrame);
  again();
}

function listen() {
  at("open").onclick = () => at("file").click();
  at("file").onchange = () => {
    const file = at("file").files[0];
    // The same file can be chosen again.
    at("file").value = "";
    if (file) openFile(file);
  };
  at("camera").onclick = useCamera;
  at("stop").onclick = () => { stop(); say("Stopped"); };
  at("example").onclick = async () => openFile(new File([await (await fetch(card.example)).blob()], card.example));
  at("rows").onclick = (press) => {
    const svg = press.target.closest("svg"), box = svg && svg.getBoundingClientRect();
    if (svg && video.controls) video.currentTime = video.duration * (press.clientX - box.left) / box.width;
  };
  video.ontimeupdate = () => {
    if (!video.controls || !points.length) return;
    drawTimeLine(0, video.duration, video.currentTime);
    const now = points.findLast(({ start }) => start <= video.currentTime);
    if (card.stream && now && at("stop").hidden) listClasses(now.scores, `at ${clock(now.start)}`);
  };
  for (const name of ["dragover", "dragleave", "drop"])
    addEventListener(name, (drag) => {
      drag.preventDefault();
      at("figure").classList.toggle("over", name === "dragover");
      if (name === "drop" && drag.dataTransfer.files[0] && twoStream.ready) openFile(drag.dataTransfer.files[0]);
    });
}

async function main() {
  const begun = performance.now();
  say("Loading the network");
  if (typeof WebAssembly === "undefined") throw new Error("This browser does not run WebAssembly; use a newer browser, or allow WebAssembly in its settings");
  card = twoStream.card = await (await fetch("model.json", { cache: "no-cache" })).json();
  tell(at("name"), document.title = `Action recognition: ${card.name}`);
  tellFact("Classes", card.class_names.length);
  tellFact("Input", `${card.shape[2]} frames of ${card.shape[4]} × ${card.shape[3]} pixels${card.stream ? " per step" : ""}`);
  tellFact("File", `${(card.network.bytes / 1e6).toFixed(1)} MB, ONNX, ${card.precision}`);
  listen();
  twoStream.call = startWorker();
  const { threads } = await twoStream.call("load", { base: location.href, card });
  tellFact("Runtime", `WebAssembly, ${threads} ${threads === 1 ? "thread" : "threads"}`);
  tellFact("Loaded in", `${((performance.now() - begun) / 1000).toFixed(1)} s`);
  at("example").hidden = !card.example;
  for (const name of ["open", "camera", "example"]) at(name).disabled = false;
  Object.assign(twoStream, { ready: true, openFile });
  say("Ready");
}

main().catch((error) => say(error.message, "warn"));
