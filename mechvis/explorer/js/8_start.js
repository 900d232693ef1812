// The page: what lies where, and which part is in front.

function start() {
  const images = parsed("data-images");
  const attention = parsed("data-attention");
  if (attention) attention.places = new Map(attention.images.map((image, place) => [image, place]));
  const latents = [];
  for (let k = 0; at("data-latents-" + k); k++) latents.push(parsed("data-latents-" + k));
  const study = { images, attention, maps: parsed("data-maps"), latents };
  const begun = new Set(), panels = new Map();

  for (const box of document.querySelectorAll(".table")) dressTable(box);
  for (const figure of document.querySelectorAll("figure.drawing")) dressFigure(figure);
  for (const figure of document.querySelectorAll("figure.chart")) dressChart(figure);
  for (const part of document.querySelectorAll(".live")) part.hidden = false;
  for (const part of document.querySelectorAll(".plain")) part.hidden = true;

  const sections = [...document.querySelectorAll("main > section")];
  const links = [...document.querySelectorAll("nav a")];
  const open = (id) => {
    const wanted = sections.some((section) => section.id === id) ? id : sections[0].id;
    for (const section of sections) section.hidden = section.id !== wanted;
    for (const link of links) {
      if (link.hash !== "#" + wanted) { link.removeAttribute("aria-current"); continue; }
      link.setAttribute("aria-current", "page");
      // On a narrow screen the contents are one line to scroll.
      link.closest("nav").scrollLeft = link.offsetLeft - 60;
    }
    if (panels.has(wanted) && !begun.has(wanted)) { begun.add(wanted); panels.get(wanted)(); }
  };
  const look = (image, settings) => {
    go("images");
    if (image !== null) gallery.choose(image);
    return viewer.look(settings);
  };
  const go = (id) => { if (location.hash === "#" + id) open(id); else { location.hash = id; open(id); } };

  let viewer = null, gallery = null;
  if (images) {
    panels.set("images", () => {
      viewer = makeViewer(study);
      gallery = makeGallery(study, (image) => viewer.show(image));
      const first = gallery.first();
      return first === undefined ? null : gallery.choose(first);
    });
  }
  latents.forEach((own, k) => panels.set("latents-" + k, () => {
    if (!viewer) { begun.add("images"); panels.get("images")(); }
    return makeLatents(k, study, look).begin();
  }));

  const lookAt = (image, settings) => {
    if (!begun.has("images")) { begun.add("images"); at("images").hidden = false; panels.get("images")(); }
    return look(image, settings);
  };
  if (images && attention) for (const table of document.querySelectorAll(".table table")) linkHeads(table, attention, lookAt);
  for (let k = 0; at("graph-" + k); k++) panels.set("graph-" + k, () => makeGraph(k, study, lookAt));

  const theme = at("theme"), kinds = ["auto", "light", "dark"];
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const next = kinds[(kinds.indexOf(document.documentElement.dataset.theme || "auto") + 1) % kinds.length];
    document.documentElement.dataset.theme = next;
    theme.textContent = "theme: " + next;
  });
  window.addEventListener("hashchange", () => { open(location.hash.slice(1)); window.scrollTo({ top: 0, behavior: "instant" }); });
  open(location.hash.slice(1));
  document.documentElement.dataset.ready = "yes";
}

if (typeof document !== "undefined") start();
if (typeof module !== "undefined") {
  module.exports = { number, attentionRow, attentionColumn, largestOf, extent, shade, solid, inSight, csvCell, csv, fileName, pictureOf, imagesThat, latentsThat };
}
