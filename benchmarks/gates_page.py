"""The page of the gate-power experiment, from its rows."""

from typing import Any

from benchmarks.gates_rules import MARGIN, failed_gates
from mechvis.cards import thresholds

HEAD = """# Do the gates catch wrong explanations?

Made by `python -m benchmarks.gates`. A seed is a subject: one of fifteen trained models with planted evidence, 24
images of its own, and the seed of everything drawn. *Caught*: at least one gate fails. Asked for: known-bad explainers
caught in at least 95 % of the cases, and exact ones in at most 5 % (false alarms).

The gates are those of a smoke card. G6 and G7 are decided by the card's rules of today from the numbers that were kept
(`benchmarks/gates_rules.py`): mean AUROC on planted models of at least {planted}, mean contest of at least {contest};
a random map must be beaten, and a prior may not be better by more than {margin:.0%} of its own advantage over a random
map. G7 is asked with 8 images of each planted model, as in a smoke card.

Gates: G2 completeness, G3 random weights, G4 another class, G5 batch and seed, G6 a random map (a) and priors (b
centre, c norm of the input), G7 planted evidence (a all patches, b decoys), G8 finite, G9 fresh data.
"""


FRESH = (
    "Thresholds and two rules were set after the tables above. These are twenty other seeds: other images and draws, "
    "the same fifteen models."
)


def counts(rows: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Explainer -> seeds, caught, and how often each gate failed."""
    found: dict[str, dict[str, Any]] = {}
    for key in sorted(rows, key=lambda key: int(key.rsplit("/", 1)[1])):
        name = key.rsplit("/", 1)[0]
        one = found.setdefault(name, {"n": 0, "caught": 0, "by": {}, "missed": []})
        failed = failed_gates(rows[key])
        one["n"] += 1
        one["caught"] += bool(failed)
        if not failed:
            one["missed"].append(rows[key]["subject"])
        for id in failed:
            one["by"][id] = one["by"].get(id, 0) + 1
    return found


def page(rows: dict[str, Any], fresh: dict[str, Any] | None = None) -> str:
    """The page: rows of the seeds that chose thresholds, and of others."""
    lines = [HEAD.format(planted=thresholds.PLANTED, contest=thresholds.CONTEST, margin=MARGIN), *_tables(rows, "##")]
    if fresh:
        lines += ["## On seeds that chose no threshold", "", FRESH, "", *_tables(fresh, "###")]
    return "\n".join(lines).rstrip() + "\n"


def _tables(rows: dict[str, Any], mark: str) -> list[str]:
    """A table per kind of explainer."""
    all_counts = counts(rows)
    kinds = {
        "Known-bad explainers of patches": lambda name: ":" not in name,
        "Exact methods: every catch is a false alarm": lambda name: name.startswith("good:"),
        "Honest methods with known limits": lambda name: name.startswith("limited:"),
        "Known-bad rankings of heads": lambda name: name.startswith("ranking:") and "exact" not in name,
        "Exact rankings of heads: every catch is a false alarm": lambda name: name.startswith("ranking: exact"),
    }
    lines: list[str] = []
    for title, belongs in kinds.items():
        own = {name: one for name, one in all_counts.items() if belongs(name)}
        if not own:
            continue
        caught, n = (sum(one[word] for one in own.values()) for word in ("caught", "n"))
        lines += [f"{mark} {title}", "", f"{caught} of {n} ({100 * caught / n:.1f} %).", ""]
        lines += ["| explainer | caught | gates that failed (how often) | passed on |", "|---|---|---|---|"]
        for name, one in own.items():
            by = ", ".join(f"{id} {count}" for id, count in sorted(one["by"].items(), key=lambda item: -item[1]))
            passed = ", ".join(one["missed"]) if len(one["missed"]) <= 6 else f"{len(one['missed'])} subjects"
            lines.append(f"| {name.split(': ')[-1]} | {one['caught']} of {one['n']} | {by} | {passed} |")
        lines.append("")
    return lines
