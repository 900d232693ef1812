// A circuit: fewer or more edges, and the numbers of what is under the pointer.

function makeGraph(k, study, look) {
  const own = parsed("data-graph-" + k), drawing = at("graph-" + k + "-drawing"), info = at("graph-" + k + "-info");
  const edges = [...drawing.querySelectorAll(".edge")], nodes = [...drawing.querySelectorAll(".node")];
  const place = (element) => Number(element.dataset.place);
  const worth = (edge) => Math.abs(own.edges[place(edge)][3] === null ? 0 : own.edges[place(edge)][3]);
  // Edges of the circuit first, then others; strong before weak.
  const kept = (edge) => own.edges[place(edge)][4];
  const order = [...edges].sort((a, b) => kept(b) - kept(a) || worth(b) - worth(a) || place(a) - place(b));
  const inside = order.filter(kept).length;
  const nodeName = (i) => own.nodes[i][0];
  const edgeName = ([source, target, entry]) => nodeName(source) + " \u2192 " + nodeName(target) + (entry ? "." + entry : "");
  let n = inside && inside < order.length ? inside : Math.min(order.length, 80);

  const light = (chosen) => {
    drawing.classList.toggle("dim", chosen !== null);
    edges.forEach((edge) => edge.classList.toggle("lit", chosen !== null && chosen.edges.has(place(edge))));
    nodes.forEach((node) => node.classList.toggle("lit", chosen !== null && chosen.nodes.has(place(node))));
  };
  const onEdge = (i) => {
    const [source, target, , score, kept, note] = own.edges[i];
    light({ edges: new Set([i]), nodes: new Set([source, target]) });
    info.textContent = edgeName(own.edges[i]) + ": " + (score === null ? "no score" : "score " + number(score)) + (note ? ", " + note : "") + (kept ? "" : " (not in the circuit)");
  };
  const onNode = (i) => {
    const near = order.slice(0, n).map((edge) => [own.edges[place(edge)], place(edge)]).filter(([edge]) => edge[0] === i || edge[1] === i);
    const sum = (end) => near.filter(([edge]) => edge[end] === i).reduce((total, [edge]) => total + Math.abs(edge[3] || 0), 0);
    light({ edges: new Set(near.map(([, e]) => e)), nodes: new Set(near.flatMap(([edge]) => [edge[0], edge[1]])) });
    const count = (end) => near.filter(([edge]) => edge[end] === i).length;
    info.textContent = nodeName(i) + ": " + count(1) + " edges in that are drawn (sizes sum to " + number(sum(1)) + "), " + count(0) + " edges out (" + number(sum(0)) + ")";
  };
  const off = () => { light(null); info.textContent = "Point at an edge or a component to read its numbers."; };
  const watch = (element, act) => {
    element.addEventListener("pointerenter", act);
    element.addEventListener("focus", act);
    element.addEventListener("pointerleave", off);
    element.addEventListener("blur", off);
  };
  edges.forEach((edge) => watch(edge, () => onEdge(place(edge))));
  nodes.forEach((node) => {
    const [, kind, layer, head] = own.nodes[place(node)];
    watch(node, () => onNode(place(node)));
    const shown = kind === "head" && study.attention && study.attention.layers.includes(layer);
    if (!shown) return;
    node.classList.add("opens");
    const open = () => look(null, { overlay: "attention", layer: study.attention.layers.indexOf(layer), head });
    node.addEventListener("click", open);
    node.addEventListener("keydown", (event) => { if (event.key === "Enter") open(); });
  });

  const controls = at("graph-" + k + "-controls"), box = make("label", "slider", inside < order.length ? "edges, those of the circuit first" : "edges, strongest first"), slider = make("input", ""), told = make("span", "soft");
  Object.assign(slider, { type: "range", min: "1", max: String(order.length), value: String(n), id: "graph-" + k + "-slider" });
  const apply = () => {
    n = Number(slider.value);
    const seen = new Set();
    order.forEach((edge, rank) => {
      edge.classList.toggle("hidden", rank >= n);
      if (rank < n) { seen.add(own.edges[place(edge)][0]); seen.add(own.edges[place(edge)][1]); }
    });
    nodes.forEach((node) => node.classList.toggle("faint", !seen.has(place(node))));
    const last = own.edges[place(order[n - 1])][3];
    const which = n === inside && inside < order.length ? " (the circuit)" : "";
    told.textContent = n + " of " + order.length + which + (last === null || n > inside ? "" : ", sizes of " + number(Math.abs(last)) + " and more");
  };
  slider.addEventListener("input", apply);
  box.append(slider);
  const name = own.name || "circuit";
  controls.append(box, told, button("SVG", "Save this drawing as SVG", () => saveSvg(name, drawing)), button("PNG", "Save this drawing as PNG", () => saveSvgAsPng(name, drawing)),
    button("CSV", "Save the edges that are drawn as a CSV file", () => saveCsv(name, [["source", "target", "input", "score", "kept", "note"], ...order.slice(0, n).map((edge) => { const [source, target, entry, score, kept, note] = own.edges[place(edge)]; return [nodeName(source), nodeName(target), entry, score, kept, note]; })])));
  apply();
  off();
}
