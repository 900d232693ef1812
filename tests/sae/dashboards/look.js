// A dashboard's own script on a page that only pretends: no layout, but every element, event and picture.
// node look.js FILE: prints what a reader who does the steps below would find, as JSON.
"use strict";
const fs = require("fs");
const html = fs.readFileSync(process.argv[2], "utf-8");
const problems = [];

class Element {
  constructor(tag) {
    Object.assign(this, { tagName: tag.toUpperCase(), children: [], listeners: {}, style: {}, attributes: {}, className: "", own: "", value: "", hidden: false, scrollTop: 0, clientHeight: 300, src: "" });
  }
  append(...some) {
    for (const one of some) {
      if (!(one instanceof Element)) problems.push("appended " + typeof one);
      this.children.push(one);
    }
  }
  replaceChildren(...some) { this.children = []; this.append(...some); }
  remove() { for (const parent of Object.values(elements)) parent.children = parent.children.filter((one) => one !== this); }
  addEventListener(name, act) { (this.listeners[name] = this.listeners[name] || []).push(act); }
  fire(name, event) { for (const act of this.listeners[name] || []) act(Object.assign({ target: this, preventDefault() {} }, event)); }
  setAttribute(name, value) { this.attributes[name] = String(value); }
  getBoundingClientRect() { return { left: 0, top: 0, width: 80, height: 80 }; }
  getContext() {
    return { createImageData: (w, h) => ({ data: new Uint8ClampedArray(4 * w * h) }), putImageData: (pixels) => { this.painted = [...pixels.data]; } };
  }
  contains(one) { return one === this || this.children.some((child) => child.contains(one)); }
  focus() {}
  blur() {}
  get options() { return this.children; }
  set innerHTML(value) { problems.push("innerHTML " + value); }
  get textContent() { return this.own + this.children.map((one) => one.textContent).join(""); }
  set textContent(value) { this.own = String(value); this.children = []; }
  all(tag) { return this.children.flatMap((one) => [...(one.tagName === tag ? [one] : []), ...one.all(tag)]); }
}

const elements = {};
for (const [, tag, id] of html.matchAll(/<([a-z]+)\b[^>]*?\bid="([^"]+)"/g)) elements[id] = new Element(tag);
for (const [, id, text] of html.matchAll(/<script type="[a-z/]+" id="([a-z]+)">([^]*?)<\/script>/g)) elements[id].own = text;
for (const [, value] of html.match(/<select id="sort">([^]*?)<\/select>/)[1].matchAll(/value="([^"]*)"/g)) {
  const option = new Element("option");
  option.value = value;
  elements.sort.append(option);
}
Object.assign(elements.sort, { value: "frequency" });
elements.down.value = "1";
elements.app.hidden = true;
const page = new Element("document"), view = new Element("window");
global.document = Object.assign(page, { getElementById: (id) => elements[id], createElement: (tag) => new Element(tag) });
global.window = view;
let hash = process.argv[3] || "";
global.location = { get hash() { return hash; }, set hash(to) { hash = to; view.fire("hashchange"); } };

const script = [...html.matchAll(/<script>([^]*?)<\/script>/g)];
if (script.length !== 1) problems.push(script.length + " scripts");
new Function(script[0][1])();

const panel = elements.panel;
const state = () => ({
  hash, count: elements.count.textContent, rows: elements.rows.children.length,
  first: (elements.rows.children[0] || { textContent: "" }).textContent, title: (panel.all("H2")[0] || { textContent: "" }).textContent,
  pictures: panel.all("IMG").map((one) => one.src), canvases: panel.all("CANVAS").map((one) => one.painted),
  headings: panel.all("H3").map((one) => one.textContent), neighbours: panel.all("BUTTON").length,
});
const found = { hidden: elements.app.hidden, start: state(), text: panel.textContent, alts: panel.all("IMG").map((one) => one.alt), options: elements.class.children.map((one) => one.textContent) };
page.fire("keydown", { key: "ArrowDown", target: elements.list });
found.down = state();
page.fire("keydown", { key: "End", target: panel });
found.scrolled = state();
page.fire("keydown", { key: "End", target: elements.list });
found.end = state();
page.fire("keydown", { key: "k", target: panel });
found.up = state();
page.fire("keydown", { key: "Home", target: elements.list });
if (panel.all("BUTTON").length) { panel.all("BUTTON")[0].fire("click"); found.neighbour = state(); }
page.fire("keydown", { key: "h", target: panel });
found.light = state();
page.fire("keydown", { key: "h", target: panel });
found.off = panel.all("CANVAS").every((one) => one.hidden);
elements.search.value = "no such thing at all";
elements.search.fire("input");
found.nothing = state();
elements.search.value = found.start.title.replace("Latent ", "");
elements.search.fire("input");
found.one = state();
elements.search.value = "";
elements.sort.value = "latent"; elements.down.value = "0";
elements.sort.fire("change");
found.sorted = elements.rows.children.map((one) => one.children[0].textContent);
const frame = panel.all("DIV").find((one) => one.className === "frame");
if (frame && frame.listeners.mousemove) { frame.fire("mousemove", { clientX: 79, clientY: 1 }); found.hover = panel.all("FIGCAPTION")[0].textContent; }
elements.list.scrollTop = 1e6;
elements.list.fire("scroll");
found.far = state().rows;
process.stdout.write(JSON.stringify({ ...found, problems }));
