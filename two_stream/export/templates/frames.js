/* The frames of a clip and their pixels, computed as in Python: `data/clips/sampling.py`, `video/rate.py`, and cv2.resize.
   Frame numbers start at 1. */
const SAME = 1e-5;

/* Python's round: halves go to the even neighbour. */
export function roundEven(x) {
  const low = Math.floor(x), rest = x - low;
  return rest < 0.5 || (rest === 0.5 && low % 2 === 0) ? low : low + 1;
}

const list = (length, value) => Array.from({ length }, (_, place) => value(place));
const looped = (start, frames, length, stride) => list(length, (place) => (start + place * stride) % frames + 1);

/* The frame numbers of every clip of a video. `clip`: {protocol, length, stride, segments, clips, step}. */
export function sampleClips(clip, frames) {
  const { protocol, length, stride } = clip, segments = clip.segments || length;
  if (!protocol.startsWith("segments-")) return starts(clip, frames).map((start) => looped(start, frames, length, stride));
  const each = length / segments;
  return segmentStarts(clip, frames, segments, (each - 1) * stride + 1).map((places) =>
    places.flatMap((start) => looped(start, frames, each, stride)));
}

function starts({ protocol, length, stride, clips, step }, frames) {
  const span = (length - 1) * stride + 1, slack = frames - span;
  if (protocol === "uniform")
    return list(clips, (place) => slack <= 0 || clips === 1 ? Math.max(slack, 0) >> 1 : roundEven(slack * place / (clips - 1)));
  if (protocol === "paper-multi") {
    const count = Math.floor((frames - 3) / length);
    if (frames <= length || count < 1) return [0];
    return list(count, (place) => ((frames - count * length) >> 1) + place * length);
  }
  if (slack <= 0) return [0];
  if (protocol === "single" || protocol === "paper-single") return [slack >> 1];
  if (protocol === "multi") {
    const whole = length * stride, count = 1 + Math.floor(slack / whole);
    return list(count, (place) => ((slack - (count - 1) * whole) >> 1) + place * whole);
  }
  const apart = step || Math.max(1, span >> 1), found = list(Math.floor(slack / apart) + 1, (place) => place * apart);
  return found.at(-1) === slack ? found : [...found, slack];
}

function segmentStarts({ protocol, clips }, frames, segments, span) {
  const room = Math.max(0, frames - span), part = frames / segments, apart = room / Math.max(1, segments - 1);
  const shared = (clip, count) => list(segments, (place) =>
    roundEven(place * (room / segments)) + Math.trunc(room / segments / (count + 1) * (clip + 1)));
  if (protocol === "segments-uniform") return list(clips, (clip) => shared(clip, clips));
  const found = span === 1
    ? [list(segments, (place) => Math.trunc(place * part + part / 2)), list(segments, (place) => Math.trunc(place * part))]
    : [segments > 1 ? list(segments, (place) => roundEven(place * apart)) : [room >> 1], shared(0, 1)];
  return protocol === "segments-twice" ? found : found.slice(0, 1);
}

/* The numbers of the frames that a video with these frame times shows at `fps` frames per second. */
export function seenAt(times, fps) {
  const numbers = [];
  let before = times[0], shown = 1, at;
  times.forEach((time, index) => {
    while ((at = times[0] + numbers.length / fps) <= time + SAME)
      numbers.push(time - at < at - before - SAME ? index + 1 : shown);
    if (time > before) [before, shown] = [time, index + 1];
  });
  return numbers;
}

/* Resize RGBA pixels to RGB of `height`×`width` as for training: first to the size of the stored frames, then to `resize`. */
export function prepare(rgba, width, height, stored, resize) {
  let image = { data: new Uint8Array(width * height * 3), width, height };
  for (let from = 0, to = 0; from < rgba.length; from += 4, to += 3) {
    image.data[to] = rgba[from];
    image.data[to + 1] = rgba[from + 1];
    image.data[to + 2] = rgba[from + 2];
  }
  let [tall, wide] = stored.size || [height, width];
  if (!stored.size && stored.short_side) {
    const short = Math.min(height, width);
    [tall, wide] = [roundEven(height * stored.short_side / short), roundEven(width * stored.short_side / short)];
  }
  image = resized(image, wide, tall, tall * wide < height * width);
  return resized(image, resize[1], resize[0], false).data;
}

/* cv2.resize of RGB pixels; `area`: INTER_AREA, otherwise INTER_LINEAR. */
function resized(image, width, height, area) {
  if (image.width === width && image.height === height) return image;
  const across = image.width / width, down = image.height / height;
  const halves = across === 2 && down === 2;
  if (halves || (area && across >= 1 && down >= 1)) return averaged(image, width, height, halves);
  return interpolated(image, width, height, area);
}

