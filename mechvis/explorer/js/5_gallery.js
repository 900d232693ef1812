// All images as small pictures, of which only those in sight are elements.

function makeGallery(study, open) {
  const { images } = study, CELL = 88, HEIGHT = 106;
  const box = at("gallery"), sheet = at("gallery-sheet"), filters = at("gallery-filters"), count = at("gallery-count");
  const filter = { search: "", label: null, prediction: null, group: null, right: null, sort: "", down: true };
  let shown = [], selected = 0;

  const name = (kind, i) => (images[kind] && images[kind].of[i] >= 0 ? images[kind].names[images[kind].of[i]] : null);
  const across = () => Math.max(1, Math.floor(box.clientWidth / CELL));
  const draw = () => {
    const n = across();
    const [first, last] = inSight(box.scrollTop, box.clientHeight, HEIGHT, Math.ceil(shown.length / n));
    const made = [];
    for (let place = first * n; place < Math.min(shown.length, last * n); place++) {
      const i = shown[place];
      const cell = make("div", "cell" + (i === selected ? " selected" : ""));
      cell.id = "image-" + i;
      cell.setAttribute("role", "option");
      cell.setAttribute("aria-selected", i === selected ? "true" : "false");
      cell.setAttribute("aria-setsize", shown.length);
      cell.setAttribute("aria-posinset", place + 1);
      cell.style.left = (place % n) * CELL + "px";
      cell.style.top = Math.floor(place / n) * HEIGHT + "px";
      const uri = store.picture(i);
      const picture = uri ? make("img", "") : make("div", "blank");
      if (uri) { picture.src = uri; picture.alt = images.ids[i]; }
      const [label, prediction] = [name("label", i), name("prediction", i)];
      const wrong = label !== null && prediction !== null && label !== prediction;
      cell.append(picture, make("div", "label" + (wrong ? " wrong" : ""), (wrong ? "\u2717 " + prediction : label) || images.ids[i]));
      cell.title = images.ids[i];
      cell.addEventListener("click", () => choose(i));
      made.push(cell);
    }
    sheet.replaceChildren(...made);
    sheet.style.height = Math.ceil(shown.length / n) * HEIGHT + "px";
    if (shown.includes(selected)) box.setAttribute("aria-activedescendant", "image-" + selected);
  };
  const refresh = () => {
    shown = imagesThat(images, filter);
    count.textContent = shown.length.toLocaleString("en") + " of " + images.ids.length.toLocaleString("en") + " images";
    box.scrollTop = 0;
    draw();
  };
  const choose = (i) => {
    selected = i;
    const place = shown.indexOf(i);
    if (place >= 0) {
      const top = Math.floor(place / across()) * HEIGHT;
      if (top < box.scrollTop) box.scrollTop = top;
      if (top + HEIGHT > box.scrollTop + box.clientHeight) box.scrollTop = top + HEIGHT - box.clientHeight;
    }
    draw();
    return open(i);
  };

  const search = make("label", "wide", "search: name, caption, class or group"), input = make("input", "");
  input.type = "search";
  input.id = "gallery-search";
  input.spellcheck = false;
  input.addEventListener("input", () => { filter.search = input.value; refresh(); });
  search.append(input);
  filters.append(search);
  for (const [kind, title] of [["label", "class"], ["prediction", "model says"], ["group", "group"]]) {
    if (!images[kind]) continue;
    const made = select(title, [["", "any"], ...images[kind].names.map((word, k) => [String(k), word])], "", (value) => { filter[kind] = value === "" ? null : Number(value); refresh(); });
    made.list.id = "gallery-" + kind;
    filters.append(made.box);
  }
  if (images.label && images.prediction) {
    const made = select("the model is", [["", "any"], ["1", "\u2713 right"], ["0", "\u2717 wrong"]], "", (value) => { filter.right = value === "" ? null : value === "1"; refresh(); });
    made.list.id = "gallery-right";
    filters.append(made.box);
  }
  const columns = Object.keys(images.numbers);
  if (columns.length) {
    const made = select("sort by", [["", "as given"], ...columns.map((column) => [column, column])], "", (value) => { filter.sort = value; refresh(); });
    made.list.id = "gallery-sort";
    const order = select("order", [["1", "largest first"], ["0", "smallest first"]], "1", (value) => { filter.down = value === "1"; refresh(); });
    filters.append(made.box, order.box);
  }
  at("gallery-export").append(button("CSV", "Save what is known of these images as a CSV file", () => {
    const kinds = ["label", "prediction", "group"].filter((kind) => images[kind]);
    saveCsv("images", [["id", ...kinds, ...columns], ...shown.map((i) => [images.ids[i], ...kinds.map((kind) => name(kind, i)), ...columns.map((column) => images.numbers[column][i])])]);
  }));
  box.addEventListener("scroll", draw);
  box.addEventListener("keydown", (event) => {
    const place = shown.indexOf(selected);
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across(), ArrowDown: across(), Home: -shown.length, End: shown.length }[event.key];
    if (step === undefined || !shown.length) return;
    event.preventDefault();
    choose(shown[Math.max(0, Math.min(shown.length - 1, (place < 0 ? 0 : place) + step))]);
  });
  window.addEventListener("resize", draw);
  refresh();
  return { choose, draw, refresh, first: () => shown[0] };
}
