"""A study whose every number is known, and a browser to look at pages with.

The browser is Debian's chromium (or whatever `MECHVIS_CHROMIUM` names) through Playwright; `make browser` installs
both. Without them the tests that need one are skipped.
"""

import os
import runpy
import shutil
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mechvis.explorer import panels
from mechvis.explorer.packing import shares
from mechvis.explorer.pictures import picture
from mechvis.report.blocks import Facts, Section, Table, Text

CLASSES, GROUPS = ("cat", "dog"), ("day", "night")
N, SIDE, TOKENS, LAYERS, HEADS = 6, 16, 5, 2, 2
"""Images; their side in pixels; CLS and 2 x 2 patches; layers; heads."""
FULL = 4
"""Images with full patterns."""


HOSTILE = runpy.run_path(str(Path(__file__).with_name("hostile.py")))["PAYLOADS"]


def pytest_generate_tests(metafunc):
    if "payload" in metafunc.fixturenames:
        metafunc.parametrize("payload", HOSTILE, ids=[f"payload{i}" for i in range(len(HOSTILE))])


@pytest.fixture(scope="session")
def payloads():
    """All hostile strings."""
    return HOSTILE


@pytest.fixture(scope="session")
def planted_study():
    """Makes the study with other words."""
    return planted


def chromium() -> str | None:
    """A browser that can be driven, if there is one."""
    named = os.environ.get("MECHVIS_CHROMIUM")
    return named or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="session")
