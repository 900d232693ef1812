"""Hostile strings in a real browser: in every field of explorer, report and dashboard they are text and nothing else.

Every page holds all strings at once, each in every field; the reader goes through all of its parts, points at things,
searches, sorts and saves. Nothing may run, open, call out or complain, and no element or attribute may be there that
the page with plain words has not.
"""

import json

import numpy as np
import polars as pl
import pytest
from matplotlib.figure import Figure as MatplotlibFigure

from mechvis.explorer import explore, panels
from mechvis.explorer.packing import shares
from mechvis.explorer.pictures import picture
from mechvis.report import Code, Facts, Figure, Images, Note, Section, Table, Text, Tile, Tiles, write_report

KINDS = """() => {
  const found = {};
  for (const element of document.querySelectorAll("*")) {
    const names = [...element.attributes].map((one) => one.name).sort().join(" ");
    found[element.tagName.toLowerCase() + " " + names] = true;
  }
  return Object.keys(found).sort();
}"""
LINKS = """() => [...document.querySelectorAll("[src], [href], [action], [srcdoc]")].map(
  (one) => one.getAttribute("src") || one.getAttribute("href") || "other").filter(
  (to) => !to.startsWith("#") && !/^data:image[/](png|jpeg|svg[+]xml);base64,/.test(to))"""


def printable(text: str) -> str:
    return text.replace("\ud800", "?")


def big_study(words: list[str]):
    """Panels with each of the words in every field that takes one."""
    n = len(words)
    generator = np.random.default_rng(0)
    image = picture(generator.integers(0, 255, (8, 8, 3)).astype(np.uint8), 8)
    ids = tuple(f"{word} {i}" for i, word in enumerate(words))
    pattern, largest = shares(generator.dirichlet(np.ones(5), (n, 1, 5)))
    rows, top = shares(generator.dirichlet(np.ones(5), (n, 1)))
    long = " ".join(words)
    gallery = panels.Pictures(
        ids=ids, files=(image,) * n, labels=tuple(words), predictions=tuple(reversed(words)), groups=tuple(words),
        captions=tuple(words), numbers={word: generator.normal(size=n) for word in words},
    )  # fmt: skip
    attention = panels.Attention(
        layers=(0,), heads=(1,), prefix=(long,), grid=(2, 2), ids=ids, patterns={0: pattern}, largest={0: largest},
        read_ids=ids, read=rows, read_largest=top, read_name=long,
    )  # fmt: skip
    maps = panels.Maps(name=long, methods=tuple(words), ids=ids, about=tuple(words),
                       values=tuple(generator.normal(size=(n, 2, 2)) for _ in words))  # fmt: skip
    latents = panels.Latents(
        name=long,
        columns={"latent": list(range(n)), "frequency": generator.random(n).tolist(), "label": words,
                 "top_class": words, "top_group": words, **{word: [word] * n for word in words[:5]}},
        grid=(2, 2), latent=np.arange(n), image=np.arange(n), value=np.ones(n), peak=np.ones(n),
        top=np.ones(n, bool), maps=np.full((n, 4), 9, np.uint8), ids=ids, words={"frequency": long, "label": long},
    )  # fmt: skip
    edges = [panels.Edge(source="embed", target=f"{w} {i}", entry=w, score=1.0, note=w) for i, w in enumerate(words)]
    graph = panels.Graph(name=long, edges=tuple(edges), about=long)
    drawn = MatplotlibFigure(figsize=(2, 1))
    drawn.add_subplot().set_title("x")
    table = pl.DataFrame({"of": words, **{f"{word} {i}": [word] * n for i, word in enumerate(words[:20])}})
    names = {f"{word} {i}": "x" for i, word in enumerate(words)}
    columns = pl.DataFrame({name: [1.0] for name in names})
    sections = [
        Section(word, [Text(word), Note("warning", word), Code(word), Tiles([Tile(word, word, word)]),
                       Facts({word: word}), Images([np.zeros((4, 4, 3), np.uint8)], [word], word)])
        for word in words
    ]  # fmt: skip
    sections = (*sections, Section(long, [Table(table, long), Table(columns, long), Figure(drawn, long)]))
    gates = [
        panels.Gate(name=w, passed=ok, statistic=w, threshold=w, why=w, said=w)
        for w in words
        for ok in (True, False, None)
    ]
    measures = [{"measure": w, "value": 0.5, "low": 0.2, "high": 0.9, "n": 3, "better": w, w: w} for w in words]
    cards = panels.Card(name=long, gates=tuple(gates), measures=tuple(measures), sections=sections[:1], scope=long)
    pages = [
        panels.Page(name=w, subtitle=w, sections=sections[i : i + 1], provenance={"command": w, w: w})
        for i, w in enumerate(words)
    ]
    pages.append(panels.Page(name=long, subtitle=long, sections=sections, provenance={"command": long}))
    return [gallery, attention, maps, latents, graph, cards, *pages]


