"use strict";
// Looking at latents. First functions of data alone, which run without a page; then the page.

// A heat map: "d" and one byte per patch, or "s" and pairs (zeros skipped, value); 255 skips 255 and has no value.
function decodeMap(text, n, decode) {
  const bytes = decode(text.slice(1));
  const found = new Uint8Array(n);
  if (text[0] === "d") {
    for (let i = 0; i < n; i++) found[i] = bytes.charCodeAt(i);
    return found;
  }
  let at = 0;
  for (let i = 0; i < bytes.length; ) {
    const gap = bytes.charCodeAt(i++);
    at += gap;
    if (gap === 255) continue;
    found[at++] = bytes.charCodeAt(i++);
  }
  return found;
}

// Numbers as people read them: four figures at most; nothing is a dash.
function number(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "\u2013";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e6) return String(value);
  if (size >= 1e5 || size < 1e-3) return value.toExponential(1);
  return String(Number(value.toPrecision(3)));
}

function percent(value) {
  if (value === null || value === undefined) return "\u2013";
  return (100 * value).toFixed(value > 0 && value < 0.0995 ? 1 : 0) + " %";
}

function interval(low, high, form) {
  if (low === null || high === null || low === undefined) return "";
  return "[" + form(low) + ", " + form(high) + "]";
}

// Texts that hold what is searched for, as a set of positions.
function holding(texts, wanted) {
  const found = new Set();
  texts.forEach((text, i) => { if (text.toLowerCase().includes(wanted)) found.add(i); });
  return found;
}

// Positions of the latents that a filter lets through, in the order that is asked for.
function chosen(index, names, filter) {
  const wanted = (filter.search || "").trim().toLowerCase();
  const exact = /^\d+$/.test(wanted) ? Number(wanted) : null;
  const classes = wanted ? holding(names.classes, wanted) : null;
  const groups = wanted ? holding(names.groups, wanted) : null;
  const texts = wanted ? holding(names.texts, wanted) : null;
  // What is not known is neither large nor small.
  const lies = (column, i, least, most) => {
    if (least === null && most === null) return true;
    const value = index[column] ? index[column][i] : null;
    return value !== null && (least === null || value >= least) && (most === null || value <= most);
  };
  const found = [];
  for (let i = 0; i < index.latent.length; i++) {
    if (filter.class !== null && index.top_class[i] !== filter.class) continue;
    if (!lies("frequency", i, filter.least, filter.most)) continue;
    if (!lies("class_share", i, filter.purity, null)) continue;
    if (!lies("max", i, filter.max, null)) continue;
    if (wanted) {
      const hit = index.latent[i] === exact || (index.top_class && classes.has(index.top_class[i])) ||
        (index.top_group && groups.has(index.top_group[i])) || index.texts[i].some((t) => texts.has(t));
      if (!hit) continue;
    }
    found.push(i);
  }
  const column = index[filter.sort];
  const order = (a, b) => {
    const x = column[a], y = column[b];
    // What is not known stays at the end in both directions; equals by number.
    if (x === null || y === null) return (x === null) - (y === null) || index.latent[a] - index.latent[b];
    return (filter.down ? y - x : x - y) || index.latent[a] - index.latent[b];
  };
  return found.sort(order);
}

// Which rows of a long list have to exist: those in sight, and a few more.
function inSight(top, height, row, n) {
  const first = Math.max(0, Math.min(n - 1, Math.floor(top / row)) - 8);
  return [first, Math.max(first, Math.min(n, Math.ceil((top + height) / row) + 8))];
}

// The latent that an address is about.
function latentOf(hash) {
  const found = /^#latent-(\d+)$/.exec(hash);
  return found ? Number(found[1]) : null;
}

// Colour of a patch, [red, green, blue, alpha of 255], for a share of the scale.
function shade(share, mode) {
  const s = Math.max(0, Math.min(1, share));
  if (mode === "light") return [0, 0, 0, Math.round(215 * (1 - s))];
  return [255, Math.round(60 + 170 * s), 0, Math.round(s > 0 ? 60 + 150 * s : 0)];
}

function pictureOf(base64) {
  return "data:image/" + (base64.startsWith("iVBOR") ? "png" : "jpeg") + ";base64," + base64;
}

const EXAMPLE = { picture: 0, value: 1, kind: 2, token: 3, type: 4, peak: 5, quantile: 6, map: 7 };

