"""The dashboard: complete in one file, safe whatever the strings say, quick with thousands of latents."""

import base64
import hashlib
import inspect
import json
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mechvis.errors import BadData, OutputNotWritable, ShapeMismatch
from mechvis.record import Record
from sae.dashboards import LatentPages, dashboard, latent_pages
from sae.dashboards.packing import block, packed, short, unpacked

HERE = Path(__file__).parent
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="the page's script is run by node, which is not installed")
VOID = {"meta", "img", "br", "link", "input", "hr"}
_CODE = ("alert(1)", "fetch('http://x')", "location='http://x'")
PAYLOADS = sorted(
    {
        form.replace("CODE", code)
        for code in _CODE
        for form in (
            "<script>CODE</script>",
            "</script><script>CODE</script>",
            "<img src=x onerror=CODE>",
            "<svg onload=CODE>",
            "<svg><script>CODE</script></svg>",
            '"><img src=x onerror=CODE>',
            "'><img src=x onerror=CODE>",
            '" onmouseover="CODE',
            "' onmouseover='CODE",
            "` onmouseover=`CODE",
            "javascript:CODE",
            "data:text/html,<script>CODE</script>",
            "<iframe src=javascript:CODE>",
            "<a href='javascript:CODE'>x</a>",
            "</style><script>CODE</script>",
            "</title><script>CODE</script>",
            "<!-- --><script>CODE</script><!--",
            "--><script>CODE</script>",
            "<![CDATA[<script>CODE</script>]]>",
            "{{ CODE }}",
            "${CODE}",
            "\\u003cCODE\\u003e",
            "</noscript><script>CODE</script>",
            "</textarea><script>CODE</script>",
            "];CODE;//",
            '"};CODE;//',
            '\\";CODE;//',
            "\n</script>\nCODE",
            "<x onclick=CODE>",
            "<details open ontoggle=CODE>",
            "&lt;script&gt;CODE&lt;/script&gt;",
        )
    }
    | {
        "<style>@import 'http://x'</style>",
        "<base href=http://x>",
        "<meta http-equiv=refresh content=0;url=http://x>",
        "<link rel=stylesheet href=http://x>",
        "<object data=http://x>",
        "<embed src=http://x>",
        "<form action=http://x>",
        "{% include 'x' %}",
        "&#60;script&#62;",
        "\u2028</script>\u2029",
        "<\0script>alert(1)</script>",
        "\u202egnp.exe",
        "＜script＞",
        "\x1b[31m<b>",
        "$\\frac{",
        "<noscript><p title='</noscript><img src=x>'>",
        "__proto__",
        "constructor",
        "toString",
        "\\",
        "'",
        '"',
        "`",
        "\t\r\n",
    }
)


class Page(HTMLParser):
    """Every element with its attributes, the text by element, and whether all elements are closed in order."""

    def __init__(self, html: str):
        super().__init__()
        self.elements, self.stack, self.text, self.comments = [], [], [], []
        self.feed(html)
        self.close()
        assert not self.stack, self.stack

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text.append((tuple(self.stack), data))

    def handle_comment(self, data):
        self.comments.append(data)

    def said(self, tag: str) -> str:
        return "".join(data for stack, data in self.text if stack and stack[-1] == tag)


def blocks(html: str) -> dict[str, str]:
    return dict(re.findall(r'<script type="[a-z/]+" id="([a-z]+)">(.*?)</script>', html, re.DOTALL))