def walk(page):
    """Do what a reader does, in every part."""
    page.evaluate(
        """async () => {
  const wait = () => new Promise((go) => setTimeout(go, 30));
  const all = (selector) => [...document.querySelectorAll(selector)];
  const point = (element) => {
    const box = element.getBoundingClientRect(), where = { clientX: box.left + 3, clientY: box.top + 3, bubbles: true };
    for (const name of ["pointerenter", "pointermove", "pointerover", "mouseover", "focus", "pointerleave"]) {
      element.dispatchEvent(name.startsWith("p") ? new PointerEvent(name, where) : new Event(name));
    }
  };
  for (const link of all("nav a").slice(0, 30)) { location.hash = link.hash; await wait(); }
  location.hash = "#images";
  await wait();
  for (const list of all("#viewer-controls select")[0].options) {
    const select = all("#viewer-controls select")[0];
    select.value = list.value;
    select.dispatchEvent(new Event("change"));
    await wait();
    point(document.getElementById("stage"));
    all("#strip .multiple").slice(0, 200).forEach((one) => { point(one); });
    all("#stage-prefix .chip").forEach(point);
  }
  const gallery = document.getElementById("gallery");
  for (let i = 0; i < 60; i++) {
    gallery.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
    await new Promise((go) => setTimeout(go, 3));
  }
  for (const select of all("#gallery-filters select")) {
    for (const option of [...select.options].slice(0, 40)) {
      select.value = option.value;
      select.dispatchEvent(new Event("change"));
    }
    select.value = select.options[0].value;
    select.dispatchEvent(new Event("change"));
  }
  location.hash = "#latents-0";
  await wait();
  const list = document.getElementById("latents-0-list");
  for (let i = 0; i < 170; i++) {
    list.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowDown" }));
    await new Promise((go) => setTimeout(go, 3));
    all("#latents-0-panel .frame").forEach(point);
  }
  location.hash = "#graph-0";
  await wait();
  all("#graph-0 .edge, #graph-0 .node").forEach(point);
  for (const button of all("th button")) button.click();
  for (const input of all("input.filter, input[type=search]")) {
    for (const word of ["<img src=x onerror=window.pwned=1>", ""]) {
      input.value = word;
      input.dispatchEvent(new Event("input"));
    }
  }
  location.hash = "#<img src=x onerror=window.pwned=1>";
  await wait();
  location.hash = "#%E0%A4%A";
  await wait();
}"""
    )


@pytest.mark.slow
def test_the_explorer(watch, tmp_path, payloads):
    words = [printable(word) for word in payloads]
    long = " ".join(words)
    hostile = explore(tmp_path / "h.html", *big_study(words), title=long, subtitle=long, limit=None).path
    plain = explore(
        tmp_path / "p.html", *big_study([f"word {i}" for i in range(len(words))]), title="t", subtitle="s", limit=None
    ).path
    kinds = []
    for path in (plain, hostile):
        watch.requests.clear()
        page = watch.open(path)
        walk(page)
        page.wait_for_timeout(300)
        watch.quiet(path)
        assert page.evaluate(LINKS) == []
        kinds.append(page.evaluate(KINDS))
    assert set(kinds[1]) <= set(kinds[0])
    assert page.title().startswith("<script>window.pwned=1</script>")


@pytest.mark.slow
def test_a_report(watch, tmp_path, payloads):
    paths = {}
    for name, words in (
        ("plain", [f"word {i}" for i in range(len(payloads))]),
        ("hostile", list(map(printable, payloads))),
    ):
        long = " ".join(words)
        page = big_study(words)[-1]
        paths[name] = write_report(
            tmp_path / f"{name}.html", long, long, page.sections, {"command": long, long[:50]: long}
        )
    kinds = []
    for path in paths.values():
        watch.requests.clear()
        page = watch.open(path, wait="footer")
        page.evaluate(
            "for (const button of document.querySelectorAll('th button')) { button.click(); button.click(); }"
        )
        page.wait_for_timeout(300)
        watch.quiet(path)
        assert page.evaluate(LINKS) == []
        kinds.append(page.evaluate(KINDS))
    assert set(kinds[1]) <= set(kinds[0])


