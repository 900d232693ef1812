"""The card of a planted model: certificate and twin side by side."""

from pathlib import Path
from typing import Any

from mechvis.testing.trained.gates import Gate
from mechvis.testing.trained.task import PlantedTask


def write_card(folder: Path, task: PlantedTask, *, planted: dict[str, Any], twin: dict[str, Any]) -> Path:
    """Write `README.md`.

    Args:
        folder: of the model.
        task: its task.
        planted: content of the planted model's `certificate.json`.
        twin: of the twin's.

    Returns:
        The card.
    """
    is_twin = folder.name.endswith("-twin")
    beside = {row["name"]: row for row in twin["gates"]}
    rows = []
    for row in planted["gates"]:
        gate = Gate(**{key: row[key] for key in ("name", "value", "low", "high")})
        rows.append(f"| {gate.name} | {gate.bounds} | {_word(row)} | {_word(beside.get(gate.name))} |")
    per_place = "\n".join(
        f"| `{place}` | {row['variable']} | {row['changed rows']} | {row['accuracy']:.3f} "
        f"| {twin['figures']['interchange'][place]['accuracy']:.3f} |"
        for place, row in planted["figures"]["interchange"].items()
    )
    edge = planted["figures"]["edge ratio"]
    kind = "the twin: trained on behaviour alone, **nothing is planted**" if is_twin else "a planted program"
    own = (twin if is_twin else planted)["plan"]
    module = task.name.replace("-", "_")
    text = f"""# {folder.name}

{task.summary[0].upper()}{task.summary[1:]}. This is {kind}.

* 32 x 32 pixels, patch 8, 2 layers of 4 heads of 12, MLP 96, 48,000 parameters, float32.
* Trained {own["steps"]} steps of {own["batch"]} fresh images, seed {own["seed"]}
  ({(twin if is_twin else planted)["curve"]["seconds"]:.0f} s on one CPU thread of a busy machine). Build both again:
  `python -m mechvis.testing.trained.build {module} --seed {own["seed"]} --out folder`. Bits depend on the processor.
* Open: `mechvis.testing.trained.load("{task.name}", seed={own["seed"]}{", twin=True" if is_twin else ""})`, or
  `mechvis.load(folder)`. Where the program is: `truth.json`. All figures: `certificate.json`.

## Certificate

{planted["figures"]["n"]} held-out images (effects and subsets: a quarter). The twin is measured against the planted
model's places.

| check | bound | planted | twin |
| --- | --- | --- | --- |
{chr(10).join(rows)}

Interchange accuracy on the rows whose label the exchange changes:

| place | variable | rows | planted | twin |
| --- | --- | --- | --- | --- |
{per_place}

Largest mean effect of an edge outside the circuit: {edge["effect"]:.2f} (`{edge["worst"]}`), smallest of an active
edge: {edge["weakest effect"]:.2f} (`{edge["weakest"]}`).
"""
    path = folder / "README.md"
    path.write_text(text, encoding="utf-8")
    return path


def _word(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    return "infinite" if row["value"] is None else f"{row['value']:.3f}"
