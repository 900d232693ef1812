"use strict";
// Functions of data alone: they know nothing of the page.

// Numbers as people read them: three figures; nothing is a dash.
function number(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "\u2013";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e6) return String(value);
  if (size >= 1e5 || size < 1e-3) return value.toExponential(1);
  return String(Number(value.toPrecision(3)));
}

function bytesOf(base64) {
  const text = atob(base64);
  const found = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) found[i] = text.charCodeAt(i);
  return found;
}

async function inflated(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// Typed arrays at any place of a chunk, little-endian whatever the machine is.
function read16(bytes, at, n) {
  const view = new DataView(bytes.buffer, bytes.byteOffset), found = new Uint16Array(n);
  for (let i = 0; i < n; i++) found[i] = view.getUint16(at + 2 * i, true);
  return found;
}

function read32(bytes, at, n) {
  const view = new DataView(bytes.buffer, bytes.byteOffset), found = new Uint32Array(n);
  for (let i = 0; i < n; i++) found[i] = view.getUint32(at + 4 * i, true);
  return found;
}

function readFloats(bytes, at, n) {
  const view = new DataView(bytes.buffer, bytes.byteOffset), found = new Float32Array(n);
  for (let i = 0; i < n; i++) found[i] = view.getFloat32(at + 4 * i, true);
  return found;
}

// Attention of one layer of one image: what a query looks at, or which queries look at a key.
function attentionRow(bytes, largest, tokens, head, query) {
  const found = new Float32Array(tokens), start = (head * tokens + query) * tokens;
  const scale = largest[head * tokens + query] / 65535 / 255;
  for (let key = 0; key < tokens; key++) found[key] = bytes[start + key] * scale;
  return found;
}

function attentionColumn(bytes, largest, tokens, head, key) {
  const found = new Float32Array(tokens);
  for (let query = 0; query < tokens; query++) {
    const row = head * tokens + query;
    found[query] = (bytes[row * tokens + key] * largest[row]) / 65535 / 255;
  }
  return found;
}

// Positions of the largest values, largest first.
function largestOf(values, n) {
  return [...values.keys()].sort((a, b) => values[b] - values[a] || a - b).slice(0, n);
}

function extent(values) {
  let most = 0, negative = false;
  for (const value of values) { most = Math.max(most, Math.abs(value)); negative = negative || value < 0; }
  return { most, negative };
}

// Colour of a place, [red, green, blue, alpha of 255], for a share of the scale from -1 to 1.
function shade(share, mode) {
  const s = Math.max(-1, Math.min(1, share)), size = Math.abs(s);
  if (mode === "light") return [0, 0, 0, Math.round(220 * (1 - size))];
  if (s < 0) return [33, 102, 232, Math.round(40 + 195 * size)];
  return [255, Math.round(40 + 190 * s), 0, Math.round(s > 0 ? 40 + 180 * s : 0)];
}

// The same where nothing lies below: dark to light for sizes, white in the middle of the two signs.
const STOPS = [[0, 0, 4], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]];
const SIGNED = [[33, 102, 172], [146, 197, 222], [247, 247, 247], [244, 165, 130], [178, 24, 43]];

function solid(share, signed) {
  const stops = signed ? SIGNED : STOPS;
  const s = 4 * Math.max(0, Math.min(1, signed ? (share + 1) / 2 : share)), k = Math.min(3, Math.floor(s));
  return [...stops[k].map((low, c) => Math.round(low + (s - k) * (stops[k + 1][c] - low))), 255];
}

// Which rows of a long list have to exist: those in sight, and a few more.
function inSight(top, height, row, n) {
  const first = Math.max(0, Math.min(n - 1, Math.floor(top / row)) - 3);
  return [first, Math.max(first, Math.min(n, Math.ceil((top + height) / row) + 3))];
}

// A cell of a CSV file. A cell that a spreadsheet would compute gets a quotation mark before it.
function csvCell(text) {
  let cell = String(text);
  if (/^[=+\-@\t\r]/.test(cell) && !/^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(cell)) cell = "'" + cell;
  return /[",\n\r]/.test(cell) ? '"' + cell.replace(/"/g, '""') + '"' : cell;
}

function csv(rows) {
  return rows.map((row) => row.map((cell) => csvCell(cell === null || cell === undefined ? "" : cell)).join(",")).join("\n") + "\n";
}

function fileName(text, ending) {
  return (text.replace(/[^A-Za-z0-9._-]+/g, "-").replace(/^[-.]+|[-.]+$/g, "").slice(0, 60) || "figure") + "." + ending;
}

function pictureOf(base64) {
  return "data:image/" + (base64.startsWith("iVBOR") ? "png" : "jpeg") + ";base64," + base64;
}

// Images that a filter lets through, in the order that is asked for.
function imagesThat(images, filter) {
  const wanted = filter.search.trim().toLowerCase();
  const name = (kind, i) => (images[kind] && images[kind].of[i] >= 0 ? images[kind].names[images[kind].of[i]] : null);
  const found = [];
  for (let i = 0; i < images.ids.length; i++) {
    if (["label", "prediction", "group"].some((kind) => filter[kind] !== null && (!images[kind] || images[kind].of[i] !== filter[kind]))) continue;
    if (filter.right !== null) {
      const [label, prediction] = [name("label", i), name("prediction", i)];
      if (label === null || prediction === null || (label === prediction) !== filter.right) continue;
    }
    if (wanted) {
      const words = [images.ids[i], images.captions && images.captions[i], name("label", i), name("prediction", i), name("group", i)];
      if (!words.some((word) => word && word.toLowerCase().includes(wanted))) continue;
    }
    found.push(i);
  }
  const column = images.numbers[filter.sort];
  if (!column) return found;
  const order = (a, b) => {
    const x = column[a], y = column[b];
    if (x === null || y === null) return (x === null) - (y === null) || a - b;
    return (filter.down ? y - x : x - y) || a - b;
  };
  return found.sort(order);
}

// Latents that a filter lets through.
function latentsThat(latents, filter) {
  const wanted = filter.search.trim().toLowerCase();
  const numbers = latents.columns.latent.numbers;
  const words = Object.values(latents.columns).filter((column) => column.words).map((column) => column.words);
  const hits = words.map((column) => new Set(column.names.flatMap((name, k) => (name.toLowerCase().includes(wanted) ? [k] : []))));
  const found = [];
  for (let i = 0; i < latents.n; i++) {
    if (wanted && String(numbers[i]) !== wanted && !words.some((column, k) => hits[k].has(column.of[i]))) continue;
    found.push(i);
  }
  const column = latents.columns[filter.sort].numbers;
  return found.sort((a, b) => {
    const x = column[a], y = column[b];
    // Equal ones by number.
    const order = x === null || y === null ? (x === null) - (y === null) : filter.down ? y - x : x - y;
    return order || numbers[a] - numbers[b];
  });
}