def script(html: str) -> str:
    (found,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    return found


def changed(pages, **more) -> LatentPages:
    """The same pages with something else in them."""
    fields = ("title", "tables", "arrays", "facts", "words", "caveats", "provenance")
    return LatentPages(**{name: getattr(pages, name) for name in fields} | more)


@pytest.fixture(scope="module")
def pages(tiny_vit, images, planted):
    found = latent_pages(tiny_vit, images, planted, latents=range(5), n_top=4, n_quantile=3, progress=False)
    texts = pl.DataFrame(
        {"latent": [0, 0, 3], "kind": ["decoder", "images", "decoder"], "rank": [0, 0, 0],
         "text": ["a red patch", "something dark", "an embarrassment"], "cosine": [0.9, 0.3, 0.1],
         "above_chance": [True, False, False]}
    )  # fmt: skip
    return changed(found, tables={**found.tables, "texts": texts})


@pytest.fixture(scope="module")
def html(pages, tmp_path_factory):
    return dashboard(pages, tmp_path_factory.mktemp("page") / "p.html").path.read_text(encoding="utf-8")


def test_blocks_hold_the_tables(pages, html):
    data = blocks(html)
    known, index = json.loads(data["known"]), json.loads(data["index"])
    lines = [json.loads(line) for line in data["pages"].split("\n")]
    pictures = data["pictures"].split("\n")
    assert index["latent"] == pages.table["latent"].to_list() and len(lines) == 5
    for name in ("frequency", "max", "class_share", "moran_low"):
        assert index[name] == [None if v is None else pytest.approx(v, rel=1e-3) for v in pages.table[name]]
    names = [None if i is None else known["classes"][i] for i in index["top_class"]]
    assert names == pages.table["top_class"].to_list()
    assert known["grid"] == [3, 3] and known["prefix"] == ["cls"] and known["n"] == 24
    for latent, line in zip(index["latent"], lines, strict=True):
        own = pages.of(latent)
        assert len(line["e"]) == own["examples"].height
        rows = own["examples"].iter_rows(named=True)
        for row, example, heat in zip(rows, line["e"], pages.heat(latent), strict=True):
            picture, value, kind, token, type_, peak, quantile, drawn = example
            assert known["images"][picture][0] == f"image {row['image']}"
            assert (kind, token, known["types"][type_]) == (int(row["kind"] == "quantile"), row["token"], row["type"])
            assert value == pytest.approx(row["value"], rel=1e-3)
            assert quantile == (None if row["quantile"] is None else pytest.approx(row["quantile"], rel=1e-3))
            assert np.allclose(unpacked(drawn, 9).reshape(3, 3) / 255 * peak, heat, atol=1e-3)
            assert base64.b64decode(pictures[picture]) == pages.picture_file(picture)
        classes = own["classes"]
        assert [known["classes"][c[0]] for c in line["c"]] == classes["class"].to_list()
        assert [c[1] for c in line["c"]] == classes["fires"].to_list()
        assert [index["latent"][n[0]] for n in line["n"]] == own["neighbours"]["neighbour"].to_list()
        assert [known["texts"][t[0]] for t in line["t"]] == own["texts"]["text"].to_list()
        first, counts = line["h"]
        assert sum(counts) == pages.arrays["histogram"][index["latent"].index(latent)].sum()
        assert len(known["edges"]) >= first + len(counts) + (1 if counts else 0)
    # Each image is there once.
    assert len(pictures) == len(set(pictures)) == pages.tables["images"].height


def test_the_page_needs_nothing_and_forbids_the_rest(html):
    page = Page(html)
    assert not page.comments
    policy = next(a["content"] for t, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(script(html).encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    # The policy binds only what comes after it.
    assert [t for t, _ in page.elements][:4] == ["html", "head", "meta", "meta"]
    for _, attributes in page.elements:
        assert not {"src", "href", "style", "action"} & set(attributes)
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"https?://|innerHTML|eval\(|import\(|document\.write|insertAdjacent", html)
    kinds = [a.get("type") for t, a in page.elements if t == "script"]
    assert kinds == ["application/json", "application/json", "text/plain", "text/plain", None]


def test_without_scripts_there_is_a_table(pages, html):
    page = Page(html)
    rows = sum(t == "tr" for t, _ in page.elements)
    assert rows == 1 + pages.table.height
    cells = [data for stack, data in page.text if "noscript" in stack and stack[-1] == "td"]
    assert "red" in cells and "3" in cells
    assert all("noscript" in stack for stack, _ in page.text if "td" in stack)


@pytest.mark.parametrize("part", range(8))
def test_hostile_strings_stay_text_in_every_field(pages, html, tmp_path, part):
    expected = Page(html)
    for payload in PAYLOADS[part::8]:
        words = {}

        def say(frame, *names, payload=payload):
            return frame.with_columns(
                (pl.lit(payload) + pl.col(name)).alias(name) for name in names if name in frame.columns
            )

        tables = {name: say(frame, "class", "top_class", "group", "top_group", "id", "text", "type")
                  for name, frame in pages.tables.items()}  # fmt: skip
        hostile = changed(
            pages, tables=tables, title=payload, words={**pages.words, payload: payload}, caveats=(payload,) * 3,
            facts={**pages.facts, "sites": [payload], "prefix": [payload], payload: payload},
            provenance={"model": {"name": payload}, "command": payload, "versions": {payload: payload}},
        )  # fmt: skip
        text = dashboard(hostile, tmp_path / "h.html").path.read_text(encoding="utf-8")
        found = Page(text)
        kinds = [{(t, tuple(a)) for t, a in page.elements} for page in (found, expected)]
        assert kinds[0] <= kinds[1], payload
        assert not found.comments
        # Nothing was closed early: as many of each element, but for the words and facts that were added.
        counts = [Counter(t for t, _ in page.elements if t not in ("dt", "dd", "li")) for page in (found, expected)]
        assert counts[0] == counts[1], payload
        assert script(text) == script(html)
        data = blocks(text)
        assert not re.search("[<>&]", data["known"] + data["index"] + data["pages"])
        shown = re.sub("[\0\x1b\u202e]", "\N{REPLACEMENT CHARACTER}", payload)
        words = json.loads(data["known"])
        for key in ("classes", "groups", "texts", "types"):
            assert words[key] and all(word.startswith(shown) for word in words[key]), (key, payload)
        assert all(row[0].startswith(shown) for row in words["images"])
        if not re.search(r"[\r\n\0]", payload):
            assert shown in found.said("h1") and shown in found.said("title") and shown in found.said("td")


def test_there_are_a_hundred_payloads_and_the_reader_would_see_an_injection():
    assert len(PAYLOADS) >= 100
    assert Page("<p><script></script></p>").elements[-1][0] == "script"


def node(*words: str) -> str:
    return subprocess.run([NODE, *words], check=True, capture_output=True, text=True, timeout=60).stdout


@needs_node
def test_the_script_has_no_syntax_error(html, tmp_path):
    (tmp_path / "page.js").write_text(script(html), encoding="utf-8")
    node("--check", str(tmp_path / "page.js"))
    (tmp_path / "page.js").write_text(script(html)[:-3], encoding="utf-8")
    with pytest.raises(subprocess.CalledProcessError):
        node("--check", str(tmp_path / "page.js"))


@needs_node
def test_functions_of_data_alone():
    source = Path(inspect.getfile(LatentPages)).with_name("page.js")
    rng = np.random.default_rng(0)
    maps = [
        np.where(rng.random(700) < share, rng.integers(1, 256, 700), 0).astype(np.uint8) for share in (2e-3, 0.1, 0.9)
    ]
    asked = [[packed(m), 700] for m in maps]
    found = json.loads(node(str(HERE / "ask.js"), str(source), json.dumps(asked)))
    assert all(np.array_equal(m, f) for m, f in zip(maps, found["maps"], strict=True))
    assert found["all"] == [0, 2, 1] and found["up"] == [2, 0, 1] and found["number"] == [0, 1, 2]
    assert found["cat"] == [0] and sorted(found["seven"]) == [1, 2] and sorted(found["night"]) == [1, 2]
    assert found["cls"] == [1] and found["least"] == [0] and found["most"] == [2]
    assert found["purity"] == [0] and sorted(found["max"]) == [1, 2]
    first, middle, beyond, none = found["sight"]
    assert first == [0, 18] and middle == [192, 218] and beyond[1] == 20 and beyond[0] < 20 and none == [0, 0]
    assert found["hash"] == [12, None, None]
    assert found["numbers"] == ["–", "0", "12", "0.123", "1.2e+6", "1.0e-5"]
    assert found["percents"] == ["–", "0 %", "3.4 %", "50 %"]
    assert found["shades"][0][3] == 0 and found["shades"][1][3] > 150
    assert found["shades"][2][3] > 150 and found["shades"][3][3] == 0
    assert found["uris"] == ["data:image/png;base64,iVBORx", "data:image/jpeg;base64,/9j/"]


@needs_node
def test_a_reader_can_look_around(pages, html, tmp_path):
    (tmp_path / "p.html").write_text(html, encoding="utf-8")
    found = json.loads(node(str(HERE / "look.js"), str(tmp_path / "p.html")))
    assert not found["problems"] and found["hidden"] is False
    order = pages.table.sort("frequency", "latent", descending=[True, False])["latent"].to_list()
    assert found["start"]["title"] == f"Latent {order[0]}" == "Latent 3" and found["start"]["count"] == "5 of 5 latents"
    assert found["down"]["title"] == f"Latent {order[1]}" and found["down"]["hash"] == f"#latent-{order[1]}"
    assert found["end"]["title"] == f"Latent {order[-1]}" == "Latent 4"
    assert found["end"]["pictures"] == []  # the silent one
    assert found["scrolled"]["title"] == found["down"]["title"]  # in the panel, End scrolls
    assert found["up"]["title"] == f"Latent {order[-2]}"
    own = pages.of(3)
    assert found["alts"] == [f"image {i}" for i in own["examples"]["image"]]
    assert len(found["start"]["pictures"]) == own["examples"].height
    assert all(re.fullmatch("data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+", uri) for uri in found["start"]["pictures"])
    # CLS has no place in the image: a badge, no heat map.
    assert found["start"]["canvases"] == [] and "cls" in found["text"]
    assert "an embarrassment" in found["text"] and "(as chance gives)" in found["text"]
    assert found["start"]["neighbours"] == own["neighbours"].height
    first = own["neighbours"]["neighbour"][0]
    assert found["neighbour"]["title"] == f"Latent {first}"
    # A red patch: full colour there, nothing elsewhere; then the spotlight, then nothing.
    painted = np.array(found["down"]["canvases"]).reshape(-1, 9, 4)
    heat = pages.heat(order[1]).reshape(-1, 9)
    assert np.array_equal(painted[..., 3] > 0, heat > 0) and (heat > 0).sum(1).tolist() == [1] * len(heat)
    dark = np.array(found["light"]["canvases"]).reshape(-1, 9, 4)
    assert ((dark[..., 3] == 0) == (pages.heat(first).reshape(-1, 9) > 0)).all()
    assert found["off"] and found["nothing"]["count"] == "0 of 5 latents" and found["one"]["count"] == "1 of 5 latents"
    assert found["sorted"] == [f"#{i}" for i in range(5)] and " at patch (0, 2)" in found["hover"]
    assert found["options"] == ["blue", "green", "red"]
    # An address leads to its latent.
    found = json.loads(node(str(HERE / "look.js"), str(tmp_path / "p.html"), "#latent-2"))
    assert found["start"]["title"] == "Latent 2"


@needs_node
def test_hostile_strings_are_shown_as_text(pages, tmp_path):
    for payload in PAYLOADS[::9]:
        tables = {
            name: frame.with_columns(
                (pl.lit(payload) + pl.col(c)).alias(c) for c in ("id", "class", "top_class") if c in frame.columns
            )
            for name, frame in pages.tables.items()
        }
        dashboard(changed(pages, tables=tables), tmp_path / "h.html")
        found = json.loads(node(str(HERE / "look.js"), str(tmp_path / "h.html")))
        shown = re.sub("[\0\x1b\u202e]", "\N{REPLACEMENT CHARACTER}", payload)
        assert not found["problems"] and all(alt.startswith(shown) for alt in found["alts"]), payload
        assert shown in found["text"]


def many(n_latents: int, per_latent: int, n_images: int) -> LatentPages:
    """Pages as large ones are: a tenth of the patches active, pictures of three kilobytes."""
    rng = np.random.default_rng(0)
    n = n_latents * per_latent
    latent = np.repeat(np.arange(n_latents), per_latent)
    maps = np.where(rng.random((n, 64)) < 0.1, rng.integers(1, 256, (n, 64)), 0).astype(np.uint8)
    share = rng.random(n_latents)
    ends = {f"{c}_{e}": share for c in ("frequency", "mean", "class_share", "moran") for e in ("low", "high")}
    latents = pl.DataFrame(
        {"latent": np.arange(n_latents), "fires": rng.integers(1, 1000, n_latents), "frequency": share,
         "density": share, "prefix": share, "mean": share, "max": share,
         "top_class": [f"class {i % 100}" for i in range(n_latents)], "class_share": share, "class_base": share,
         "class_share_of_top": share, "moran": share, "moran_n": 16, **ends}
    )  # fmt: skip
    examples = pl.DataFrame(
        {"latent": latent, "kind": "top", "rank": np.tile(np.arange(per_latent), n_latents),
         "image": rng.integers(0, n_images, n), "value": rng.random(n), "token": rng.integers(0, 65, n),
         "type": "patch", "peak": rng.random(n), "quantile": pl.Series([None] * n, dtype=pl.Float64)}
    )  # fmt: skip
    classes = pl.DataFrame(
        {"latent": np.repeat(np.arange(n_latents), 8), "class": [f"class {i % 100}" for i in range(8 * n_latents)],
         "fires": 12, "share": 0.123, "rate": 0.456, "rate_low": 0.345, "rate_high": 0.567, "images": 100, "mean": 0.3}
    )  # fmt: skip
    neighbours = pl.DataFrame(
        {"latent": np.repeat(np.arange(n_latents), 16), "neighbour": rng.integers(0, n_latents, 16 * n_latents),
         "kind": ["decoder", "together"] * (8 * n_latents), "rank": 0, "cosine": rng.random(16 * n_latents),
         "together": 0.123, "together_low": 0.111, "together_high": 0.135, "both": 123, "either": 1234}
    )  # fmt: skip
    images = pl.DataFrame(
        {"image": np.arange(n_images), "id": [f"some/folder/image_{i:06d}.jpg" for i in range(n_images)],
         "class": [f"class {i % 100}" for i in range(n_images)], "picture": np.arange(n_images)}
    )  # fmt: skip
    return LatentPages(
        title="many",
        tables={
            "latents": latents, "examples": examples, "classes": classes, "neighbours": neighbours, "images": images
        },
        arrays={
            "maps": maps, "histogram": rng.integers(0, 999, (n_latents, 14)), "histogram_edges": np.arange(15.0),
            "pictures": rng.integers(0, 256, 3000 * n_images, dtype=np.uint8),
            "picture_offsets": np.arange(n_images + 1) * 3000,
        },
        facts={"n_images": n_images, "grid": [8, 8], "prefix": ["cls"], "sites": ["x"]},
    )  # fmt: skip


def test_two_thousand_latents_fit(tmp_path):
    made = dashboard(many(2000, 16, 1000), tmp_path / "p.html")
    assert made.size == made.path.stat().st_size == sum(made.sizes.values())
    assert 6e6 < made.size < 15e6, made
    assert re.search(r"2,000 latents, 1,000 images, \d+\.\d MB \(pictures 4\.0, pages ", repr(made))
    # A latent costs what its own page costs: the script parses one line.
    lines = blocks(made.path.read_text(encoding="utf-8"))["pages"].split("\n")
    assert len(lines) == 2000 and max(map(len, lines)) < 6000


def test_maps_and_json_come_back():
    rng = np.random.default_rng(1)
    for share in (0, 0.001, 0.3, 1):
        for n in (1, 64, 1500):
            heat = np.where(rng.random(n) < share, rng.integers(1, 256, n), 0).astype(np.uint8)
            text = packed(heat)
            assert np.array_equal(unpacked(text, n), heat)
            assert len(text) <= 1 + 4 * -(-n // 3)
    value = {"a": [1.0, float("nan"), np.float32(0.5), np.int64(3), True, None]}
    assert block(value) == '{"a":[1,null,0.5,3,true,null]}'
    assert short(1e300) == 1e300 and short("a\0b") == "a\N{REPLACEMENT CHARACTER}b"


def test_it_is_drawn_from_disk_and_without_what_is_not_there(pages, tmp_path):
    pages.save(tmp_path / "pages")
    assert dashboard(LatentPages.load(tmp_path / "pages"), tmp_path / "a.html").size > 0
    bare = {name: frame for name, frame in pages.tables.items() if name not in ("texts", "classes", "groups")}
    bare["latents"] = bare["latents"].drop([c for c in bare["latents"].columns if "class" in c or "group" in c])
    bare["images"] = bare["images"].drop("class", "group")
    text = dashboard(changed(pages, tables=bare), tmp_path / "b.html").path.read_text(encoding="utf-8")
    if NODE is not None:
        found = json.loads(node(str(HERE / "look.js"), str(tmp_path / "b.html")))
        assert not found["problems"] and found["start"]["title"] == "Latent 3" and found["options"] == []
    assert Page(text)


def test_bad_input(pages, tmp_path):
    with pytest.raises(BadData, match=r"shows LatentPages .*, got Record"):
        dashboard(Record(kind="x", title="x", tables={"a": pl.DataFrame({"b": [1]})}), tmp_path / "p.html")
    with pytest.raises(ShapeMismatch, match=r"5 latents and 22 images would have .* MB \(pictures .*fewer latents"):
        dashboard(pages, tmp_path / "p.html", limit=1000)
    assert not (tmp_path / "p.html").exists()
    with pytest.raises(OutputNotWritable, match="it is a folder"):
        dashboard(pages, tmp_path)
