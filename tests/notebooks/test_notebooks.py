"""The notebooks run: each one in a clean kernel of its own, in an empty folder, without a network."""

import json
import os
import re
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "notebooks"
TEXTS = sorted(FOLDER.glob("[0-9][0-9]_*.md"))

BAR = re.compile(r"^[^\n|]*\d+%\|.*$|^[^\n|]*\d+ ?[a-z/ ]*\[\d\d:\d\d.*$", re.MULTILINE)
"""A line of a progress bar."""
NO_WIDGETS = re.compile(r"^.*TqdmWarning: IProgress not found.*\n +from \.autonotebook import.*$", re.MULTILINE)
"""tqdm's advice where ipywidgets is not installed."""


@pytest.fixture(scope="module")
def machine():
    """The environment of a reader's machine: a kernel called python3 that is this Python, no network, an empty home."""
    home = Path(tempfile.mkdtemp(prefix="reader"))
    kernel = home / "share" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.joinpath("kernel.json").write_text(
        json.dumps({"argv": command, "display_name": "Python 3", "language": "python"}), encoding="utf-8"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_", "JUPYTER"))}
    nowhere = "http://127.0.0.1:9"
    yield {
        **kept,
        "HOME": str(home),
        "IPYTHONDIR": str(home / "ipython"),
        "JUPYTER_PATH": str(home / "share"),
        "JUPYTER_RUNTIME_DIR": str(home),
        "HF_HUB_OFFLINE": "1",
        "http_proxy": nowhere,
        "https_proxy": nowhere,
        "OMP_NUM_THREADS": "1",
    }
    shutil.rmtree(home, ignore_errors=True)


def executed(text: Path, folder: Path, machine: dict[str, str], monkeypatch) -> nbformat.NotebookNode:
    """The notebook with its outputs, run in `folder`.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = jupytext.read(text)
    for name in ("HOME", "JUPYTER_PATH", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, machine[name])
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, kernel_name="python3", timeout=900, startup_timeout=300, resources=resources)
    client.execute(env=machine)
    return notebook


def complaints(text: str) -> str:
    """What is left of standard error without progress bars."""
    return BAR.sub("", NO_WIDGETS.sub("", text.replace("\r", "\n"))).strip()


@pytest.mark.parametrize(
    "text",
    # The first one at every commit; all of them take some minutes.
    [
        pytest.param(text, marks=[] if text.name.startswith(("01_", "09_")) else pytest.mark.slow, id=text.stem)
        for text in TEXTS
    ],
)
def test_runs_in_a_clean_kernel(text, machine, tmp_path, monkeypatch, record_property, capsys):
    before, cpu, started = sorted(FOLDER.rglob("*")), _cpu(), time.perf_counter()
    notebook = executed(text, tmp_path, machine, monkeypatch)
    seconds, used = time.perf_counter() - started, _cpu() - cpu
    record_property("seconds", round(seconds, 1))
    record_property("cpu_seconds", round(used, 1))
    with capsys.disabled():
        print(f"\n{text.stem}: {seconds:.0f} s, {used:.0f} s of processor time", end=" ")

    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    errors = [complaints(output.text) for output in outputs if output.get("name") == "stderr"]
    assert not any(errors), "\n".join(errors)
    shown = [output.data for output in outputs if "data" in output]
    assert any("image/png" in data for data in shown), "a notebook without a figure"
    assert any("<table" in data.get("text/html", "") for data in shown), "a notebook without a table"
    # A figure that is not drawn shows its name instead.
    assert not any(data.get("text/plain", "").startswith("<Figure") and "image/png" not in data for data in shown)
    assert sorted(FOLDER.rglob("*")) == before, "the notebook wrote into its source folder"


def _cpu() -> float:
    """Processor seconds of all processes that were started and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_a_failing_cell_is_an_error(machine, tmp_path, monkeypatch):
    from nbclient.exceptions import CellExecutionError

    text = tmp_path / "broken.md"
    text.write_text(TEXTS[0].read_text(encoding="utf-8").split("# 01")[0] + "```{code-cell} ipython3\n1 / 0\n```\n")
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        executed(text, tmp_path, machine, monkeypatch)


def test_complaints_are_what_is_no_progress_bar():
    bars = "heads:   0%|          | 0/10 [00:00<?, ? rows/s]\rheads: 100%|████| 10/10 [00:01<00:00, 7 rows/s]\n\n"
    advice = (
        "/x/tqdm/auto.py:21: TqdmWarning: IProgress not found. Please update jupyter and ipywidgets.\n"
        "  from .autonotebook import tqdm as notebook_tqdm\n"
    )
    assert complaints(bars) == ""
    assert complaints(advice + bars) == ""
    assert complaints(bars + "UserWarning: look out\n") == "UserWarning: look out"
