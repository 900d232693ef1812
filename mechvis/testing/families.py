"""The table of model families in the documentation: measured by the tests, never written by hand.

The tests of each environment add the rows they measured to `docs/families.json`; `docs/families.md` is drawn from it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mechvis.files import read_json, write_json
from mechvis.testing.conformance import Conformance

FORMAT = "mechvis.families"


def add_rows(path: Path, source: str, measured: Mapping[str, Sequence[Conformance]]) -> dict[str, Any]:
    """Replace the rows of one source (`Hugging Face`, `timm`, ...) in the file of measurements; returns all of it."""
    table = read_json(path) if path.exists() else {"format": FORMAT, "version": 1, "sources": {}}
    table["sources"][source] = {name: [tower.row() for tower in towers] for name, towers in measured.items()}
    write_json(path, table)
    return read_json(path)  # in the file's order


INTRODUCTION = """# Model families

What `mechvis.load` takes, and how far the wrapped model is from the bare one. Every figure is a largest difference
relative to the largest expected value, in float32, on a small random model whose biases, gains and scales are all away
from zero and one. `0` means bitwise equal. Measured by `make families`; checked by the tests at every change.

* **output**: with a graph and without, with nothing hooked and with every block hooked; **all captured**: with every
  site captured, where attention is computed explicitly.
* **gradients**: of the input and of every parameter.
* **sites**: every one fires exactly once (with a graph, without, in inference mode) with its declared shape;
  **native**: upstream's module names that are accepted, each compared with what that module returns.
* **heads**: sum of head results + bias against the attention's write; **zero head**: zeroing a head by edit against
  zeroing its part of W_O in the bare model.
* **sweep**: wave front against one forward per unit (heads, results, writes, neurons, tokens; zero, foreign values).
* **text tower**: difference of its output; **second size**: an image size that is not the model's own and not square
  (where upstream takes such), and the difference of the output there.
"""

COLUMNS = ["model", "output", "all captured", "gradients", "sites", "native", "heads", "zero head", "sweep"]
COLUMNS += ["text tower", "second size"]


def render(table: Mapping[str, Any]) -> str:
    """The page."""
    lines = [INTRODUCTION]
    for source, models in table["sources"].items():
        lines += [
            f"## {source}",
            "",
            "| " + " | ".join(COLUMNS) + " |",
            "|" + "---|" * len(COLUMNS),
        ]
        lines += [_line(name, towers) for name, towers in models.items()]
        lines.append("")
    return "\n".join(lines)


def _line(name: str, towers: Sequence[Mapping[str, Any]]) -> str:
    first, texts = towers[0], [tower for tower in towers if tower["wave"] is None]
    cells = [
        name,
        *(_figure(first[key]) for key in ("outputs", "hooked", "gradients")),
        f"{first['sites']}",
        f"{first['native']}",
        *(_figure(first[key]) for key in ("head_sum", "zero_head", "wave")),
        _figure(texts[0]["outputs"]) if texts else "",
        _second_size(first),
    ]
    return "| " + " | ".join(cells) + " |"


def _second_size(tower: Mapping[str, Any]) -> str:
    if (size := tower["other_size"]) is not None:
        return f"{size[0]} x {size[1]}: {_figure(tower['other_outputs'])}"
    return "" if tower["wave"] is None else "one size"


def _figure(value: float | None) -> str:
    if value is None:
        return ""
    return "0" if value == 0 else f"{value:.0e}"