function start() {
  const block = (id) => document.getElementById(id).textContent;
  const known = JSON.parse(block("known"));
  const index = JSON.parse(block("index"));
  let lines = null, pictures = null;
  // Splitting is quick; a latent is parsed when it is looked at, an image when it is shown.
  const page = (i) => JSON.parse((lines = lines || block("pages").split("\n"))[i]);
  const image = (i) => pictureOf((pictures = pictures || block("pictures").split("\n"))[i]);
  const positions = new Map(index.latent.map((latent, i) => [latent, i]));
  const [down, across] = known.grid;
  const MODES = ["colour", "light", "off"];
  const HEIGHT = 30;
  const at = (id) => document.getElementById(id);
  const list = at("list"), rows = at("rows"), panel = at("panel");
  let shown = [], selected = -1, mode = "colour", scale = "own", drawn = [];

  const make = (tag, name, text) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    return element;
  };

  // -- the list -----------------------------------------------------------------------------------------------------

  const asNumber = (id, factor) => {
    const text = at(id).value.trim();
    const value = Number(text);
    return text === "" || Number.isNaN(value) ? null : value * factor;
  };
  const filter = () => ({
    search: at("search").value,
    class: at("class").value === "" ? null : Number(at("class").value),
    least: asNumber("least", 0.01), most: asNumber("most", 0.01), purity: asNumber("purity", 0.01),
    max: asNumber("max", 1), sort: at("sort").value, down: at("down").value === "1",
  });
  const refresh = () => {
    shown = chosen(index, known, filter());
    at("count").textContent = shown.length.toLocaleString("en") + " of " + index.latent.length.toLocaleString("en") + " latents";
    rows.style.height = shown.length * HEIGHT + "px";
    list.scrollTop = 0;
    draw();
  };
  const draw = () => {
    const [first, last] = inSight(list.scrollTop, list.clientHeight, HEIGHT, shown.length);
    const made = [];
    for (let place = first; place < last; place++) {
      const i = shown[place];
      const row = make("div", "row" + (i === selected ? " selected" : ""));
      row.id = "row-" + i;
      row.setAttribute("role", "option");
      row.setAttribute("aria-selected", i === selected ? "true" : "false");
      row.setAttribute("aria-setsize", shown.length);
      row.setAttribute("aria-posinset", place + 1);
      row.style.top = place * HEIGHT + "px";
      row.append(make("span", "", "#" + index.latent[i]), make("span", "", percent(index.frequency[i])), make("span", "", number(index.max[i])));
      const label = make("span", "label", index.top_class && index.top_class[i] !== null ? known.classes[index.top_class[i]] : "");
      row.append(make("span", "", index.class_share ? percent(index.class_share[i]) : ""), label);
      row.addEventListener("click", () => go(i));
      made.push(row);
    }
    rows.replaceChildren(...made);
    if (selected >= 0) list.setAttribute("aria-activedescendant", "row-" + selected);
  };
  const reveal = (i) => {
    const place = shown.indexOf(i);
    if (place < 0) return;
    const top = place * HEIGHT;
    if (top < list.scrollTop) list.scrollTop = top;
    if (top + HEIGHT > list.scrollTop + list.clientHeight) list.scrollTop = top + HEIGHT - list.clientHeight;
  };

  // -- a latent -----------------------------------------------------------------------------------------------------

  const go = (i) => {
    const hash = "#latent-" + index.latent[i];
    if (location.hash === hash) open(i); else location.hash = hash;
  };
  const open = (i) => {
    selected = i;
    reveal(i);
    draw();
    const data = page(i);
    drawn = [];
    const made = [heading(i)];
    for (const [kind, title] of [[0, "Strongest images"], [1, "From the whole range of images on which it fires"]]) {
      const own = data.e.filter((example) => example[EXAMPLE.kind] === kind);
      if (own.length) made.push(make("h3", "", title), gallery(own, i));
    }
    if (!data.e.length) made.push(make("p", "", "It fires on none of these images."));
    const grid = make("div", "columns");
    grid.append(histogram(data.h));
    if (data.c) grid.append(breakdown("Classes of the images on which it fires", data.c, known.classes));
    if (data.g) grid.append(breakdown("Groups", data.g, known.groups));
    for (const kind of [0, 1]) {
      const own = (data.t || []).filter((text) => text[3] === kind);
      if (own.length) grid.append(texts(["Texts near its decoder direction", "Texts near its top images"][kind], own));
    }
    for (const kind of [0, 1]) {
      const own = data.n.filter((one) => one[7] === kind);
      if (own.length) grid.append(near(["Neighbours by decoder direction", "Latents that fire together with it"][kind], own));
    }
    made.push(grid);
    panel.replaceChildren(...made);
    panel.scrollTop = 0;
    paint();
  };
  const heading = (i) => {
    const head = make("div", "head");
    head.append(make("h2", "", "Latent " + index.latent[i]));
    const facts = make("dl", "facts");
    const fact = (name, value, more) => {
      const line = make("div", "");
      line.append(make("dt", "", name), make("dd", "", value + (more ? " " + more : "")));
      facts.append(line);
    };
    const v = (column) => (index[column] ? index[column][i] : null);
    const ends = (column, form) => interval(v(column + "_low"), v(column + "_high"), form);
    fact("fires on", percent(v("frequency")), ends("frequency", percent) + " of " + known.n + " images, " + percent(v("density")) + " of tokens");
    fact("mean where it fires", number(v("mean")), ends("mean", number));
    fact("largest", number(v("max")));
    if (v("top_class") !== null) {
      fact("commonest class", known.classes[v("top_class")], percent(v("class_share")) + " " + ends("class_share", percent) + " of " + v("fires") + "; of all images " + percent(v("class_base")));
      fact("share of its top images", percent(v("class_share_of_top")), "have their commonest class");
    }
    if (v("top_group") !== null) fact("commonest group", known.groups[v("top_group")], percent(v("group_share")) + " " + ends("group_share", percent) + "; of all images " + percent(v("group_base")));
    if (v("moran") !== null) fact("maps are smooth (Moran's I)", number(v("moran")), ends("moran", number) + " n = " + v("moran_n"));
    if (v("prefix")) fact("on tokens without a place", percent(v("prefix")), "of the tokens on which it fires (" + known.prefix.join(", ") + ")");
    head.append(facts);
    return head;
  };
  const gallery = (examples, i) => {
    const all = make("div", "gallery");
    for (const example of examples) {
      const figure = make("figure", "");
      const frame = make("div", "frame");
      const picture = make("img", "");
      const about = known.images[example[EXAMPLE.picture]];
      picture.src = image(example[EXAMPLE.picture]);
      picture.alt = about[0];
      frame.append(picture);
      const caption = make("figcaption", "");
      const value = make("b", "", number(example[EXAMPLE.value]));
      caption.append(value);
      const type = known.types[example[EXAMPLE.type]];
      if (type !== "patch") caption.append(make("span", "badge", type));
      if (example[EXAMPLE.quantile] !== null) caption.append(make("span", "soft", " stronger than " + percent(example[EXAMPLE.quantile])));
      const what = [about[1] === null ? null : known.classes[about[1]], about[2] === null ? null : known.groups[about[2]]];
      caption.append(make("div", "label", what.filter((word) => word !== null).join(" \u00b7 ") || about[0]));
      figure.title = about[0];
      if (down * across && example[EXAMPLE.map]) {
        const map = decodeMap(example[EXAMPLE.map], down * across, atob);
        const canvas = make("canvas", "");
        canvas.width = across;
        canvas.height = down;
        frame.append(canvas);
        drawn.push({ canvas, map, peak: example[EXAMPLE.peak], largest: index.max[i] });
        frame.addEventListener("mousemove", (event) => {
          const box = frame.getBoundingClientRect();
          const column = Math.min(across - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * across)));
          const row = Math.min(down - 1, Math.max(0, Math.floor(((event.clientY - box.top) / box.height) * down)));
          value.textContent = number((map[row * across + column] / 255) * example[EXAMPLE.peak]) + " at patch (" + row + ", " + column + ")";
        });
        frame.addEventListener("mouseleave", () => { value.textContent = number(example[EXAMPLE.value]); });
      }
      figure.append(frame, caption);
      all.append(figure);
    }
    return all;
  };
  const paint = () => {
    at("mode").value = mode;
    at("scale").value = scale;
    for (const { canvas, map, peak, largest } of drawn) {
      canvas.hidden = mode === "off";
      if (mode === "off") continue;
      const context = canvas.getContext("2d");
      const pixels = context.createImageData(across, down);
      const factor = scale === "own" ? 1 : peak / (largest || 1);
      map.forEach((value, i) => pixels.data.set(shade((value / 255) * factor, mode), 4 * i));
      context.putImageData(pixels, 0, 0);
    }
  };
  const bars = (box, entries) => {
    for (const { label, share, low, high, text } of entries) {
      const line = make("div", "bar");
      const bed = make("div", "bed");
      const fill = make("div", "fill");
      fill.style.width = 100 * Math.max(0, Math.min(1, share)) + "%";
      bed.append(fill);
      if (low !== undefined && low !== null) {
        const whisker = make("div", "whisker");
        whisker.style.left = 100 * low + "%";
        whisker.style.width = 100 * (high - low) + "%";
        bed.append(whisker);
      }
      line.append(make("span", "label", label), bed, make("span", "soft", text));
      box.append(line);
    }
  };
  const boxed = (title) => {
    const box = make("section", "box");
    box.append(make("h3", "", title));
    return box;
  };
  const histogram = ([first, counts]) => {
    const box = boxed("Activations on the tokens where it fires");
    const chart = make("div", "chart");
    const most = Math.max(1, ...counts);
    counts.forEach((count, j) => {
      const bar = make("div", "column");
      const fill = make("div", "fill");
      fill.style.height = 100 * (count / most) + "%";
      bar.title = number(known.edges[first + j]) + " to " + number(known.edges[first + j + 1]) + ": " + count.toLocaleString("en") + " tokens";
      bar.append(fill);
      chart.append(bar);
    });
    const ends = make("div", "ends");
    ends.append(make("span", "soft", number(known.edges[first])), make("span", "soft", "half octaves; highest bar " + most.toLocaleString("en") + " tokens"), make("span", "soft", number(known.edges[first + counts.length])));
    box.append(chart, ends);
    return box;
  };
  const breakdown = (title, entries, names) => {
    const box = boxed(title);
    box.append(make("p", "soft", "Bar: share of the class or group on which it fires, with its 95 % interval. Right: images of all that it fires on."));
    bars(box, entries.map(([name, fires, share, rate, low, high, images]) => ({
      label: names[name], share: rate, low, high, text: fires + " of " + images + " (" + percent(share) + " of its images)",
    })));
    return box;
  };
  const texts = (title, entries) => {
    const box = boxed(title);
    bars(box, entries.map(([text, cosine, above]) => ({
      label: known.texts[text], share: cosine, text: number(cosine) + (above ? "" : " (as chance gives)"),
    })));
    return box;
  };
  const near = (title, entries) => {
    const box = boxed(title);
    for (const [position, cosine, together, low, high, both, either] of entries) {
      const button = make("button", "near");
      button.type = "button";
      const label = index.top_class && index.top_class[position] !== null ? known.classes[index.top_class[position]] : "";
      button.append(make("b", "", "#" + index.latent[position]), make("span", "label", label), make("span", "soft", "cosine " + number(cosine) + ", together " + percent(together) + " " + interval(low, high, percent) + " of " + either));
      button.addEventListener("click", () => go(position));
      box.append(button);
    }
    return box;
  };

  // -- what the reader does -----------------------------------------------------------------------------------------

  const step = (by) => {
    if (!shown.length) return;
    const place = shown.indexOf(selected);
    go(shown[Math.max(0, Math.min(shown.length - 1, place < 0 ? 0 : place + by))]);
  };
  const cycle = () => { mode = MODES[(MODES.indexOf(mode) + 1) % MODES.length]; paint(); };
  const follow = () => {
    const latent = latentOf(location.hash);
    if (latent !== null && positions.has(latent)) open(positions.get(latent));
    else if (shown.length) open(shown[0]);
  };
  known.classes.forEach((name, i) => {
    const option = make("option", "", name);
    option.value = String(i);
    at("class").append(option);
  });
  for (const option of [...at("sort").options]) if (!index[option.value]) option.remove();
  for (const id of ["search", "least", "most", "purity", "max"]) at(id).addEventListener("input", refresh);
  for (const id of ["class", "sort", "down"]) at(id).addEventListener("change", refresh);
  at("mode").addEventListener("change", () => { mode = at("mode").value; paint(); });
  at("scale").addEventListener("change", () => { scale = at("scale").value; paint(); });
  list.addEventListener("scroll", draw);
  window.addEventListener("resize", draw);
  window.addEventListener("hashchange", follow);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = ["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName);
    if (typing && event.key === "Escape") { event.target.blur(); return; }
    if (typing) return;
    // In the panel, keys that scroll go on scrolling it.
    if (panel.contains(event.target) && /^(Arrow|Page|Home|End)/.test(event.key)) return;
    const page = Math.max(1, Math.floor(list.clientHeight / HEIGHT) - 1);
    const act = {
      ArrowDown: () => step(1), j: () => step(1), ArrowUp: () => step(-1), k: () => step(-1),
      PageDown: () => step(page), PageUp: () => step(-page), Home: () => step(-shown.length), End: () => step(shown.length),
      h: cycle, "/": () => at("search").focus(),
    }[event.key];
    if (act) { event.preventDefault(); act(); }
  });
  at("app").hidden = false;
  refresh();
  follow();
}

if (typeof document !== "undefined") start();
if (typeof module !== "undefined") {
  module.exports = { decodeMap, number, percent, interval, holding, chosen, inSight, latentOf, shade, pictureOf };
}
