"""The page without a browser: complete in one file, and safe whatever the strings say."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from mechvis.errors import BadData, OutputNotWritable, ShapeMismatch
from mechvis.explorer import Study, explore, panels, write
from mechvis.explorer.content import content
from mechvis.explorer.gather import gather
from mechvis.explorer.page import html, write_page

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Parsed(HTMLParser):
    """Elements with their attributes, text by element; what is not closed in order fails."""

    def __init__(self, text: str):
        super().__init__()
        self.elements, self.stack, self.text, self.comments = [], [], [], []
        self.feed(text)
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

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def said(self, *tags):
        return "\n".join(data for tag, data in self.text if tag in tags)


@pytest.fixture(scope="module")
def plain(planted_study):
    found = gather(planted_study()["panels"])
    return Parsed(html(found, content(found), "t", "s"))


def test_hostile_strings_stay_text_in_every_field(planted_study, plain, payload):
    fields = []

    def word(field, i):
        fields.append(field)
        # Names that must differ get a number; half characters cannot be in a table.
        text = payload.replace("\ud800", "?")
        return f"{text}{i}" if field in ("image", "method", "class", "group", "gate", "measure") else text

    found = gather(planted_study(word)["panels"])
    made = Parsed(html(found, content(found), word("title", 0), word("subtitle", 0)))
    assert len(set(fields)) == 38
    assert [(tag, tuple(attributes)) for tag, attributes in made.elements] == [
        (tag, tuple(attributes)) for tag, attributes in plain.elements
    ]
    assert not made.comments
    scripts = [attributes for attributes in made.of("script") if "type" not in attributes]
    assert scripts == [{}]
    for tag, attributes in made.elements:
        for name, value in attributes.items():
            assert not name.startswith("on") and name not in ("style", "srcdoc", "action", "formaction", "xlink:href")
            if name in ("src", "href"):
                assert re.match(r"data:image/(png|svg\+xml|jpeg);base64,|#[a-z]+(-\d+)?$|$", value or ""), (tag, value)
            if name in ("id", "class", "type", "role", "width", "height", "d", "viewbox", "data-place"):
                assert "script" not in value or tag == "script", (tag, name)
    shown = re.sub("[\0\x1b\u202e\u2066]", "\N{REPLACEMENT CHARACTER}", payload)
    for tag in ("title", "h1", "h2", "h3", "p", "caption", "dt", "dd", "td", "b", "code"):
        assert shown in made.said(tag), tag


def test_every_field_was_tried(planted_study):
    fields = []
    planted_study(lambda field, i: fields.append((field, i)) or f"{field} {i}")
    # Three on top: title, subtitle and, in the browser, file names.
    assert len(set(fields)) >= 60


def test_the_policy_names_script_and_style_and_lets_nothing_else_in(study_file):
    text = study_file.read_text(encoding="utf-8")
    page = Parsed(text)
    policy = next(meta["content"] for meta in page.of("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    hashes = {
        name: base64.b64encode(
            hashlib.sha256(re.search(f"<{name}>(.*?)</{name}>", text, re.DOTALL)[1].encode()).digest()
        ).decode()
        for name in ("style", "script")
    }
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{hashes['style']}'; "
        f"script-src 'sha256-{hashes['script']}'; base-uri 'none'; form-action 'none'"
    )
    assert text.index("Content-Security-Policy") < text.index("<style>") < text.index("<script>")
    code = re.sub(r"http://www\.w3\.org/2000/svg", "", re.search("<script>(.*?)</script>", text, re.DOTALL)[1])
    assert not re.search(
        r"https?://|\beval\(|new Function|innerHTML|outerHTML|insertAdjacent|document\.write|\bfetch\b|XMLHttp",
        code,
    )
    assert {tag for tag, _ in page.elements}.isdisjoint({"link", "iframe", "object", "embed", "form", "base"})
    assert not any("style" in attributes for _, attributes in page.elements)
    assert [file.name for file in study_file.parent.iterdir()] == ["study.html"]


def test_contents_lead_to_every_part(study_file):
    page = Parsed(study_file.read_text(encoding="utf-8"))
    ids = [section["id"] for section in page.of("section")]
    assert ids == ["overview", "card-0", "images", "latents-0", "graph-0", "page-0"]
    assert {a["href"] for a in page.of("a")} == {f"#{id}" for id in ids}
    assert len({attributes["id"] for _, attributes in page.elements if "id" in attributes}) == sum(
        "id" in attributes for _, attributes in page.elements
    ), "no id twice"


def test_a_file_that_is_too_large_says_what_is_large(tmp_path, study):
    found = gather(study["panels"])
    with pytest.raises(
        ShapeMismatch, match=r"would have 0\.\d MB \(pictures .* numbers .* lists .*limit=9,999 bytes.*\(n=\)"
    ):
        write_page(tmp_path / "x.html", found, title="t", limit=9_999)
    assert not (tmp_path / "x.html").exists()
    written = write_page(tmp_path / "x.html", found, title="t", limit=None)
    assert written.size == (tmp_path / "x.html").stat().st_size
    assert repr(written).startswith(
        f"{tmp_path / 'x.html'}: 6 images, 4 with full attention, 2 methods of maps, 3 latents, 1 circuits"
    )


def test_places_are_tried_before_anything_is_computed(tmp_path):
    with pytest.raises(OutputNotWritable, match="it is a folder"):
        explore(tmp_path, "no such folder")
    with pytest.raises(BadData, match="both a model and images"):
        Study(model=object())
    with pytest.raises(BadData, match="nothing to explore"):
        write(tmp_path / "x.html", Study())


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: panels.Pictures(ids=("a", "a"), files=(None, None)), BadData, "ids of the images repeat"),
        (lambda: panels.Pictures(ids=("a",), files=(None,), labels=("x", "y")), ShapeMismatch, "2 entries in 'labels'"),
        (lambda: panels.Graph(name="g", edges=()), BadData, "has no edge"),
        (lambda: panels.Maps(name="m", methods=("a",), ids=("i",), values=()), ShapeMismatch, "1 methods, 0 arrays"),
    ],
)
def test_panels_refuse_what_does_not_fit(make, error, text):
    with pytest.raises(error, match=text):
        make()
