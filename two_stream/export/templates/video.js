/* Reads the frames of a video file one by one. The times of the frames come from the tables of an MP4 file, as in Python;
   for other files, they are measured by seeking. */

/* Milliseconds to wait for a frame that the browser shows already. */
const PATIENCE = 2000;

/* The video track's frame times in seconds, from the tables of an MP4 or MOV file; null if it has none. */
export async function mp4Times(file) {
  for (let at = 0; at + 8 <= file.size;) {
    const head = new DataView(await file.slice(at, at + 16).arrayBuffer()), size = sizeOf(head, 0, file.size - at);
    if (size < 8 || !/^[\x20-\x7e]{4}$/.test(nameAt(head, 4))) return null;
    if (nameAt(head, 4) === "moov") return timesOf(new DataView(await file.slice(at, at + size).arrayBuffer()));
    at += size;
  }
  return null;
}

const nameAt = (view, at) => String.fromCharCode(...Array.from({ length: 4 }, (_, i) => view.getUint8(at + i)));
const sizeOf = (view, at, rest) => {
  const size = view.getUint32(at);
  return size === 1 ? Number(view.getBigUint64(at + 8)) : size || rest;
};

/* The boxes with this path below `box`; a box is {view, at, end} without its header. */
function boxes({ view, at, end }, [name, ...rest]) {
  const found = [];
  while (at + 8 <= end) {
    const size = sizeOf(view, at, end - at), inner = { view, at: at + (view.getUint32(at) === 1 ? 16 : 8), end: Math.min(at + size, end) };
    if (nameAt(view, at + 4) === name) found.push(...(rest.length ? boxes(inner, rest) : [inner]));
    if (size < 8) break;
    at += size;
  }
  return found;
}

/* The runs of a table of (count, value), as one value for each sample. */
function samples(box) {
  if (!box) return null;
  const count = box.view.getUint32(box.at + 4), values = [];
  for (let at = box.at + 8, left = count; left && at + 8 <= box.end; at += 8, left--)
    for (let again = box.view.getUint32(at); again; again--) values.push(box.view.getInt32(at + 4));
  return values;
}

function timesOf(view) {
  const moov = boxes({ view, at: 0, end: view.byteLength }, ["moov"])[0];
  if (!moov) return null;
  for (const track of boxes(moov, ["trak"])) {
    const kind = boxes(track, ["mdia", "hdlr"])[0], clock = boxes(track, ["mdia", "mdhd"])[0];
    if (!kind || !clock || nameAt(view, kind.at + 8) !== "vide") continue;
    const table = (name) => samples(boxes(track, ["mdia", "minf", "stbl", name])[0]);
    const steps = table("stts"), shifts = table("ctts"), scale = view.getUint32(clock.at + (view.getUint8(clock.at) ? 20 : 12));
    if (!steps || !steps.length) return null;
    let clockTime = 0, begin = 0;
    const shown = steps.map((step, place) => (clockTime += step) - step + (shifts ? shifts[place] : 0));
    const edits = boxes(track, ["edts", "elst"])[0], long = edits && view.getUint8(edits.at);
    for (let left = edits ? view.getUint32(edits.at + 4) : 0, at = edits ? edits.at + 8 : 0; left; left--, at += long ? 20 : 12)
      begin = Math.max(begin, long ? Number(view.getBigInt64(at + 8)) : view.getInt32(at + 4));
    const times = shown.filter((time) => time >= begin).sort((a, b) => a - b);
    return times.length ? times.map((time) => (time - times[0]) / scale) : null;
  }
  return null;
}

const event = (target, name, problem) => new Promise((done, failed) => {
  target.addEventListener(name, done, { once: true });
  target.addEventListener("error", () => failed(new Error(problem)), { once: true });
});

/* A video whose frames can be read: `times`, and `read(number)`, which returns the pixels of a frame. */
export class VideoReader {
  static async open(file, url) {
    const reader = new VideoReader(), video = document.createElement("video");
    Object.assign(reader, { video, canvas: document.createElement("canvas"), unreadable: `${file.name}: this browser cannot read the video; use an MP4 (H.264) or WebM file` });
    Object.assign(video, { muted: true, playsInline: true, preload: "auto" });
    const ready = event(video, "loadeddata", reader.unreadable);
    video.src = url;
    await ready;
    if (!video.videoWidth) throw new Error(reader.unreadable);
    if (!video.requestVideoFrameCallback) throw new Error("This browser cannot tell which frame of a video it shows; use a newer browser");
    Object.assign(reader.canvas, { width: video.videoWidth, height: video.videoHeight });
    reader.pen = reader.canvas.getContext("2d", { willReadFrequently: true });
    await reader.findTimes(file);
    return reader;
  }

  async findTimes(file) {
    const first = await this.seek(0), last = await this.seek(1e9), table = await mp4Times(file).catch(() => null);
    this.exact = table !== null && Math.abs(first + table.at(-1) - last) < 0.002 + (table.at(-1) / table.length) / 2;
    this.times = this.exact ? table.map((time) => first + time) : await this.measure(first, last);
  }

  /* Find the constant frame rate: by small steps at first, then over distances that double. */
  async measure(first, last) {
    const found = [first];
    for (let time = first; found.length < 9 && time < Math.min(last, first + 2); time += 0.004) {
      const stamp = await this.seek(time + 0.004);
      if (stamp > found.at(-1) + 1e-4) found.push(stamp);
    }
    if (found.length < 2) return found;
    let gap = (found.at(-1) - first) / (found.length - 1);
    for (let span = 2 * (found.at(-1) - first); ; span *= 2) {
      const stamp = first + span < last ? await this.seek(first + span + gap / 2) : last;
      gap = (stamp - first) / Math.max(1, Math.round((stamp - first) / gap));
      if (stamp >= last) break;
    }
    return Array.from({ length: Math.round((last - first) / gap) + 1 }, (_, place) => first + place * gap);
  }

  /* Show the frame at this time, and return the time at which it begins. A hidden page shows no frames and waits. */
  async seek(time) {
    const { video } = this, done = event(video, "seeked", this.unreadable);
    const shown = new Promise((tell) => {
      const call = video.requestVideoFrameCallback((_, { mediaTime }) => end(mediaTime));
      const timer = setInterval(() => document.hidden || end(this.stamp), PATIENCE);
      const end = (stamp) => { clearInterval(timer); video.cancelVideoFrameCallback(call); tell(stamp); };
    });
    video.currentTime = Math.max(0, Math.min(time, video.duration || time));
    await done;
    return this.stamp = await shown;
  }

  async read(number) {
    const { times, pen, canvas } = this, time = times[number - 1], gap = (times.at(-1) - times[0]) / Math.max(1, times.length - 1) || 0.04;
    const next = number < times.length ? times[number] : time + gap;
    for (let tries = 3; ; tries--) {
      const stamp = await this.seek((time + next) / 2);
      if (Math.abs(stamp - time) <= Math.max(0.002, this.exact ? 0 : 0.75 * gap)) break;
      if (!tries) throw new Error(`Frame ${number} of the video cannot be read (found time ${stamp.toFixed(3)} s instead of ${time.toFixed(3)} s)`);
    }
    pen.drawImage(this.video, 0, 0);
    return pen.getImageData(0, 0, canvas.width, canvas.height).data;
  }

  close() {
    this.video.removeAttribute("src");
    this.video.load();
  }
}
