"""The texts of the notebooks: no outputs in them, links that lead somewhere, the same parts, names that exist."""

import re
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest

from mechvis import cli

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "notebooks"
TEXTS = sorted(FOLDER.glob("[0-9][0-9]_*.md"))
LINK = re.compile(r"\]\(([^)\s]+)\)")

each = pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.stem)


def prose(notebook) -> str:
    """The words of a notebook."""
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def code(notebook) -> str:
    """The code of a notebook."""
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")


def test_they_are_numbered_without_gaps():
    assert [int(text.name[:2]) for text in TEXTS] == list(range(1, 11))


@each
def test_is_a_notebook_in_text_without_outputs(text):
    notebook = jupytext.read(text)
    nbformat.validate(notebook)
    assert notebook.metadata["kernelspec"]["name"] == "python3"
    assert notebook.metadata["jupytext"]["text_representation"]["format_name"] == "myst"
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) >= 8
    assert not any(cell.outputs or cell.execution_count for cell in cells)
    assert "data:image" not in text.read_text(encoding="utf-8")
    # Written back, the cells are the same: nothing in the text that the pairing would lose.
    again = jupytext.reads(jupytext.writes(notebook, fmt="md:myst"), fmt="md:myst")
    assert [cell.source for cell in again.cells] == [cell.source for cell in notebook.cells]
    assert jupytext.writes(notebook, fmt="md:myst").split("\n---\n", 1)[1].strip() in text.read_text(encoding="utf-8")


@each
def test_has_the_parts_that_a_reader_expects(text):
    words = prose(jupytext.read(text))
    number = text.name[:2]
    assert re.match(rf"# {number} · \S", words), "the title"
    assert "**Question.**" in words.split("##")[0]
    assert "**At the end you will have**" in words.split("##")[0]
    assert re.search(r"[Hh]ow far to believe it", words), "what the numbers are worth"
    assert words.rstrip().split("\n## ")[-1].startswith("What to try next"), "the last section"
    assert "glossary.md" in words
    cells = jupytext.read(text).cells
    longest = max(len(cell.source.splitlines()) for cell in cells if cell.cell_type == "code")
    assert longest <= 24, f"a cell of {longest} lines"


def places(page: Path) -> set[str]:
    """The places in a page that a link can name: its headings, as code hosts and MyST write them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@each
def test_links_lead_somewhere(text):
    targets = [target for target in LINK.findall(text.read_text(encoding="utf-8")) if not target.startswith("https://")]
    assert targets
    for target in targets:
        path, _, place = target.partition("#")
        assert (FOLDER / path).exists(), target
        assert not place or place in places(FOLDER / path), target


def test_places_are_headings(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# The page\n\n## `Record` and Result\n\ntext # no heading\n", encoding="utf-8")
    assert places(page) == {"the-page", "record-and-result"}


@each
def test_uses_public_names_and_nothing_random(text):
    used = code(jupytext.read(text))
    assert not re.search(r"\b\w+\._[a-z]", used), "a private name"
    assert not re.search(r"from [\w.]+ import _", used), "a private name"
    assert not re.search(r"np\.random\.(?!default_rng\()|random\.seed|/work|/tmp|/home", used)


@each
def test_commands_and_targets_that_it_names_exist(text):
    words = text.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z]+)", words)) <= targets
    known = (ROOT / "tests" / "mechvis" / "cli_flags.txt").read_text(encoding="utf-8")
    for line in re.findall(r"`mechvis ([a-z][^`]*)`", words):
        command = line.split(" --")[0].split()
        assert command[0] in cli.commands(), line
        if len(command) > 1 and f"mechvis {command[0]} {command[1]} --" in known:
            command = command[:2]
        for flag in re.findall(r" (--[a-z][a-z-]+)", line):
            assert f"mechvis {' '.join(command[: 2 if ' '.join(command[:2]) in known else 1])} {flag}" in known, line


def test_the_list_has_one_line_for_each():
    listed = (FOLDER / "README.md").read_text(encoding="utf-8")
    for text in TEXTS:
        lines = [line for line in listed.splitlines() if f"]({text.name})" in line]
        assert len(lines) == 1, text.name
        title = jupytext.read(text).cells[0].source.splitlines()[0].split(" · ")[1]
        assert title in lines[0], f"{text.name} is called {title!r} in itself"
    for target in LINK.findall(listed):
        assert target.startswith("https://") or (FOLDER / target).exists(), target


def test_converted_for_jupyter(tmp_path):
    target = tmp_path / "build" / "notebooks"
    done = subprocess.run(
        [sys.executable, str(FOLDER / "convert.py"), str(target)], capture_output=True, text=True, check=True
    )
    assert f"{len(TEXTS)} notebooks" in done.stdout
    assert sorted(path.stem for path in target.iterdir()) == [text.stem for text in TEXTS]
    for path in target.iterdir():
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        for link in LINK.findall(prose(notebook)):
            if not link.startswith(("https://", "#")):
                assert (target / link.split("#")[0]).exists(), link


def test_convert_says_where_it_cannot_write(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    done = subprocess.run([sys.executable, str(FOLDER / "convert.py"), str(blocked)], capture_output=True, text=True)
    assert done.returncode != 0 and "OutputNotWritable" in done.stderr
