"""The documentation site, without Sphinx: nothing is left out of it, and every link and name in it leads somewhere.

`make docs` builds the site and takes a warning for an error; these tests find in seconds what would go wrong there.
"""

import doctest
import fnmatch
import importlib
import re
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
FENCE = re.compile(r"^(`{3,}|~{3,}).*?^\1[ \t]*$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(<?([^)\s>]+)>?\)")
PACKAGES = ("mechvis", "circuits", "probes", "sae")


def pages() -> list[Path]:
    """Every page of the site that lies in the repository."""
    patterns = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "tests/SKIPS.md")
    patterns += ("docs/*.md", "docs/*/*.md", "notebooks/*.md", "benchmarks/*.md")
    return sorted(path for pattern in patterns for path in ROOT.glob(pattern))


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@cache
def prose(page: Path) -> str:
    """A page without its blocks of code, front matter and HTML comments."""
    text = re.sub(r"\A---\n.*?^---$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"<!--.*?-->", "", FENCE.sub("", text), flags=re.DOTALL)


@cache
def anchors(page: Path) -> set[str]:
    """The anchors that code hosts and MyST give to headings: lower case, no punctuation, spaces to hyphens."""
    found: Counter[str] = Counter()
    made = set()
    for heading in re.findall(r"^#{1,6}\s+(.+?)\s*$", prose(page), re.MULTILINE):
        plain = re.sub(r"\\(.)", r"\1", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
        made.add(f"{slug}-{found[slug]}" if found[slug] else slug)
        found[slug] += 1
    return made


def wrong_links(page: Path) -> list[str]:
    wrong = []
    for target in LINK.findall(re.sub(r"`[^`\n]*`", "`code`", prose(page))):
        if re.match(r"[a-z][a-z+.-]*:", target):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        if not place.exists():
            wrong.append(f"{target}: no such file")
        elif anchor and place.suffix == ".md" and anchor not in anchors(place):
            wrong.append(f"{target}: no such heading")
    return wrong


@pytest.mark.parametrize("page", pages(), ids=name)
def test_links_and_anchors(page):
    assert not wrong_links(page)


def test_a_wrong_link_is_found(tmp_path):
    (tmp_path / "other.md").write_text("# A `b.c` heading: twice\n\n## Same\n\n## Same\n", encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](other.md#a-bc-heading-twice) [b](other.md#same-1) [c](#here) [d](gone.md) [e](other.md#gone)\n\n# Here\n\n"
        "```\n[f](not-a-link.md)\n```\n",
        encoding="utf-8",
    )
    assert wrong_links(page) == ["gone.md: no such file", "other.md#gone: no such heading"]


# toctrees


def listed(index: Path) -> set[str]:
    """Pages, without suffix, that the toctrees of a page name, and those of the pages below it."""
    found: set[str] = set()
    for body in re.findall(r"^```\{toctree\}\n(.*?)^```$", index.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        for line in body.splitlines():
            if not line.strip() or line.startswith(":"):
                continue
            entry = re.sub(r".*<(.*)>", r"\1", line.strip())
            whole = entry.lstrip("/") if entry.startswith("/") else name(index.parent / entry)
            known = {name(page).removesuffix(".md") for page in pages()}
            matched = {page for page in known if fnmatch.fnmatchcase(page, whole)} if "*" in whole else {whole}
            found |= matched
    below = [ROOT / f"{entry}.md" for entry in found]
    return found.union(*(listed(page) for page in below if page.is_file() and page != index)) if found else found


def test_every_page_is_in_a_toctree():
    known = {name(page).removesuffix(".md") for page in pages()} - {"docs/index"}
    there = listed(DOCS / "index.md")
    assert known <= there, f"in no toctree: {sorted(known - there)}"
    assert there <= known, f"toctrees name pages that do not exist: {sorted(there - known)}"


# the reference


def extension(module: str):
    """A module of the site's own; its folder is on the path only while it is imported."""
    sys.path.insert(0, str(DOCS))
    try:
        return importlib.import_module(module)
    finally:
        sys.path.remove(str(DOCS))


def api_pages():
    return extension("api_pages")


@cache
def reference():
    return api_pages().pages()


def test_every_public_name_has_an_entry():
    made = {page.package: page for page in reference()}
    entries = {entry.address: entry for page in reference() for entry in page.entries}
    homes = set(made) | {entry.address for entry in entries.values() if entry.home == entry.address}
    for root in PACKAGES:
        for path in sorted((ROOT / root).rglob("__init__.py")):
            package = ".".join(path.parent.relative_to(ROOT).parts)
            if "__all__" not in path.read_text(encoding="utf-8") or api_pages().NOT_FOR_READERS.search(package):
                continue
            assert package in made, f"{package} has no page"
            missing = set(importlib.import_module(package).__all__) - {entry.name for entry in made[package].entries}
            assert not missing, f"{package}: {missing}"
    lost = {entry.address: entry.home for entry in entries.values() if entry.home not in homes}
    assert not lost, f"entries that lead nowhere: {lost}"


def test_every_public_name_and_package_says_what_it_is():
    silent = [
        entry.address for page in reference() for entry in page.entries if not entry.summary and entry.kind != "data"
    ]
    silent += [page.package for page in reference() if not page.summary]
    assert not silent


def test_pages_are_written_once_and_removed_when_their_package_goes(tmp_path):
    made = [page for page in reference() if page.package in ("mechvis.edits", "mechvis.stats")]
    (tmp_path / "gone.rst").write_text("old", encoding="utf-8")
    first = api_pages().write(tmp_path, made)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mechvis.edits.rst", "mechvis.stats.rst"]
    times = [path.stat().st_mtime_ns for path in first]
    assert [path.stat().st_mtime_ns for path in api_pages().write(tmp_path, made)] == times
    text = (tmp_path / "mechvis.stats.rst").read_text(encoding="utf-8")
    assert ".. autofunction:: mechvis.stats.bootstrap" in text and ".. py:data:: mechvis.stats.RESAMPLES" in text


def test_a_name_of_two_packages_has_one_entry():
    entries = {entry.address: entry for page in reference() for entry in page.entries}
    assert entries["sae.architectures.TopK"].home == entries["sae.TopK"].home == "sae.TopK"
    assert entries["mechvis.decompose"].kind == "function"
    assert next(page for page in reference() if page.package == "mechvis.decompose").shadowed


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("a `b` c", "a ``b`` c"),
        ("see `edits.zero` and `zero()`", "see :py:obj:`edits.zero <m.edits.zero>` and :py:obj:`zero() <m.zero>`"),
        ("`q`s and `a\nb`", "``q``\\ s and ``a b``"),
        ("x * y, |z| and d_ but *this* and **that**", "x \\* y, \\|z\\| and d\\_ but *this* and **that**"),
        (":func:`m.zero` stays", ":func:`m.zero` stays"),
        ("Text:\n\n    code_ * |x|\n\nmore", "Text:\n\n::\n\n    code_ * |x|\n\nmore"),
        ("Text:\n* one\n* two", "Text:\n\n* one\n* two"),
        ("1. one\n\n       a formula\n\n   more", "1. one\n\n   ::\n\n       a formula\n\n   more"),
        ("| a | b |\n| - | - |", "::\n\n    | a | b |\n    | - | - |"),
    ],
)
def test_docstrings_become_markup(written, expected):
    homes = {"m.zero": "m.zero", "m.edits.zero": "m.edits.zero"}
    clean = [line for line in extension("docstrings").markup(written, "m.here", homes).splitlines() if line.strip()]
    assert clean == [line for line in expected.splitlines() if line.strip()]


def test_prose_among_what_is_raised_is_kept():
    text = extension("docstrings").markup("Do.\n\nRaises:\n    BadData: bad.\n    And what :func:`m.zero` raises.")
    assert text.endswith("    BadData: bad.\n        And what :func:`m.zero` raises.")


def test_errors_without_a_word_are_told_apart():
    text = extension("docstrings").markup("Do.\n\nRaises:\n    BadData, m.OutOfRange and NotFinite.\n    Other: why.")
    assert text.endswith("Raises:\n    BadData\n    m.OutOfRange\n    NotFinite\n    Other: why.")


class Reference(dict):
    """What Sphinx hands on: a mapping with children that can be put in its place."""

    children = ("text",)

    def replace_self(self, new):
        self["replaced"] = new


def test_references_in_signatures_are_exact():
    homes = {
        "m.a.Method": "m.a.Method",
        "m.b.Method": "m.b.Method",
        "m.inner.Result": "m.Result",
        "m.Result": "m.Result",
    }
    given = [("Method", "m.b"), ("Method", "m.c"), ("m.inner.Result", ""), ("Result", "x"), ("torch.Tensor", "m.a")]
    nodes = [Reference(reftarget=target, refspecific=False) | {"py:module": module} for target, module in given]
    nodes = [Reference(node) for node in nodes]
    extension("docstrings").settle(nodes, homes)
    assert [node["reftarget"] for node in nodes if "replaced" not in node] == ["m.b.Method", "m.Result", "m.Result"]
    assert [node["reftarget"] for node in nodes if "replaced" in node] == ["Method", "torch.Tensor"]
    assert not any("refspecific" in node for node in nodes if "replaced" not in node)


@pytest.mark.parametrize(
    ("doc", "sentence"),
    [
        ("One. Two.", "One."),
        ("As `a.b. c` says: more", "As `a.b. c` says: more."),
        ("", ""),
        ("Two\nlines.\n\nMore.", "Two lines."),
    ],
)
def test_first_sentence(doc, sentence):
    assert api_pages().first_sentence(doc) == sentence


# names in texts


def resolves(address: str) -> bool:
    parts = address.split(".")
    for split in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:split]))
        except ImportError:
            continue
        for part in parts[split:]:
            fields = getattr(value, "__dataclass_fields__", {})
            if not hasattr(value, part) and part not in fields:
                return False
            value = getattr(value, part, None)
        return True
    return False