/* The places in a row and their weights, whose weighted sum is a pixel of the smaller row. */
function shares(from, to) {
  const scale = from / to;
  return list(to, (place) => {
    const begin = place * scale, end = begin + scale, cell = Math.min(scale, from - begin), found = [];
    const last = Math.min(Math.floor(end), from - 1), first = Math.min(Math.ceil(begin), last);
    if (first - begin > 1e-3) found.push([first - 1, Math.fround((first - begin) / cell)]);
    for (let at = first; at < last; at++) found.push([at, Math.fround(1 / cell)]);
    if (end - last > 1e-3) found.push([last, Math.fround(Math.min(end - last, 1, cell) / cell)]);
    return found;
  });
}

function averaged({ data, width: from, height: rows }, width, height, halves) {
  const out = new Uint8Array(width * height * 3), row = new Float32Array(width * 3), sum = new Float32Array(width * 3);
  const columns = shares(from, width);
  const whole = from % width === 0 && rows % height === 0, size = (from / width) * (rows / height), scale = Math.fround(1 / size);
  shares(rows, height).forEach((lines, y) => {
    sum.fill(0);
    for (const [line, beta] of lines) {
      row.fill(0);
      columns.forEach((parts, x) => {
        for (const [at, alpha] of parts)
          for (let c = 0, place = (line * from + at) * 3; c < 3; c++) row[3 * x + c] += whole ? data[place + c] : data[place + c] * alpha;
      });
      for (let x = 0; x < sum.length; x++) sum[x] += whole ? row[x] : beta * row[x];
    }
    for (let x = 0; x < sum.length; x++)
      out[y * sum.length + x] = halves ? (sum[x] + 2) >> 2 : roundEven(whole ? Math.fround(sum[x] * scale) : sum[x]);
  });
  return { data: out, width, height };
}

/* Two neighbours and their weights in 1/2048. At the border, OpenCV changes the weights of columns, but not those of rows. */
function pairs(from, to, area, columns) {
  const scale = from / to;
  return list(to, (place) => {
    let at, share;
    if (area) {
      at = Math.floor(place * scale);
      share = Math.fround(place + 1 - (at + 1) * (to / from));
      share = share <= 0 ? 0 : share - Math.floor(share);
    } else {
      share = Math.fround((place + 0.5) * scale - 0.5);
      at = Math.floor(share);
      share = Math.fround(share - at);
    }
    if (columns && (at < 0 || at >= from - 1)) share = 0;
    const inside = (index) => Math.min(Math.max(index, 0), from - 1);
    return [inside(at), inside(at + 1), roundEven(Math.fround(1 - share) * 2048), roundEven(share * 2048)];
  });
}

function interpolated({ data, width: from, height: rows }, width, height, area) {
  const out = new Uint8Array(width * height * 3), columns = pairs(from, width, area, true), made = new Map();
  const line = (y) => {
    if (made.has(y)) return made.get(y);
    const row = new Int32Array(width * 3);
    columns.forEach(([left, right, near, far], x) => {
      for (let c = 0; c < 3; c++) row[3 * x + c] = data[(y * from + left) * 3 + c] * near + data[(y * from + right) * 3 + c] * far;
    });
    if (made.size > 1) made.delete(made.keys().next().value);
    made.set(y, row);
    return row;
  };
  pairs(rows, height, area, false).forEach(([above, below, near, far], y) => {
    const first = line(above), second = line(below);
    for (let x = 0; x < first.length; x++)
      out[y * first.length + x] = ((near * (first[x] >> 4) >> 16) + (far * (second[x] >> 4) >> 16) + 2) >> 2;
  });
  return { data: out, width, height };
}

/* Crop resized frames to a clip in the order (channel, frame, row, column). `box`: [y0, x0, y1, x1, mirrored]. */
export function cropped(frames, resize, [y0, x0, y1, x1, mirrored]) {
  const tall = y1 - y0, wide = x1 - x0, plane = tall * wide, clip = new Uint8Array(3 * frames.length * plane);
  frames.forEach((frame, t) => {
    for (let y = 0; y < tall; y++)
      for (let x = 0; x < wide; x++) {
        const from = ((y0 + y) * resize[1] + (mirrored ? x1 - 1 - x : x0 + x)) * 3, to = t * plane + y * wide + x;
        for (let c = 0; c < 3; c++) clip[c * frames.length * plane + to] = frame[from + c];
      }
  });
  return clip;
}
