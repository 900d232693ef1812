"""Displays in notebooks: what they say, that words of others stay words, that they are small, never fail and never run
the model."""

import contextlib
import io
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

import mechvis.show.html as html
from mechvis import edits, show
from mechvis.data.images import ImageSet
from mechvis.errors import NotFinite, ShapeMismatch
from mechvis.models.load import wrap
from mechvis.record import Record
from mechvis.results import Result
from mechvis.testing import tiny, tiny_preprocess

HOSTILE = """<script>alert(1)</script><img src=x onerror=alert(2)>" onload="x' style='x &amp; \u202e\x00\ud800"""
MOST = 200_000
VOID = {"img", "br"}


class Reader(HTMLParser):
    """Tags, attributes and text of a page; checks that tags are closed in order."""

    def __init__(self, page: str):
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.said: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(page)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, tuple(name for name, _ in attrs)))
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.said.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.said).split())


def checked(page: str) -> Reader:
    """A page that is ours: small, one root, no script, no link, nothing from elsewhere."""
    assert len(page) < MOST and page.startswith('<div class="mechvis-show">')
    page.encode("utf-8")
    reader = Reader(page)
    assert not {"script", "link", "iframe", "object", "a", "form"} & {tag for tag, _ in reader.found}
    for name, value in reader.attributes:
        assert not name.startswith("on") and name not in ("href", "style", "srcset")
        assert name != "src" or value.startswith("data:image/png;base64,")
    assert "url(" not in page and "http" not in page and "@import" not in page
    return reader


@pytest.fixture(scope="module")
def vit():
    return wrap(tiny("vit"), preprocess=tiny_preprocess())


def pixels(model, n=2):
    return torch.rand(n, 3, *model.parts.image_size, generator=torch.Generator().manual_seed(0))


def images(name="set", names=("a", "b"), size=16, n=20, groups=None) -> ImageSet:
    noise = np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)
    return ImageSet(
        name=name,
        ids=tuple(f"{i}" for i in range(n)),
        read=lambda i: noise[i],
        rows=np.arange(n),
        labels=np.arange(n) % len(names),
        class_names=tuple(names),
        groups=None if groups is None else np.array(groups)[np.arange(n) % len(groups)],
    )


def heads(title="Heads", unit=None, metric="logit_diff") -> Result:
    values = np.random.default_rng(0).normal([[2.0], [-1.0], [0.0]], 0.5, (3, 40))
    rows = [{"layer": 0, "head": i, **({} if unit is None else {"unit": f"{unit}{i}"})} for i in range(3)]
    return Result.from_values("head_ablation", title, rows, {metric: values}, baseline={metric: 3.0})


# -- what they say --


def test_model_lists_its_sites_once_per_kind_of_block(vit):
    said = checked(vit._repr_html_()).text
    assert vit.parts.family in said and f"{sum(p.numel() for p in vit.bare.parameters()):,} parameters" in said
    assert f"blocks.0 to blocks.{vit.cfg.n_layers - 1}: {vit.cfg.n_layers} alike" in said
    for site in vit.graph:
        name = site.name if site.layer is None else f"blocks.*.{site.name.split('.', 2)[2]}"
        assert name in said
    # The name shown is a pattern that captures the site in every block.
    assert len(vit.graph.match("blocks.*.attn.hook_z")) == vit.cfg.n_layers
    assert str(vit.parity) in said


def test_blocks_that_differ_are_shown_apart(vit):
    sites = [
        SimpleNamespace(
            name=f"blocks.{i}.hook_z", layer=i, axes=("row", "d"), sizes=(None, 4 + (i == 2)), on_demand=False
        )
        for i in range(4)
    ]

    class Graph(list):
        n_layers = 4

    from mechvis.show.model import _sites

    said = Reader(_sites(Graph(sites))).text
    assert "blocks.0 to blocks.1: 2 alike" in said and "blocks.N.hook_z" in said
    assert "blocks.2.hook_z [row d=5]" in said and "blocks.3.hook_z [row d=4]" in said


def test_clip_shows_both_towers():
    clip = wrap(tiny("clip"), preprocess=tiny_preprocess())
    said = checked(clip._repr_html_()).text
    assert "HookedCLIP" in said and said.count("HookedViT") == 2
    assert f"vision : {clip.vision.cfg.n_layers} layers" in said and f"text : {clip.text.cfg.n_layers} layers" in said
    # Both towers are parts of one model: its size is said once.
    assert said.count("parameters") == 1
    assert f"logit scale {clip.logit_scale.item():.4g}" in said


