// Elements, data that is decoded when it is needed, and files to take away.

function make(tag, name, text) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text;
  return element;
}

function at(id) {
  return document.getElementById(id);
}

function parsed(id) {
  const block = at(id);
  return block ? JSON.parse(block.textContent) : null;
}

// Lines are split when the first one is asked for; a chunk is decoded when it is shown, and the last few are kept.
const store = {
  lines: null, files: null, held: new Map(),
  chunk(line) {
    if (this.held.has(line)) {
      const known = this.held.get(line);
      this.held.delete(line);
      this.held.set(line, known);
      return known;
    }
    this.lines = this.lines || at("chunks").textContent.split("\n");
    const made = inflated(bytesOf(this.lines[line]));
    this.held.set(line, made);
    if (this.held.size > 64) this.held.delete(this.held.keys().next().value);
    return made;
  },
  picture(image) {
    this.files = this.files || at("pictures").textContent.split("\n");
    return this.files[image] ? pictureOf(this.files[image]) : "";
  },
};

function select(label, options, value, act) {
  const box = make("label", "", label), list = make("select", "");
  options.forEach(([key, text]) => {
    const option = make("option", "", text);
    option.value = key;
    list.append(option);
  });
  list.value = value;
  list.addEventListener("change", () => act(list.value));
  box.append(list);
  return { box, list };
}

function button(text, title, act) {
  const made = make("button", "tool", text);
  made.type = "button";
  made.title = title;
  made.addEventListener("click", act);
  return made;
}

// -- files to take away ---------------------------------------------------------------------------------------------

function save(name, blob) {
  const link = make("a", "");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function saveCsv(name, rows) {
  save(fileName(name, "csv"), new Blob([csv(rows)], { type: "text/csv" }));
}

function saveCanvas(name, canvas) {
  canvas.toBlob((blob) => save(fileName(name, "png"), blob), "image/png");
}

// A drawing of this page as a file of its own: what style sheets say is written into it.
function svgText(drawing) {
  const copy = drawing.cloneNode(true);
  const from = [drawing, ...drawing.querySelectorAll("*")], to = [copy, ...copy.querySelectorAll("*")];
  from.forEach((element, i) => {
    const style = getComputedStyle(element);
    if (style.display === "none") { to[i].setAttribute("display", "none"); return; }
    for (const name of ["fill", "stroke", "stroke-width", "opacity", "font-size", "font-family", "text-anchor", "stroke-dasharray"]) to[i].setAttribute(name, style.getPropertyValue(name));
  });
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  const [, , width, height] = copy.getAttribute("viewBox").split(" ");
  copy.setAttribute("width", width);
  copy.setAttribute("height", height);
  const bed = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  bed.setAttribute("width", "100%");
  bed.setAttribute("height", "100%");
  bed.setAttribute("fill", getComputedStyle(document.body).getPropertyValue("--card"));
  copy.prepend(bed);
  return new XMLSerializer().serializeToString(copy);
}

function savePicture(name, uri, scale) {
  const picture = new Image();
  picture.onload = () => {
    const canvas = make("canvas", "");
    canvas.width = picture.naturalWidth * scale;
    canvas.height = picture.naturalHeight * scale;
    const context = canvas.getContext("2d");
    context.fillStyle = "#ffffff";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    saveCanvas(name, canvas);
  };
  picture.src = uri;
}

function saveSvg(name, drawing) {
  save(fileName(name, "svg"), new Blob([svgText(drawing)], { type: "image/svg+xml" }));
}

function saveSvgAsPng(name, drawing) {
  savePicture(name, "data:image/svg+xml," + encodeURIComponent(svgText(drawing)), 2);
}

// -- maps -----------------------------------------------------------------------------------------------------------

// Paint a map on a canvas of one pixel per place.
function paint(canvas, values, grid, most, mode) {
  const [down, across] = grid;
  if (canvas.width !== across) canvas.width = across;
  if (canvas.height !== down) canvas.height = down;
  const context = canvas.getContext("2d");
  if (mode === "off") { context.clearRect(0, 0, across, down); return; }
  const pixels = context.createImageData(across, down), negative = mode === "solid" && values.some((value) => value < 0);
  for (let i = 0; i < down * across; i++) {
    const share = most ? values[i] / most : 0;
    pixels.data.set(mode === "solid" ? solid(share, negative) : shade(share, mode), 4 * i);
  }
  context.putImageData(pixels, 0, 0);
}

// An image with a map over it, as one canvas to save.
function composed(picture, overlay, size) {
  const canvas = make("canvas", "");
  const shape = picture && picture.naturalWidth ? picture.naturalHeight / picture.naturalWidth : overlay.height / overlay.width;
  canvas.width = size;
  canvas.height = Math.round(size * shape);
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  if (picture && picture.naturalWidth) context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  context.drawImage(overlay, 0, 0, canvas.width, canvas.height);
  return canvas;
}

// The place of a grid under a pointer.
function placeUnder(event, element, grid) {
  const box = element.getBoundingClientRect();
  const column = Math.floor(((event.clientX - box.left) / box.width) * grid[1]);
  const row = Math.floor(((event.clientY - box.top) / box.height) * grid[0]);
  if (column < 0 || row < 0 || column >= grid[1] || row >= grid[0]) return null;
  return row * grid[1] + column;
}
