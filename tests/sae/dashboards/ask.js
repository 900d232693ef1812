// Functions of the page's script that need no page. node ask.js SCRIPT MAPS: prints what they answer, as JSON.
"use strict";
const page = require(process.argv[2]);
const decode = (text) => Buffer.from(text, "base64").toString("latin1");
const index = {
  latent: [4, 7, 9], frequency: [0.5, null, 0.1], max: [1, 2, 3], class_share: [0.9, 0.2, null],
  top_class: [0, 1, null], top_group: [null, 0, 0], texts: [[0], [], [1]],
};
const names = { classes: ["Cat", "dog"], groups: ["night"], texts: ["a cat", "some 7 things"] };
const none = { search: "", class: null, least: null, most: null, purity: null, max: null, sort: "frequency", down: true };
const ask = (more) => page.chosen(index, names, Object.assign({}, none, more));
process.stdout.write(JSON.stringify({
  maps: JSON.parse(process.argv[3]).map(([text, n]) => [...page.decodeMap(text, n, decode)]),
  all: ask({}), up: ask({ down: false }), number: ask({ sort: "latent", down: false }),
  cat: ask({ search: "CAT" }), seven: ask({ search: "7" }), night: ask({ search: "night" }), cls: ask({ class: 1 }),
  least: ask({ least: 0.2 }), most: ask({ most: 0.2 }), purity: ask({ purity: 0.5 }), max: ask({ max: 2 }),
  sight: [[0, 300, 30, 1000], [6000, 300, 30, 1000], [9e9, 300, 30, 20], [0, 300, 30, 0]].map((some) => page.inSight(...some)),
  hash: ["#latent-12", "#latent-x", ""].map(page.latentOf),
  numbers: [null, 0, 12, 0.12345, 1234567, 0.00001].map(page.number), percents: [null, 0, 0.034, 0.5].map(page.percent),
  shades: [[0, "colour"], [1, "colour"], [0, "light"], [1, "light"]].map((some) => page.shade(...some)),
  uris: ["iVBORx", "/9j/"].map(page.pictureOf),
}));