def test_cache_gives_names_shapes_types_and_bytes(vit):
    run = vit.run(pixels(vit), capture=["blocks.0.hook_resid_pre", "hook_pooled"])
    said = checked(run.cache._repr_html_()).text
    value = run.cache["blocks.0.hook_resid_pre"]
    token, width = value.shape[1:]
    assert f"blocks.0.hook_resid_pre [row=2 token={token} d_model={width}] float32" in said
    assert html.n_bytes(value.numel() * 4) in said and "2 sites" in said and html.n_bytes(run.cache.n_bytes) in said
    value += 1
    assert "changed in place since" in checked(run.cache._repr_html_()).text
    assert "nothing was captured" in checked(vit.run(pixels(vit)).cache._repr_html_()).text


def test_run_says_what_was_done_and_what_came_out(vit):
    edit = edits.zero("blocks.0.attn.hook_z", heads=[0])
    run = vit.run(pixels(vit), edits=[edit], capture=["blocks.0.hook_resid_pre"])
    said = checked(run._repr_html_()).text
    assert f"edit: {edit!r}" in said and "1 captured sites" in said
    assert f"{run.output_site} {html.shape(run.output.shape)}" in said
    if run.output_site == "hook_logits":
        best = int(run.logits[0].argmax())
        assert f"0 class {best} ({float(run.logits[0, best]):+.3g})" in said


def test_result_shows_effects_intervals_n_and_what_survives():
    found = heads()
    page = found._repr_html_()
    said = checked(page).text
    rows = found.top(10, by="size").to_dicts()
    assert [row["unit"] for row in rows][:2] == ["L0H0", "L0H1"]
    for row in rows:
        assert f"{row['unit']} {row['effect']:+.4g} [{row['low']:+.3g}, {row['high']:+.3g}] 40" in said
    assert "n = 40 images" in said and f"{int(found.table['significant'].sum())} of 3 units survive" in said
    assert "clean metric logit_diff 3" in said and page.count("<svg") == 3
    # Zero stands at one place in all bars; a negative effect goes to the left of it.
    from mechvis.show.result import _bar

    zero, bars = (
        2 + 146 * 1 / 3,
        [_bar({**rows[0], "effect": e, "low": None, "high": None}, -1.0, 2.0) for e in (2, -1)],
    )
    assert f'x="{zero:.1f}" y="3" width="97.3"' in bars[0] and 'x="2.0" y="3" width="48.7"' in bars[1]


def test_images_are_shown_small_with_their_labels():
    reader = checked(images(groups=["x", "y"])._repr_html_())
    pictures = [value for name, value in reader.attributes if name == "src"]
    assert len(pictures) == 12 and "the first 12 of 20" in reader.text and "classes: a 10, b 10" in reader.text
    import base64

    first = Image.open(io.BytesIO(base64.b64decode(pictures[0].partition(",")[2])))
    assert np.array_equal(np.asarray(first), images().raw()[0])
    assert "groups: x 10, y 10" in reader.text
    # Large noisy photographs are made smaller until all fit.
    large = checked(images(size=500)._repr_html_())
    assert len([1 for name, _ in large.attributes if name == "src"]) == 12


def test_a_file_that_cannot_be_read_does_not_hide_the_others():
    def read(row):
        if row == 1:
            raise OSError("gone")
        return np.zeros((8, 8, 3), np.uint8)

    some = ImageSet(name="s", ids=("0", "1", "2"), read=read, rows=np.arange(3))
    reader = checked(some._repr_html_())
    assert reader.text.count("cannot be read") == 1 and [tag for tag, _ in reader.found].count("img") == 2


def test_maps_are_drawn_on_one_scale():
    values = np.array([[[1.0, 0.0], [np.nan, -2.0]], [[0.5, 0.0], [0.0, 0.0]]])
    reader = checked(show.maps(values, titles=["star", "ring"], title="IG"))
    assert "2 x 2 patches" in reader.text and "blue -2 to red 2" in reader.text and "star" in reader.text
    import base64

    sources = [value for name, value in reader.attributes if name == "src"]
    first = np.asarray(Image.open(io.BytesIO(base64.b64decode(sources[0].partition(",")[2]))).convert("RGB"))
    assert first.shape == (2, 2, 3) and (first[1, 0] == 127).all()
    assert first[0, 0, 0] > first[0, 0, 2] and first[1, 1, 2] > first[1, 1, 0] and first[0, 1].min() > 240
    with pytest.raises(ShapeMismatch, match=r"\[image down across\], got \[2, 2\]"):
        show.maps(np.ones((2, 2)))
    with pytest.raises(ShapeMismatch, match="2 maps, 1 titles"):
        show.maps(values, titles=["a"])
    with pytest.raises(NotFinite, match="NaN everywhere"):
        show.maps(values * np.nan)


