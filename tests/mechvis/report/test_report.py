"""Reports: complete in one file, sortable, and safe whatever the strings in them say."""

import base64
import hashlib
import io
import re
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest
from matplotlib.figure import Figure as MatplotlibFigure
from PIL import Image

from mechvis import report
from mechvis.errors import BadImages, OutputNotWritable, ShapeMismatch, UnknownName
from mechvis.report import Code, Facts, Figure, Images, Note, Section, Table, Text, Tile, Tiles, write_report
from mechvis.report.build import image_uri, render
from mechvis.results import Result

PAYLOADS = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)>",
    "<svg><script>alert(1)</script></svg>",
    '"><img src=x onerror=alert(1)>',
    "'><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "' onmouseover='alert(1)",
    "` onmouseover=`alert(1)",
    "javascript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "<iframe src=javascript:alert(1)>",
    "<a href='javascript:alert(1)'>x</a>",
    "<style>@import 'http://x'</style>",
    "</style><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "<!-- --><script>alert(1)</script><!--",
    "--><script>alert(1)</script>",
    "<![CDATA[<script>alert(1)</script>]]>",
    "<base href=http://x>",
    "<meta http-equiv=refresh content=0;url=http://x>",
    "<link rel=stylesheet href=http://x>",
    "<object data=http://x>",
    "<embed src=http://x>",
    "<form action=http://x>",
    "{{ 7 * 7 }}",
    "{% include 'x' %}",
    "{{ ''.__class__ }}",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#60;script&#62;",
    "</td></tr></table><script>alert(1)</script>",
    "</textarea><script>alert(1)</script>",
    "<math><mi//xlink:href='data:x,<script>alert(1)</script>'>",
    "\u2028</script>\u2029",
    "<\0script>alert(1)</script>",
    "<scr\0ipt>alert(1)</scr\0ipt>",
    "\u202egnp.exe",
    "\ud800<b>",
    "＜script＞",
    "<x onclick=alert(1)>",
    "<details open ontoggle=a>",
    "url(http://x)",
    "expression(alert(1))",
    "\x1b[31m<b>",
    "$\\frac{",
    "<noscript><p title='</noscript><img src=x>'>",
]
IMAGE = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
VOID = {"meta", "img", "br", "link", "input", "hr"}


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
        self.text.append((self.stack[-1] if self.stack else "", data))

    def handle_comment(self, data):
        self.comments.append(data)

    def of(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]

    def said(self, *tags: str) -> str:
        return "\n".join(data for tag, data in self.text if tag in tags)


def figure() -> MatplotlibFigure:
    drawn = MatplotlibFigure(figsize=(2, 1))
    drawn.add_subplot().plot([0, 1])
    return drawn


def everywhere(text: str) -> tuple[str, str, list[Section], dict]:
    """A report with `text` in every field that takes one."""
    # polars holds no half characters; every other field takes them.
    whole = text.replace("\ud800", "\N{REPLACEMENT CHARACTER}")
    table = pl.DataFrame({whole: [whole, None], "x": [1.5, -2.0], "other": [whole, "b"]})
    blocks = [
        Text(f"{text}\n\n{text}"),
        Note("warning", text),
        Code(text),
        Facts({text: text, "deep": {text: [text]}}),
        Tiles([Tile(text, text, text)]),
        Images([IMAGE], [text], text),
        Figure(figure(), text),
        Table(table, text, {"other": lambda value: text}, bars=("x",)),
    ]
    return text, text, [Section(text, blocks)], {"command": text, "seeds": {text: text}}


@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_strings_stay_text_in_every_field(tmp_path, payload):
    page = write_report(tmp_path / "r.html", *everywhere(payload)).read_text(encoding="utf-8")
    plain = write_report(tmp_path / "p.html", *everywhere("plain")).read_text(encoding="utf-8")
    found, expected = Page(page), Page(plain)
    # The same elements with the same attribute names in the same order: nothing was added, closed early or lost.
    assert [(tag, tuple(attributes)) for tag, attributes in found.elements] == [
        (tag, tuple(attributes)) for tag, attributes in expected.elements
    ]
    assert not found.comments
    assert found.of("script") == [{}] and found.said("script") == expected.said("script")
    assert found.said("style") == expected.said("style")
    for tag, attributes in found.elements:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href"):
                assert re.match(r"data:image/(png|svg\+xml);base64,|#section-\d+$", value), (tag, value)
            assert name != "style"
            if name == "width":
                assert re.fullmatch(r"\d+(\.\d%)?", value)
    # It is shown as it was given, except for characters that cannot be shown.
    shown = re.sub("[\0\x1b\u202e\ud800]", "\N{REPLACEMENT CHARACTER}", payload)
    for tag in ("title", "h1", "h2", "a", "p", "code", "dt", "dd", "caption", "figcaption", "button", "td"):
        assert shown in found.said(tag), tag
    assert not re.search("[\0\x1b\u202e]", page)


def test_there_are_enough_payloads_and_the_reader_would_see_an_injection():
    assert len(set(PAYLOADS)) >= 40
    assert Page("<p><script></script></p>").of("script")


def test_the_page_needs_nothing_and_forbids_the_rest(tmp_path):
    path = write_report(tmp_path / "new" / "r.html", *everywhere("plain"))
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    policy = next(meta["content"] for meta in page.of("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    script, style = (
        base64.b64encode(hashlib.sha256(page.said(tag).encode()).digest()).decode() for tag in ("script", "style")
    )
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{style}'; script-src 'sha256-{script}'; "
        "base-uri 'none'; form-action 'none'"
    )
    # The policy binds only what comes after it.
    assert html.index("Content-Security-Policy") < html.index("<style>") < html.index("<script>")
    assert not re.search(r"https?://|url\(|@import|\bfetch\b|XMLHttp|eval\(|innerHTML", html)
    assert {tag for tag, _ in page.elements}.isdisjoint({"link", "iframe", "object", "embed", "form", "base"})
    assert [p.name for p in path.parent.iterdir()] == ["r.html"]