@pytest.mark.parametrize("page", [page for page in pages() if "benchmarks" not in name(page)], ids=name)
def test_names_in_code_exist(page):
    named = set(re.findall(rf"`((?:{'|'.join(PACKAGES)})(?:\.[A-Za-z_]\w*)+)(?=[`(])", prose(page)))
    formats = set(known_formats()) | groups()
    assert not [address for address in sorted(named - formats) if not resolves(address)]


@cache
def groups() -> set[str]:
    """Groups of entry points, which look like modules: filled by pyproject.toml, or looked up by the code."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "mechvis").rglob("*.py")]
    return {
        *re.findall(r'^\[project\.entry-points\."([\w.]+)"\]', text, re.MULTILINE),
        *re.findall(r'entry_points\(group="([\w.]+)"\)', "\n".join(sources)),
    }


def test_a_wrong_name_is_found():
    assert resolves("mechvis.edits.zero") and resolves("mechvis.edits.Edit.kind") and resolves("circuits.patch")
    assert not resolves("mechvis.edits.nought") and not resolves("sae.no_such_thing")


# glossary


def terms() -> list[str]:
    return re.findall(r"^### (.+)$", prose(DOCS / "glossary.md"), re.MULTILINE)


def test_glossary_terms_are_unique_and_explained():
    found = terms()
    assert len({term.lower() for term in found}) == len(found)
    parts = re.split(r"^### .+$", prose(DOCS / "glossary.md"), flags=re.MULTILINE)[1:]
    for term, text in zip(found, parts, strict=True):
        plain = text.split("*Also called:*")[0].split("*Shown in:*")[0]
        assert 20 < len(plain.strip()) < 450, f"{term}: one or two plain sentences, please"


NEWCOMERS = """
image, patch, token, CLS, register, residual stream, head, MLP, neuron, site, hook, activation, cache, clean and
corrupt, activation patching, ablation, zero ablation, mean ablation, mean-positional ablation, resample ablation,
effect, logit difference, metric, interval, false discovery rate, control, circuit, edge, faithfulness,
completeness, minimality, CPR and CMD, attribution patching, EAP, ACDC, probe, selectivity, timeline, lens, text
span, dictionary, SAE, latent, L0, FVU, loss recovered, dead latent, transcoder, crosscoder, splice, steering,
concept, CAV, SURF, null space, attribution map, deletion and insertion, ABPC, baseline operator, sanity check,
gate, card, planted suite
"""


@pytest.mark.parametrize("word", [" ".join(word.split()) for word in NEWCOMERS.split(",")])
def test_newcomers_find(word):
    assert word in terms()


def test_links_into_the_glossary_exist():
    known = anchors(DOCS / "glossary.md")
    for page in pages():
        for anchor in re.findall(r"\]\((?:[./\w]*/)?glossary\.md#([\w-]+)\)", prose(page)):
            assert anchor in known, f"{name(page)}: {anchor}"


# formats


@cache
def known_formats() -> tuple[str, ...]:
    """Every name that a writer of files gives as its format."""
    found = set()
    for root in PACKAGES:
        for path in (ROOT / root).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            found |= set(re.findall(r'^(?:[A-Z_]+, )*FORMAT\b[^=\n]*= .*?"(mechvis[\w.-]+)"', text, re.MULTILINE))
            found |= set(re.findall(r'"format": "(mechvis[\w.-]+)"', text))
    return tuple(sorted(found))


def test_every_format_is_in_the_table():
    text = (DOCS / "formats_all.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(mechvis[\w.-]+)` \|", text, re.MULTILINE)
    assert len(rows) == len(set(rows))
    assert set(rows) == set(known_formats())


def test_every_golden_file_is_there():
    text = (DOCS / "formats_all.md").read_text(encoding="utf-8")
    golden = re.findall(r"`((?:tests|docs)/[\w/.]+)`", text)
    assert len(golden) > 10
    assert not [place for place in golden if not (ROOT / place).exists()]


# examples


@pytest.mark.parametrize("page", [page for page in pages() if ">>> " in page.read_text(encoding="utf-8")], ids=name)
def test_examples_that_look_like_a_session_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "\n".join(re.findall(r"^```pycon\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE))
    examples = doctest.DocTestParser().get_doctest(text, {}, name(page), name(page), 0)
    assert examples.examples, f"{name(page)}: a session (>>>) belongs into a block of the kind pycon"
    assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(examples).failed == 0


def test_the_markers_of_migration_pages_are_understood_by_the_site():
    # Not imported: it needs docutils, which comes with Sphinx.
    text = (DOCS / "side_by_side.py").read_text(encoding="utf-8")
    mark = re.compile(re.search(r'MARK = re\.compile\(r"(.*)"\)', text)[1])
    for page in (DOCS / "migrating").glob("*.md"):
        for marker in re.findall(r"<!-- ((?:theirs|ours).*?) -->", page.read_text(encoding="utf-8")):
            assert mark.match(f"<!-- {marker} -->"), f"{page.name}: {marker}"