def attributed(word="star"):
    table = pl.DataFrame({"id": ["0", "1"], "target": [word, word], "sum": [1.0, -2.0]})
    return Record(
        kind="attribution",
        title=f"RISE {word}",
        tables={"images": table},
        facts={"claims": {"signed": True}},
        caveats=(f"of {word}",),
        arrays={"maps": np.ones((2, 2, 2))},
    )


def test_attribution_shows_its_maps_and_what_was_asked():
    found = attributed()
    reader = checked(show.attribution(SimpleNamespace(**vars(found), maps=found.arrays["maps"], table=found.table)))
    assert reader.text.startswith("RISE star · 2 x 2 patches") and "of star" in reader.text
    assert "0 star 1 1 star -2" in reader.text and "blue -1 to red 1" in reader.text


# -- words of others --


@pytest.mark.parametrize("kind", ["model", "run", "result", "images", "maps", "attribution"])
def test_hostile_words_stay_words(kind, vit):
    def page(word: str) -> str:
        if kind == "model":
            from dataclasses import replace

            other = wrap(tiny("vit"), preprocess=tiny_preprocess())
            other.__dict__["title"] = word
            other.__dict__["parts"] = replace(other.parts, family=word, class_names=(word, word))
            return show.model(other)
        if kind == "run":
            run = vit.run(pixels(vit), capture=["hook_pooled"])
            return show.run(type(run)(run.output, run.cache, (word,), run.output_site))
        if kind == "result":
            whole = word.replace("\ud800", "")  # a table cannot hold half a surrogate pair
            return show.result(heads(whole, whole, whole))
        if kind == "images":
            return show.images(images(word, (word, f"{word}2"), groups=[word]))
        if kind == "attribution":
            found = attributed(word.replace("\ud800", ""))
            return show.attribution(SimpleNamespace(**vars(found), maps=found.arrays["maps"], table=found.table))
        return show.maps(np.ones((2, 2, 2)), titles=[word, word], title=word)

    harmless, hostile = checked(page("harmless")), checked(page(HOSTILE))
    # Not one tag or attribute more or less, and the words are there to read.
    assert hostile.found == harmless.found
    assert "<script>alert(1)</" in hostile.text or "<script>alert" in hostile.text
    assert "\u202e" not in hostile.text and "\x00" not in hostile.text


def test_text_is_escaped_cut_and_clean():
    assert html.text('<b>"&') == "&lt;b&gt;&quot;&amp;"
    assert len(html.text("x" * 1000)) == html.CELL + 1
    assert html.text("a\ud800\u2066b") == "a\ufffd\ufffdb"
    # Only this package's own type passes, and joining text to it gives text again.
    assert html.cell(html.Html("<b>")) == "<b>" and html.cell(html.Html("<b>") + "<i>") == "&lt;b&gt;&lt;i&gt;"
    assert html.table(["a"], [["<"]], numbers=["a"]).count('class="number"') == 2
    assert html.facts({"a": None, "b": "", "c": 0}) == "<table><tbody><tr><td>c</td><td>0</td></tr></tbody></table>"


# -- never fails, never runs --


def test_what_cannot_be_shown_is_shown_as_text():
    class Broken:
        def __repr__(self):
            return "<broken>"

    class Worse:
        def __repr__(self):
            raise RuntimeError("no")

    for make in (show.model, show.clip, show.cache, show.run, show.result, show.images, show.circuit, show.dictionary):
        assert show.safely(make, Broken()) == "<pre>&lt;broken&gt;</pre>"
        assert show.safely(make, Worse()).startswith("<pre>&lt;")


def test_showing_never_runs_the_model(vit, monkeypatch):
    run = vit.run(pixels(vit), capture=["hook_pooled"])

    def forbidden(*_, **__):
        raise AssertionError("the model was run")

    monkeypatch.setattr(type(vit), "forward", forbidden)
    monkeypatch.setattr(type(vit), "run", forbidden)
    for thing in (vit, run, run.cache):
        checked(thing._repr_html_())


def test_a_model_with_a_thousand_classes_and_many_layers_stays_small(vit):
    from dataclasses import replace

    other = wrap(tiny("vit"), preprocess=tiny_preprocess())
    other.__dict__["parts"] = replace(other.parts, class_names=tuple(f"class {i} " * 20 for i in range(1000)))
    said = checked(show.model(other))
    assert "1000: class 0" in said.text and "and 988 more" in said.text
    assert len(show.model(other)) < 20_000


def test_nothing_is_printed(vit):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        vit._repr_html_(), heads()._repr_html_(), images()._repr_html_()
    assert not out.getvalue()
