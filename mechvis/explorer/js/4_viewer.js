// One image, and over it attention, a latent, or a map: whatever the patch under the pointer says.

function makeViewer(study) {
  const { images, attention, maps, latents } = study;
  const state = { image: 0, overlay: null, layer: attention ? attention.layers.length - 1 : 0, head: 0, direction: "from", method: 0, latent: null, mode: "colour", cursor: null, pinned: false };
  const stage = at("stage"), picture = at("stage-picture"), canvas = at("stage-map"), cursor = at("stage-cursor");
  const prefix = at("stage-prefix"), readout = at("readout"), strip = at("strip"), controls = at("viewer-controls"), about = at("about");
  let loaded = null, loadedFor = "", shown = null, ticket = 0;

  const overlays = [];
  if (attention) overlays.push(["attention", "attention"]);
  if (maps) overlays.push(["maps", "attribution maps"]);
  latents.forEach((own, k) => overlays.push(["latents-" + k, latents.length > 1 ? "latents of " + own.name : "latents"]));
  overlays.push(["none", "nothing"]);
  state.overlay = overlays[0][0];

  const nameOf = (kind, i) => (images[kind] && images[kind].of[i] >= 0 ? images[kind].names[images[kind].of[i]] : null);
  const dictionary = () => (state.overlay.startsWith("latents-") ? latents[Number(state.overlay.slice(8))] : null);
  const grid = () => {
    if (state.overlay === "attention") return attention.grid;
    if (state.overlay === "maps") return maps.methods[state.method].grid;
    return dictionary() ? dictionary().grid : [1, 1];
  };
  const patchName = (place, shape) => "patch (" + Math.floor(place / shape[1]) + ", " + (place % shape[1]) + ")";
  const tokenName = (token) => (token < attention.prefix.length ? attention.prefix[token] : patchName(token - attention.prefix.length, attention.grid));

  // -- what an overlay knows of an image --------------------------------------------------------------------------

  const sources = {
    attention: {
      async load(image) {
        const tokens = attention.prefix.length + attention.grid[0] * attention.grid[1];
        const heads = attention.heads[state.layer], lines = attention.full[image];
        if (lines) {
          const bytes = await store.chunk(lines[state.layer]);
          return { tokens, heads, bytes, largest: read16(bytes, heads * tokens * tokens, heads * tokens) };
        }
        const place = attention.places.get(image);
        if (place === undefined) return null;
        const some = Math.min(attention.readImages, attention.images.length - Math.floor(place / attention.readImages) * attention.readImages);
        const bytes = await store.chunk(attention.read[Math.floor(place / attention.readImages)]);
        const units = attention.units.length, own = place % attention.readImages;
        const before = attention.heads.slice(0, state.layer).reduce((a, b) => a + b, 0);
        return { tokens, heads, read: bytes.subarray((own * units + before) * tokens, (own * units + before + heads) * tokens), readLargest: read16(bytes, some * units * tokens, some * units).subarray(own * units + before, own * units + before + heads) };
      },
      // Weights of a head: of the query under the pointer, or of the tokens that are read.
      weights(data, head) {
        const n = attention.prefix.length;
        if (data.bytes && state.cursor !== null) {
          return (state.direction === "from" ? attentionRow : attentionColumn)(data.bytes, data.largest, data.tokens, head, state.cursor);
        }
        if (data.bytes) {
          const token = attention.prefix.indexOf(attention.readName);
          if (token >= 0) return attentionRow(data.bytes, data.largest, data.tokens, head, token);
          const mean = new Float32Array(data.tokens);
          for (let query = 0; query < data.tokens; query++) attentionRow(data.bytes, data.largest, data.tokens, head, query).forEach((value, key) => { mean[key] += value / data.tokens; });
          return mean;
        }
        const found = new Float32Array(data.tokens), scale = data.readLargest[head] / 65535 / 255;
        for (let key = 0; key < data.tokens; key++) found[key] = data.read[head * data.tokens + key] * scale;
        return found;
      },
      items(data) {
        return [...Array(data.heads).keys()].map((head) => ({ key: head, title: "head " + head, tokens: this.weights(data, head), grid: attention.grid, chosen: head === state.head }));
      },
      pick(key) { state.head = key; },
      words(data, item) {
        const name = "L" + attention.layers[state.layer] + "H" + state.head;
        const best = largestOf(item.tokens, 3).map((token) => tokenName(token) + " " + number(item.tokens[token]));
        if (state.cursor === null || !data.bytes) {
          const here = state.cursor === null ? "" : "; " + tokenName(state.cursor) + " gets " + number(item.tokens[state.cursor]);
          return name + ": " + attention.readName + " looks at " + best.join(", ") + here + (data.bytes || state.cursor === null ? "" : " (full patterns are kept for the first images only)");
        }
        return state.direction === "from" ? name + ": " + tokenName(state.cursor) + " looks at " + best.join(", ") : name + ": " + tokenName(state.cursor) + " is looked at by " + best.join(", ");
      },
      rows(item) { return [["token", "weight"], ...[...item.tokens].map((value, token) => [tokenName(token), value])]; },
    },
    maps: {
      async load(image) {
        const known = maps.images[image];
        if (!known) return null;
        const bytes = await store.chunk(known[0]), found = new Map();
        let start = 0;
        for (const method of known[1]) {
          const [down, across] = maps.methods[method].grid, n = down * across, values = new Float32Array(n);
          const size = readFloats(bytes, start + n, 1)[0];
          for (let i = 0; i < n; i++) values[i] = ((bytes[start + i] << 24) >> 24) / 127 * size;
          found.set(method, values);
          start += n + 4;
        }
        return found;
      },
      items(data) {
        return [...data].map(([method, values]) => ({ key: method, title: maps.methods[method].name, values, grid: maps.methods[method].grid, chosen: method === state.method }));
      },
      pick(key) { state.method = key; },
      words(data, item) {
        const best = largestOf(item.values, 1)[0], shape = item.grid;
        const here = state.cursor === null ? "" : patchName(state.cursor, shape) + " has " + number(item.values[state.cursor]) + "; ";
        return item.title + ": " + here + "largest " + number(item.values[best]) + " at " + patchName(best, shape) + ". " + maps.methods[item.key].about;
      },
      rows(item) { return [["row", "column", "value"], ...[...item.values].map((value, place) => [Math.floor(place / item.grid[1]), place % item.grid[1], value])]; },
    },
    latents: {
      async load(image) {
        const own = dictionary(), known = own.images[image];
        if (!known) return null;
        const bytes = await store.chunk(known[0]), n = known[1];
        return { n, latent: read32(bytes, 0, n), peak: readFloats(bytes, 4 * n, n), bytes: bytes.subarray(8 * n) };
      },
      items(data) {
        const own = dictionary(), size = own.grid[0] * own.grid[1];
        const worth = (k) => (state.cursor === null ? data.peak[k] : (data.bytes[k * size + state.cursor] / 255) * data.peak[k]);
        let order = [...Array(data.n).keys()].map((k) => [worth(k), k]).sort((a, b) => b[0] - a[0] || a[1] - b[1]).slice(0, 12);
        const wanted = state.latent === null ? -1 : data.latent.indexOf(state.latent);
        if (wanted >= 0 && !order.some(([, k]) => k === wanted)) order = [[worth(wanted), wanted], ...order.slice(0, 11)];
        if (wanted < 0 && order.length) state.latent = data.latent[order[0][1]];
        return order.map(([, k]) => {
          const values = new Float32Array(size);
          for (let i = 0; i < size; i++) values[i] = (data.bytes[k * size + i] / 255) * data.peak[k];
          return { key: data.latent[k], title: latentName(own, data.latent[k]), values, grid: own.grid, chosen: data.latent[k] === state.latent };
        });
      },
      pick(key) { state.latent = key; },
      words(data, item) {
        const here = state.cursor === null ? "" : number(item.values[state.cursor]) + " on " + patchName(state.cursor, item.grid) + ", ";
        return item.title + ": " + here + "at most " + number(extent(item.values).most) + " on this image. " + data.n + " latents have it among their examples.";
      },
      rows(item) { return sources.maps.rows(item); },
    },
  };
  const source = () => sources[dictionary() ? "latents" : state.overlay];

  // -- drawing ----------------------------------------------------------------------------------------------------

  const onPatches = (item) => (item.tokens ? item.tokens.subarray(attention.prefix.length) : item.values);
  const cells = new Map();

  const wanted = () => state.overlay + " " + state.image + " " + (state.overlay === "attention" ? state.layer : "");
  const draw = () => {
    // Numbers of another layer, image or kind must not be drawn as this one's; they are on their way.
    if (loadedFor !== wanted()) return;
    const own = source();
    const shape = grid();
    moveCursor(shape);
    if (!own || !loaded) {
      shown = null;
      paint(canvas, new Float32Array(shape[0] * shape[1]), shape, 0, "off");
      strip.replaceChildren();
      prefix.replaceChildren();
      readout.textContent = own ? "Nothing is known of this image here." : "";
      return;
    }
    const items = own.items(loaded);
    shown = items.find((item) => item.chosen) || items[0];
    paint(canvas, onPatches(shown), shown.grid, extent(onPatches(shown)).most, state.mode);
    drawStrip(items);
    drawPrefix(shown);
    readout.textContent = own.words(loaded, shown);
  };
  const drawStrip = (items) => {
    while (strip.children.length > items.length) strip.lastChild.remove();
    items.forEach((item, k) => {
      let cell = strip.children[k];
      if (!cell) {
        cell = make("button", "multiple");
        cell.type = "button";
        cell.append(make("canvas", ""), make("span", "name"), make("span", "soft"));
        cell.addEventListener("click", () => { source().pick(cells.get(cell)); sync(); draw(); });
        strip.append(cell);
      }
      cells.set(cell, item.key);
      cell.setAttribute("aria-pressed", item.chosen ? "true" : "false");
      const values = onPatches(item), most = extent(values).most;
      paint(cell.children[0], values, item.grid, most, "solid");
      cell.children[1].textContent = item.title;
      const patch = state.cursor === null ? null : item.tokens ? (loaded.bytes ? null : state.cursor) : state.cursor;
      cell.children[2].textContent = patch === null ? "max " + number(most) : number((item.tokens || item.values)[patch]);
      cell.title = item.title;
    });
  };
  const drawPrefix = (item) => {
    const names = item.tokens ? attention.prefix : [];
    while (prefix.children.length > names.length) prefix.lastChild.remove();
    names.forEach((name, token) => {
      let chip = prefix.children[token];
      if (!chip) {
        chip = make("button", "chip");
        chip.type = "button";
        const enter = () => { if (!state.pinned) { state.cursor = token; draw(); } };
        chip.addEventListener("pointerenter", enter);
        chip.addEventListener("focus", enter);
        chip.addEventListener("pointerleave", leave);
        chip.addEventListener("click", () => pin(token));
        prefix.append(chip);
      }
      chip.textContent = name + " " + number(item.tokens[token]);
      chip.setAttribute("aria-pressed", state.cursor === token ? "true" : "false");
    });
  };
  const patchOf = () => (state.overlay === "attention" ? (state.cursor === null ? null : state.cursor - attention.prefix.length) : state.cursor);
  const moveCursor = (shape) => {
    const place = patchOf();
    cursor.hidden = place === null || place < 0 || state.overlay === "none";
    cursor.classList.toggle("pinned", state.pinned);
    if (cursor.hidden) return;
    cursor.style.left = (100 * (place % shape[1])) / shape[1] + "%";
    cursor.style.top = (100 * Math.floor(place / shape[1])) / shape[0] + "%";
    cursor.style.width = 100 / shape[1] + "%";
    cursor.style.height = 100 / shape[0] + "%";
  };
  const point = (place) => {
    const token = place === null ? null : state.overlay === "attention" ? place + attention.prefix.length : place;
    if (token === state.cursor) return;
    state.cursor = token;
    draw();
  };
  const leave = () => { if (!state.pinned) point(null); };
  const pin = (token) => {
    state.pinned = !(state.pinned && state.cursor === token);
    state.cursor = token;
    draw();
  };

  // -- what the reader does ---------------------------------------------------------------------------------------

  stage.addEventListener("pointermove", (event) => { if (!state.pinned) point(placeUnder(event, stage, grid())); });
  stage.addEventListener("pointerleave", leave);
  stage.addEventListener("blur", leave);
  stage.addEventListener("click", (event) => {
    const place = placeUnder(event, stage, grid());
    if (place !== null && state.overlay !== "none") pin(state.overlay === "attention" ? place + attention.prefix.length : place);
  });
  stage.addEventListener("keydown", (event) => {
    const shape = grid(), place = patchOf(), from = place === null || place < 0 ? 0 : place;
    const [row, column] = [Math.floor(from / shape[1]), from % shape[1]];
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    if (steps[event.key]) {
      event.preventDefault();
      state.pinned = false;
      if (place === null || place < 0) { point(0); return; }
      const [down, across] = steps[event.key];
      const to = [Math.max(0, Math.min(shape[0] - 1, row + down)), Math.max(0, Math.min(shape[1] - 1, column + across))];
      point(to[0] * shape[1] + to[1]);
    } else if (event.key === "Escape") {
      state.pinned = false;
      point(null);
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      if (state.cursor !== null) pin(state.cursor);
    }
  });

  const sync = () => {
    controls.replaceChildren();
    controls.append(select("show", overlays, state.overlay, (value) => { state.overlay = value; state.cursor = null; state.pinned = false; sync(); reload(); }).box);
    if (state.overlay === "attention") {
      controls.append(
        select("layer", attention.layers.map((layer, k) => [String(k), String(layer)]), String(state.layer), (value) => { state.layer = Number(value); state.head = Math.min(state.head, attention.heads[state.layer] - 1); sync(); reload(); }).box,
        select("head", [...Array(attention.heads[state.layer]).keys()].map((head) => [String(head), String(head)]), String(state.head), (value) => { state.head = Number(value); draw(); }).box,
        select("patch under the pointer", [["from", "looks at"], ["to", "is looked at from"]], state.direction, (value) => { state.direction = value; draw(); }).box);
    }
    if (state.overlay === "maps") controls.append(select("method", maps.methods.map((method, k) => [String(k), method.name]), String(state.method), (value) => { state.method = Number(value); draw(); }).box);
    controls.append(select("map", [["colour", "colour"], ["light", "light"], ["solid", "alone"], ["off", "off"]], state.mode, (value) => { state.mode = value; draw(); }).box);
  };
  const describe = () => {
    const i = state.image;
    about.replaceChildren();
    const line = (name, value) => {
      if (value === null || value === undefined || value === "") return;
      const box = make("div", "");
      box.append(make("dt", "", name), make("dd", "", value));
      about.append(box);
    };
    const [label, prediction] = [nameOf("label", i), nameOf("prediction", i)];
    line("image", images.ids[i]);
    line("class", label);
    line("model says", prediction === null ? null : prediction + (label === null ? "" : label === prediction ? " (\u2713 right)" : " (\u2717 wrong)"));
    line("group", nameOf("group", i));
    line("caption", images.captions ? images.captions[i] : null);
    for (const [name, column] of Object.entries(images.numbers)) line(name, column[i] === null ? null : number(column[i]));
  };
  const reload = async () => {
    const mine = ++ticket, own = source(), asked = wanted();
    const found = own ? await own.load(state.image) : null;
    if (mine !== ticket) return;
    [loaded, loadedFor] = [found, asked];
    if (state.overlay === "maps" && loaded && !loaded.has(state.method)) { state.method = [...loaded.keys()][0]; sync(); }
    draw();
    stage.dataset.ready = state.overlay + " " + state.image + " " + state.layer;
  };
  const show = (image) => {
    state.image = image;
    const uri = store.picture(image);
    picture.hidden = !uri;
    if (uri) picture.src = uri; else picture.removeAttribute("src");
    picture.alt = images.ids[image];
    describe();
    return reload();
  };
  at("viewer-export").append(
    button("PNG", "Save the image with its map as a PNG file", () => saveCanvas("map-" + images.ids[state.image], composed(picture, canvas, 512))),
    button("CSV", "Save the numbers of the map as a CSV file", () => { if (shown) saveCsv("map-" + images.ids[state.image], source().rows(shown)); }));
  sync();
  return {
    state, show, draw,
    look(settings) { Object.assign(state, { cursor: null, pinned: false }, settings); sync(); return reload(); },
  };
}

function latentName(latents, i) {
  const label = latents.columns.label && latents.columns.label.words ? latents.columns.label.words : null;
  const words = label && label.of[i] >= 0 ? label.names[label.of[i]] : "";
  return "latent " + latents.columns.latent.numbers[i] + (words ? " \u00b7 " + words : "");
}