def test_contents_lead_to_every_section():
    page = Page(render("t", "s", [Section("One", []), Section("Two", [])]))
    assert [a["href"] for a in page.of("a")] == ["#section-1", "#section-2"]
    assert [s["id"] for s in page.of("section")] == ["section-1", "section-2"]


def test_table_cells_sort_keys_and_bars():
    table = pl.DataFrame(
        {
            "unit": ["a", None, "c"],
            "x": [1.0, -2.0, None],
            "n": [12000, 5, 1],
            "ok": [True, False, None],
            "z": [float("nan"), 0.00012345, 3.0],
        }
    )
    html = render("t", "", [Section("s", [Table(table, "cap", {"n": ",", "x": "+.1f"}, bars=("x",))])])
    page = Page(html)
    cells = page.of("td")
    assert [cell.get("data-sort") for cell in cells] == [
        None,
        "1.0",
        "12000.0",
        "1.0",
        None,
        None,
        "-2.0",
        "5.0",
        "0.0",
        "0.00012345",
        None,
        None,
        "1.0",
        None,
        "3.0",
    ]
    assert [data for tag, data in page.text if tag == "td"] == [
        "a",
        "+1.0",
        "12,000",
        "yes",
        "–",
        "–",
        "−2.0",
        "5",
        "0.0001234",
        "c",
        "–",
        "1",
        "–",
        "3",
    ]
    assert [rect["width"] for rect in page.of("rect")] == ["21.0%", "42.0%"]
    assert "negative" in cells[6]["class"] and "negative" not in cells[1]["class"]
    assert [th.get("class") for th in page.of("th")] == [None, "number", "number", None, "number"]


def test_long_tables_are_cut_and_say_so():
    page = Page(render("t", "", [Section("s", [Table(pl.DataFrame({"x": range(1000)}), "All", limit=10)])]))
    assert len(page.of("td")) == 10 and "All (the first 10 of 1,000 rows)" in page.said("caption")


def test_images_are_stored_exactly():
    for image in (IMAGE, IMAGE[..., 0], IMAGE[..., :1]):
        data = base64.b64decode(image_uri(image).removeprefix("data:image/png;base64,"))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), image.squeeze())


def test_figures_are_vectors_or_pixels():
    html = render("t", "", [Section("s", [Figure(figure(), "f"), Figure(figure(), raster=True)])])
    sources = [img["src"].partition(",")[0] for img in Page(html).of("img")]
    assert sources == ["data:image/svg+xml;base64", "data:image/png;base64"]
    assert Page(html).of("img")[0]["width"] == "192"


def test_provenance_becomes_the_last_section(tmp_path):
    path = write_report(
        tmp_path / "r.html", "t", "", [], {"command": "mechvis cigma", "versions": {"torch": "2"}, "seeds": {}}
    )
    page = Page(path.read_text(encoding="utf-8"))
    assert page.said("h2") == "How to repeat it" and page.said("code") == "mechvis cigma"
    assert page.said("dt") == "versions / torch" and page.said("dd") == "2"


def test_facts_are_readable():
    page = Page(
        render("t", "", [Section("s", [Facts({"a": None, "b": True, "c": 1 / 3, "d": [1, 2], "e": {"f": "x"}})])])
    )
    assert page.said("dd").split("\n") == ["–", "yes", "0.333333", "1, 2", "x"]
    assert page.said("dt").split("\n") == ["a", "b", "c", "d", "e / f"]


def test_the_report_of_a_result_is_safe(tmp_path):
    for payload in PAYLOADS[:5]:
        units = [{"unit": f"{payload} {head}", "layer": 0, "head": head} for head in range(3)]
        result = Result.from_values(
            payload,
            payload,
            units,
            {payload: np.random.default_rng(0).normal(1, 1, (3, 80))},
            baseline={payload: 2.0},
            provenance={"model": {"name": payload}},
        )
        page = Page(result.report(tmp_path / "r.html").read_text(encoding="utf-8"))
        assert page.of("script") == [{}] and len(page.of("img")) == 1 and not page.comments


def test_places_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    # Said before anything is drawn.
    monkeypatch.setattr(report.build, "render", lambda *args: pytest.fail("drawn before the place was tried"))
    with pytest.raises(OutputNotWritable, match=r"it is a folder\. Give the name of a file"):
        write_report(tmp_path, "t", "", [])
    with pytest.raises(OutputNotWritable, match="cannot write into"):
        write_report(tmp_path / "file" / "r.html", "t", "", [])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Note("warn", "x"), UnknownName, "Nearest: warning"),
        (lambda: Table(pl.DataFrame({"x": [1]}), formats={"y": ".1f"}), UnknownName, "unknown column 'y'"),
        (lambda: Table(pl.DataFrame({"x": ["a"]}), bars=("x",)), ShapeMismatch, "bars need numbers; the column 'x'"),
        (lambda: Images([IMAGE], ["a", "b"]), ShapeMismatch, "1 images, 2 captions"),
        (lambda: render("t", "", [Section("s", [Images([IMAGE / 2])])]), BadImages, "should be uint8"),
        (lambda: Section("s", ["text"]), UnknownName, "holds a str. Blocks are Text, Table"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_reports_have_a_size_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(report.build, "SIZE_LIMIT", 1000)
    with pytest.raises(ShapeMismatch, match="Show fewer images or rows"):
        write_report(tmp_path / "r.html", "t", "", [])
    assert not (tmp_path / "r.html").exists()