def dashboard_of(words, path):
    """A dashboard of pages of latents with each of the words in every field."""
    from sae.dashboards import LatentPages, dashboard

    n = len(words)
    image = np.frombuffer(picture(np.zeros((8, 8, 3), np.uint8), 8), np.uint8)
    latents = pl.DataFrame(
        {"latent": range(n), "fires": [1] * n, "images": [n] * n, "frequency": [0.5] * n, "frequency_low": [0.1] * n,
         "frequency_high": [0.9] * n, "density": [0.1] * n, "prefix": [0.1] * n, "mean": [1.0] * n,
         "mean_low": [0.9] * n, "mean_high": [1.1] * n, "max": [2.0] * n, "top_class": words, "class_share": [0.5] * n,
         "class_share_low": [0.4] * n, "class_share_high": [0.6] * n, "class_base": [0.2] * n, "class_mass": [0.3] * n,
         "class_share_of_top": [0.5] * n, "top_group": words, "group_share": [0.5] * n, "group_share_low": [0.4] * n,
         "group_share_high": [0.6] * n, "group_base": [0.3] * n}
    )  # fmt: skip
    examples = pl.DataFrame(
        {"latent": range(n), "kind": ["top"] * n, "rank": [0] * n, "image": range(n), "value": [2.0] * n,
         "token": [1] * n, "type": words, "peak": [2.0] * n, "quantile": pl.Series([None] * n, dtype=pl.Float64)}
    )  # fmt: skip
    breakdown = {"latent": range(n), "fires": [1] * n, "share": [1.0] * n, "rate": [0.5] * n, "rate_low": [0.1] * n,
                 "rate_high": [0.9] * n, "images": [2] * n, "mean": [1.0] * n}  # fmt: skip
    tables = {
        "latents": latents,
        "examples": examples,
        "images": pl.DataFrame({"image": range(n), "id": words, "class": words, "group": words, "picture": range(n)}),
        "classes": pl.DataFrame({**breakdown, "class": words}),
        "groups": pl.DataFrame({**breakdown, "group": words}),
        "texts": pl.DataFrame({"latent": range(n), "kind": ["decoder"] * n, "rank": [0] * n, "text": words,
                               "cosine": [0.3] * n, "above_chance": [True] * n}),
        "neighbours": pl.DataFrame({"latent": range(n), "kind": ["decoder"] * n, "neighbour": [*range(1, n), 0],
                                    "cosine": [0.5] * n, "together": [0.5] * n, "together_low": [0.4] * n,
                                    "together_high": [0.6] * n, "both": [1] * n, "either": [2] * n}),
    }  # fmt: skip
    arrays = {
        "maps": np.full((n, 4), 9, np.uint8), "histogram": np.ones((n, 3), np.int64),
        "histogram_edges": np.array([0.1, 1.0, 2.0, 4.0]), "pictures": np.tile(image, n),
        "picture_offsets": np.arange(n + 1) * len(image),
    }  # fmt: skip
    facts = {"n_images": n, "grid": [2, 2], "prefix": words[:3], "sites": words[:3]}
    long = " ".join(words)
    pages = LatentPages(title=long, tables=tables, arrays=arrays, facts=facts, words={word: word for word in words},
                        caveats=tuple(words), provenance={"model": {"name": long}, "data": {"name": long},
                                                          "command": long})  # fmt: skip
    return dashboard(pages, path, title=long).path, pages


@pytest.mark.slow
def test_the_dashboard_of_latents(watch, tmp_path, payloads):
    words = {"plain": [f"word {i}" for i in range(len(payloads))], "hostile": list(map(printable, payloads))}
    kinds = []
    for name, some in words.items():
        path, _ = dashboard_of(some, tmp_path / f"{name}.html")
        watch.requests.clear()
        page = watch.open(path, wait="#app:not([hidden])")
        page.evaluate(
            """async () => {
  const key = (key) => document.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  for (let i = 0; i < 170; i++) { key("ArrowDown"); await new Promise((go) => setTimeout(go, 4)); }
  for (const frame of document.querySelectorAll(".frame")) {
    frame.dispatchEvent(new MouseEvent("mousemove", { clientX: 1, clientY: 1 }));
  }
  const search = document.getElementById("search");
  for (const word of ["<img src=x onerror=window.pwned=1>", "script", ""]) {
    search.value = word;
    search.dispatchEvent(new Event("input"));
  }
  for (const select of document.querySelectorAll("select")) {
    for (const option of [...select.options].slice(0, 50)) {
      select.value = option.value;
      select.dispatchEvent(new Event("change"));
    }
  }
  location.hash = "#<img src=x onerror=window.pwned=1>";
}"""
        )
        page.wait_for_timeout(300)
        watch.quiet(path)
        assert page.evaluate(LINKS) == []
        kinds.append(page.evaluate(KINDS))
    assert set(kinds[1]) <= set(kinds[0])


def test_the_watch_would_see_what_runs(watch, tmp_path):
    """The control: a page that does what it must not is caught, each way by itself."""
    page = tmp_path / "bad.html"
    for body, seen in (
        ("<script>window.pwned=1</script>", "pwned"),
        ("<script>alert(1)</script>", "dialog"),
        ("<img src=http://evil.invalid/x.png>", "request"),
        ("<script>throw new Error('x')</script>", "error"),
        ("<meta http-equiv=Content-Security-Policy content=\"default-src 'none'\"><script>1</script>", "complaint"),
    ):
        watch.problems.clear()
        watch.requests.clear()
        page.write_text(f"<!doctype html><body>{body}", encoding="utf-8")
        watch.open(page, wait="body")
        watch.page.wait_for_timeout(100)
        with pytest.raises(AssertionError):
            watch.quiet(page)
        assert seen == "pwned" or watch.problems, seen
    page.write_text("<!doctype html><svg onload=1 x=2></svg>", encoding="utf-8")
    assert "svg onload x" in json.dumps(watch.open(page, wait="body").evaluate(KINDS))