def browser():
    """A headless browser."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="pages are opened by Playwright, which is not installed here: make browser"
    )
    if chromium() is None:
        pytest.skip("no chromium on this machine (Debian: apt-get install --no-install-recommends chromium)")
    with playwright.sync_playwright() as started:
        # Chromium's own sandbox needs user namespaces, which containers seldom have.
        opened = started.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield opened
        opened.close()


class Watch:
    """A page, and everything that went wrong on it."""

    def __init__(self, browser, **settings):
        self.context = browser.new_context(accept_downloads=True, viewport={"width": 1280, "height": 900}, **settings)
        self.page = self.context.new_page()
        self.page.set_default_timeout(30_000)
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda line: self.problems.append(f"{line.type}: {line.text}"))
        self.page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        self.page.on("dialog", self._dialog)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.context.on("page", lambda other: self.problems.append(f"a window was opened: {other.url}"))

    def _dialog(self, dialog):
        self.problems.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def open(self, path: Path, wait: str = "html[data-ready]"):
        """Open a file from disk and wait until its script has run."""
        self.page.goto(path.as_uri())
        if wait:
            self.page.wait_for_selector(wait, state="attached")
        return self.page

    def quiet(self, path: Path) -> None:
        """Nothing ran that should not, nothing was asked for but the file itself, and nothing was complained about."""
        assert self.page.evaluate("window.pwned") is None
        assert self.problems == []
        outside = [url for url in self.requests if not url.startswith(("data:image/", "blob:null/"))]
        # A new address within the page (#images) is no request.
        assert {url.split("#")[0] for url in outside} == {path.as_uri()}


@pytest.fixture
def watch(browser):
    """A fresh page."""
    made = Watch(browser)
    yield made
    made.context.close()


@pytest.fixture(scope="session")
def study():
    """Panels of every kind, and the arrays that they were made of."""
    return planted()


@pytest.fixture(scope="session")
def study_file(study):
    """The explorer of this study."""
    from mechvis.explorer import explore

    with tempfile.TemporaryDirectory() as folder:
        yield explore(
            Path(folder) / "study.html", *study["panels"], title="A planted study", subtitle="two layers"
        ).path


def planted(words=None):
    """The study.

    Args:
        words: called with the name of a field and a number, gives the string there; default: plain words.
    """
    say = words or (lambda field, i: f"{field} {i}")
    generator = np.random.default_rng(5)
    ids = tuple(dict.fromkeys(say("image", i) for i in range(N)))
    # A few flat patches of colour, which are kept exactly (as PNG files).
    images = generator.integers(0, 255, (N, 2, 2, 3)).astype(np.uint8).repeat(SIDE // 2, 1).repeat(SIDE // 2, 2)
    labels, predictions = [0, 1, 0, 1, 0, 1], [0, 1, 1, 1, 0, 0]
    classes = [say("class", i) for i in range(2)]
    confidence = np.array([0.9, 0.8, 0.55, 0.99, 0.7, np.nan])
    pictures = panels.Pictures(
        ids=ids,
        files=tuple(picture(image, SIDE) for image in images),
        labels=tuple(classes[i] for i in labels),
        predictions=tuple(classes[i] for i in predictions),
        groups=tuple(say("group", i % 2) for i in range(N)),
        captions=tuple(say("caption", i) for i in range(N)),
        numbers={say("number", 0): confidence},
    )
    attention = generator.dirichlet(np.full(TOKENS, 0.4), (N, LAYERS, HEADS, TOKENS))
    packed = [shares(attention[:FULL, layer]) for layer in range(LAYERS)]
    read = attention[:, :, :, 0].reshape(N, LAYERS * HEADS, TOKENS)
    rows, largest = shares(read)
    looked = panels.Attention(
        layers=(0, 1), heads=(HEADS, HEADS), prefix=(say("token", 0),), grid=(2, 2), ids=ids[:FULL],
        patterns={0: packed[0][0], 1: packed[1][0]}, largest={0: packed[0][1], 1: packed[1][1]},
        read_ids=ids, read=rows, read_largest=largest, read_name=say("token", 0),
    )  # fmt: skip
    maps = [generator.normal(size=(N, 2, 2)), np.abs(generator.normal(size=(N, 4, 4)))]
    shown = panels.Maps(
        name=say("maps", 0), methods=(say("method", 0), say("method", 1)), ids=ids, values=tuple(maps),
        about=(say("about", 0), say("about", 1)),
    )  # fmt: skip
    examples = [(0, 0, 3.0), (0, 2, 2.0), (2, 1, 1.5), (2, 0, 1.0), (2, 5, 0.5)]
    heat = generator.integers(0, 255, (len(examples), 4)).astype(np.uint8)
    heat[np.arange(len(examples)), [0, 1, 2, 3, 0]] = 255
    latents = panels.Latents(
        name=say("dictionary", 0),
        columns={
            "latent": [7, 11, 40], "frequency": [0.5, None, 0.25], "frequency_low": [0.3, None, 0.1],
            "frequency_high": [0.7, None, 0.4], "max": [3.0, None, 1.5],
            "label": [say("label", 0), "", say("label", 2)], "top_class": [classes[0], None, classes[1]],
        },
        grid=(2, 2),
        latent=np.array([row[0] for row in examples]),
        image=np.array([row[1] for row in examples]),
        value=np.array([row[2] for row in examples]),
        peak=np.array([row[2] for row in examples]),
        top=np.array([True, True, True, True, False]),
        maps=heat,
        ids=ids,
        words={"frequency": say("word", 0)},
    )  # fmt: skip
    edges = (
        panels.Edge(source="embed", target="L0H1", entry="v", score=2.0, note=say("note", 0)),
        panels.Edge(source="L0H1", target="L1H0", entry="q", score=-1.0),
        panels.Edge(source="L1H0", target="out", entry="", score=0.5),
        panels.Edge(source="embed", target=say("node", 0), entry=say("entry", 0), score=0.25, kept=False),
        panels.Edge(source=say("node", 0), target="out", entry="", score=None, kept=False),
    )
    graph = panels.Graph(name=say("graph", 0), edges=edges, about=say("graph about", 0))
    table = pl.DataFrame({say("column", 0): [say("cell", i) for i in range(12)], "x": np.linspace(-1, 1, 12)})
    sections = (
        Section(say("section", 0), [Text(say("text", 0)), Table(table, say("table", 0), bars=("x",))]),
        Section(say("section", 1), [Facts({say("fact", 0): say("value", 0)})]),
    )
    card = panels.Card(
        name=say("card", 0),
        gates=(
            panels.Gate(name=say("gate", 0), passed=False, statistic=say("statistic", 0), why=say("why", 0),
                        threshold=say("threshold", 0)),
            panels.Gate(name=say("gate", 1), passed=True),
            panels.Gate(name=say("gate", 2), passed=None, said=say("said", 0)),
        ),
        measures=(
            {"measure": say("measure", 0), "value": 0.5, "low": 0.25, "high": 0.75, "n": 6},
            {"measure": say("measure", 1), "value": 0.25, "low": None, "high": None, "n": 6},
        ),
        sections=sections[1:],
        scope=say("scope", 0),
    )  # fmt: skip
    again = {"command": say("command", 0), "model": {say("key", 0): say("model", 0)}}
    page = panels.Page(name=say("page", 0), subtitle=say("subtitle", 0), sections=sections, provenance=again)
    return {
        "panels": [pictures, looked, shown, latents, graph, card, page], "attention": attention, "maps": maps,
        "heat": heat, "examples": examples, "ids": ids, "images": images, "confidence": confidence,
    }  # fmt: skip
