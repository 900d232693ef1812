// Latents of a dictionary: a list to sort and search, and the images of the one that is chosen.

function makeLatents(k, study, look) {
  const own = study.latents[k], { images } = study, HEIGHT = 28;
  const part = (name) => at("latents-" + k + "-" + name);
  const list = part("list"), rows = part("rows"), panel = part("panel"), count = part("count"), filters = part("filters");
  // The ends of an interval are shown with their estimate.
  const isEnd = (name) => /_(low|high)$/.test(name) && own.columns[name.replace(/_(low|high)$/, "")] !== undefined;
  const numeric = Object.keys(own.columns).filter((name) => own.columns[name].numbers && !isEnd(name));
  const filter = { search: "", sort: numeric.includes("frequency") ? "frequency" : "latent", down: numeric.includes("frequency") };
  const columns = ["latent", "frequency", "max"].filter((name) => own.columns[name]);
  const size = own.grid[0] * own.grid[1];
  let shown = [], selected = -1, examples = null, ticket = 0;

  const word = (name, i) => {
    const column = own.columns[name];
    if (!column) return "";
    if (column.numbers) return number(column.numbers[i]);
    return column.words.of[i] >= 0 ? column.words.names[column.words.of[i]] : "";
  };
  const draw = () => {
    const [first, last] = inSight(list.scrollTop, list.clientHeight, HEIGHT, shown.length);
    const made = [];
    for (let place = first; place < last; place++) {
      const i = shown[place], row = make("div", "row" + (i === selected ? " selected" : ""));
      row.id = "latent-" + k + "-" + i;
      row.setAttribute("role", "option");
      row.setAttribute("aria-selected", i === selected ? "true" : "false");
      row.setAttribute("aria-setsize", shown.length);
      row.setAttribute("aria-posinset", place + 1);
      row.style.top = place * HEIGHT + "px";
      for (const name of columns) row.append(make("span", "", (name === "latent" ? "#" : "") + word(name, i)));
      row.append(make("span", "label", word("label", i) || word("top_class", i)));
      row.addEventListener("click", () => choose(i));
      made.push(row);
    }
    rows.replaceChildren(...made);
    if (selected >= 0) list.setAttribute("aria-activedescendant", "latent-" + k + "-" + selected);
  };
  const refresh = () => {
    shown = latentsThat(own, filter);
    count.textContent = shown.length.toLocaleString("en") + " of " + own.n.toLocaleString("en") + " latents";
    rows.style.height = shown.length * HEIGHT + "px";
    list.scrollTop = 0;
    draw();
  };
  const opened = async () => {
    if (examples) return examples;
    const bytes = await store.chunk(own.examples), n = own.nExamples;
    examples = {
      image: read32(bytes, 0, n), within: read32(bytes, 4 * n, n), value: readFloats(bytes, 8 * n, n), peak: readFloats(bytes, 12 * n, n),
      first: read32(bytes, 16 * n, own.n + 1), top: bytes.subarray(16 * n + 4 * (own.n + 1)),
    };
    return examples;
  };
  const choose = async (i) => {
    selected = i;
    const place = shown.indexOf(i);
    if (place >= 0) {
      if (place * HEIGHT < list.scrollTop) list.scrollTop = place * HEIGHT;
      if ((place + 1) * HEIGHT > list.scrollTop + list.clientHeight) list.scrollTop = (place + 1) * HEIGHT - list.clientHeight;
    }
    draw();
    const mine = ++ticket, known = await opened();
    const places = [];
    for (let e = known.first[i]; e < known.first[i + 1]; e++) places.push(e);
    const maps = await Promise.all(places.map(async (e) => {
      const [line, n] = own.images[known.image[e]];
      const bytes = await store.chunk(line);
      return bytes.subarray(8 * n + known.within[e] * size, 8 * n + (known.within[e] + 1) * size);
    }));
    if (mine !== ticket) return;
    const made = [make("h3", "", latentName(own, i)), facts(i)];
    const drawn = [];
    for (const [top, title] of [[1, "Strongest images"], [0, "From the whole range of images on which it fires"]]) {
      const some = places.map((e, j) => [e, maps[j]]).filter(([e]) => known.top[e] === top);
      if (!some.length) continue;
      const gallery = make("div", "examples");
      for (const [e, map] of some) gallery.append(example(i, known, e, map, drawn));
      made.push(make("h4", "", title), gallery);
    }
    if (!places.length) made.push(make("p", "", "It fires on none of these images."));
    const tools = make("div", "tools");
    tools.append(button("PNG", "Save these images with their maps as a PNG file", () => sheetOf(i, drawn)), button("CSV", "Save the numbers of these maps as a CSV file", () => saveCsv("latent-" + own.columns.latent.numbers[i], [["image", "value", ...Array.from({ length: size }, (_, p) => "patch " + p)], ...drawn.map(({ image, value, values }) => [images.ids[image], value, ...values])])));
    made.push(tools);
    panel.replaceChildren(...made);
    panel.dataset.ready = String(i);
  };
  const facts = (i) => {
    const found = make("dl", "facts");
    for (const name of Object.keys(own.columns)) {
      if (name === "latent" || name === "label" || isEnd(name) || word(name, i) === "") continue;
      const line = make("div", "");
      const term = make("dt", "", name.replaceAll("_", " "));
      if (own.words[name]) term.title = own.words[name];
      const ends = own.columns[name + "_low"] && own.columns[name + "_high"] && word(name + "_low", i) !== "\u2013";
      line.append(term, make("dd", "", word(name, i) + (ends ? " [" + word(name + "_low", i) + ", " + word(name + "_high", i) + "]" : "")));
      found.append(line);
    }
    return found;
  };
  const example = (i, known, e, map, drawn) => {
    const image = known.image[e], figure = make("figure", ""), frame = make("div", "frame"), uri = store.picture(image);
    const picture = uri ? make("img", "") : make("div", "blank");
    if (uri) { picture.src = uri; picture.alt = images.ids[image]; }
    const canvas = make("canvas", ""), caption = make("figcaption", ""), value = make("b", "", number(known.value[e]));
    const values = Float32Array.from(map, (byte) => (byte / 255) * known.peak[e]);
    if (size) paint(canvas, values, own.grid, known.peak[e], "colour");
    drawn.push({ picture, canvas, image, value: known.value[e], values });
    const label = images.label && images.label.of[image] >= 0 ? images.label.names[images.label.of[image]] : images.ids[image];
    caption.append(value, make("div", "label", label));
    frame.append(picture, canvas);
    if (size) {
      frame.addEventListener("pointermove", (event) => {
        const place = placeUnder(event, frame, own.grid);
        if (place !== null) value.textContent = number(values[place]) + " at (" + Math.floor(place / own.grid[1]) + ", " + (place % own.grid[1]) + ")";
      });
      frame.addEventListener("pointerleave", () => { value.textContent = number(known.value[e]); });
    }
    const open = button("", "Look at this image", () => look(image, { overlay: "latents-" + k, latent: i }));
    open.className = "frame-button";
    open.setAttribute("aria-label", "look at " + images.ids[image]);
    open.append(frame);
    figure.append(open, caption);
    return figure;
  };
  const sheetOf = (i, drawn) => {
    const SIDE = 128, n = Math.min(8, drawn.length), canvas = make("canvas", "");
    canvas.width = n * (SIDE + 8);
    canvas.height = Math.ceil(drawn.length / n) * (SIDE + 24);
    const context = canvas.getContext("2d");
    context.fillStyle = "#ffffff";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.fillStyle = "#000000";
    context.font = "12px sans-serif";
    drawn.forEach(({ picture, canvas: map, value }, j) => {
      const [x, y] = [(j % n) * (SIDE + 8), Math.floor(j / n) * (SIDE + 24)];
      context.drawImage(composed(picture.tagName === "IMG" ? picture : null, map, SIDE), x, y, SIDE, SIDE);
      context.fillText(number(value), x + 2, y + SIDE + 16);
    });
    saveCanvas("latent-" + own.columns.latent.numbers[i], canvas);
  };

  const search = make("label", "wide", "search: number, words or class"), input = make("input", "");
  input.type = "search";
  input.id = "latents-" + k + "-search";
  input.spellcheck = false;
  input.addEventListener("input", () => { filter.search = input.value; refresh(); });
  search.append(input);
  filters.append(search, select("sort by", numeric.map((name) => [name, name.replaceAll("_", " ")]), filter.sort, (value) => { filter.sort = value; refresh(); }).box,
    select("order", [["1", "largest first"], ["0", "smallest first"]], filter.down ? "1" : "0", (value) => { filter.down = value === "1"; refresh(); }).box);
  filters.append(button("CSV", "Save this list as a CSV file", () => saveCsv("latents", [Object.keys(own.columns), ...shown.map((i) => Object.keys(own.columns).map((name) => (own.columns[name].numbers ? own.columns[name].numbers[i] : word(name, i))))])));
  list.addEventListener("scroll", draw);
  window.addEventListener("resize", draw);
  list.addEventListener("keydown", (event) => {
    const page = Math.max(1, Math.floor(list.clientHeight / HEIGHT) - 1);
    const step = { ArrowUp: -1, ArrowDown: 1, PageUp: -page, PageDown: page, Home: -shown.length, End: shown.length }[event.key];
    if (step === undefined || !shown.length) return;
    event.preventDefault();
    choose(shown[Math.max(0, Math.min(shown.length - 1, Math.max(0, shown.indexOf(selected)) + step))]);
  });
  return {
    begin() { refresh(); if (selected < 0 && shown.length) return choose(shown[0]); return null; },
    choose,
  };
}
