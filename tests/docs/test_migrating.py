"""The two sides of the migration pages: ours runs, theirs runs where the library is installed, and numbers agree.

A marker comment stands before each block of code: `<!-- setup -->`, `<!-- theirs: task = name -->`,
`<!-- ours: task = name -->`. Blocks run in the order of the page, theirs and ours in two sets of names that both begin
with what the set-up made. Where both sides of a task name a value, the two are compared.

nnsight changes the process for good when it is imported (`mechvis/interop/nnsight.py`), so its page runs in a process
of its own.
"""

import importlib.util
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

PAGES = Path(__file__).resolve().parents[2] / "docs" / "migrating"
BLOCK = re.compile(r"<!-- (setup|theirs|ours)(, not run)?(?:: (\w+))?(?: = (\w+))? -->\n```python\n(.*?)```", re.DOTALL)
LIBRARIES = {
    "transformer_lens": "transformer_lens",
    "nnsight": "nnsight",
    "vit_prisma": "vit_prisma",
    "clip_text_span": "numpy",
    "saelens": "sae_lens",
}
TOLERANCE = 1e-4
"""Of the largest number. Two implementations in float32 differ by some 1e-6; the other sign or another head by 1."""


def blocks(page: str) -> list[tuple[str, bool, str, str, str]]:
    """Side, whether it runs, task, name of the value, and code of each block of a page."""
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    found = [(side, not no, task, name, code) for side, no, task, name, code in BLOCK.findall(text)]
    assert len(found) == text.count("```python"), f"{page}: a block of Python without a marker"
    return found


def plain(value) -> np.ndarray:
    value = value.detach() if isinstance(value, torch.Tensor) else value
    return np.asarray(value, dtype=np.float64)


def run_page(page: str, theirs: bool, provided: dict | None = None) -> dict[str, dict[str, np.ndarray]]:
    """Run a page in the current folder.

    Returns:
        For each task the named value of each side that ran.
    """
    sides: dict[str, dict] = {"ours": {}, "theirs": dict(provided or {})}
    values: dict[str, dict[str, np.ndarray]] = {}
    for position, (side, runs, task, name, code) in enumerate(blocks(page)):
        if not runs or (side == "theirs" and not theirs):
            continue
        file = Path(f"{page}_{position}_{side}_{task}.py").absolute()
        file.write_text(code, encoding="utf-8")  # nnsight reads the source of its blocks from the file
        compiled = compile(code, str(file), "exec")
        if side == "setup":
            exec(compiled, sides["ours"])
            sides["theirs"] |= sides["ours"]
            continue
        if page == "clip_text_span" and side == "theirs":
            sides["theirs"] |= {key: sides["ours"][key] for key in ("vectors", "pool")}
        exec(compiled, sides[side])
        if name:
            values.setdefault(task, {})[side] = plain(sides[side][name])
    return values


def compare(values: dict[str, dict[str, np.ndarray]], *, both: bool) -> None:
    assert values
    for task, found in values.items():
        assert np.isfinite(found["ours"]).all(), task
        if both:
            assert set(found) == {"ours", "theirs"}, f"{task}: only {sorted(found)} names a value"
            ours, wanted = found["ours"], found["theirs"]
            assert ours.shape == wanted.shape, f"{task}: {ours.shape} and {wanted.shape}"
            assert np.abs(wanted).max() > 1e-3, f"{task}: nothing to compare"
            assert np.abs(ours - wanted).max() <= TOLERANCE * np.abs(wanted).max(), task


def test_every_page_is_listed():
    assert {path.stem for path in PAGES.glob("*.md")} == {*LIBRARIES, "index"}


@pytest.mark.parametrize("page", sorted(set(LIBRARIES) - {"nnsight"}))
def test_both_sides_of_a_page(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    theirs = importlib.util.find_spec(LIBRARIES[page]) is not None
    with warnings.catch_warnings():
        if theirs:
            warnings.simplefilter("ignore")  # of the other library
        provided = prisma() if page == "vit_prisma" and theirs else None
        compare(run_page(page, theirs, provided), both=theirs)


def prisma() -> dict:
    """ViT-Prisma's model with the weights of scenes-vit: its own are not to be had without a network."""
    import mechvis
    from benchmarks.prisma import rebuilt

    model = mechvis.load("scenes-vit")
    return {"prisma": rebuilt(model.bare, model)}


def test_both_sides_of_nnsight(tmp_path):
    theirs = importlib.util.find_spec("nnsight") is not None
    call = f"import test_migrating as t; t.compare(t.run_page('nnsight', {theirs}), both={theirs})"
    start = "import sys; sys.path.insert(0, sys.argv[1]); " + ("import beartype; " if theirs else "")
    done = subprocess.run(
        [sys.executable, "-c", start + call, str(Path(__file__).parent)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_wrong_number_is_seen():
    right = np.array([1.0, -2.0])
    compare({"task": {"ours": right, "theirs": right.copy()}}, both=True)
    with pytest.raises(AssertionError, match="task"):
        compare({"task": {"ours": -right, "theirs": right}}, both=True)
    with pytest.raises(AssertionError, match="only"):
        compare({"task": {"ours": right}}, both=True)
