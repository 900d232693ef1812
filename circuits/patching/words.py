"""What a result of activation patching says, in words: for the terminal, and as a page with the caveats in it."""

from pathlib import Path
from typing import Any

from mechvis.cli import columns
from mechvis.errors import ResultMismatch
from mechvis.report.blocks import Block, Facts, Note, Section, Text
from mechvis.report.result import report_result
from mechvis.results import Result

UNCLEAR = 0.2
"""Share of tiny, reversed or undistinguished pairs beyond which a page warns."""

_MEANING = (
    "Noise: the clean image runs with the corrupt value of one unit put in; the share is how much of the difference "
    "between clean and corrupt is lost (necessary). Denoise: the corrupt image runs with the clean value put in; the "
    "share is how much comes back (sufficient). 1 is the whole difference, below 0 works against it. Where parts can "
    "stand in for each other noising finds nothing, where they need each other denoising finds nothing: read both."
)


def summary(result: Result, k: int = 10) -> str:
    """Counts of the pairs, then the first units of each metric and direction.

    Args:
        result: of :func:`circuits.patching.patch.patch`.
        k: rows per metric and direction.

    Raises:
        ResultMismatch: another kind of result.

    Example:
        >>> print(summary(found, 5))                                                               # doctest: +SKIP
    """
    facts = _facts(result)
    parts = [f"{result.title}\n{_sentence(facts)}"]
    for metric in result.metrics:
        rows = [
            (row["unit"], f"{row['effect']:+.3f}", _interval(row, "low", "high"), f"{row['raw']:+.4g}", row["n"],
             "yes" if row["significant"] else "")
            for row in result.top(k, metric=metric).iter_rows(named=True)
        ]  # fmt: skip
        total = result.rows(metric).height
        heading = ("unit", "share", "95 % interval", "effect", "pairs", "survives FDR")
        parts.append(f"{metric}: {min(k, total)} of {total} units\n{columns(rows, heading)}")
    return "\n\n".join(parts)


def report(result: Result, path: str | Path) -> Path:
    """The standard page of a result, with what patching means and what is known of the pairs.

    Args:
        result: of :func:`circuits.patching.patch.patch`.
        path: the HTML file.

    Raises:
        ResultMismatch: another kind of result.
        OutputNotWritable: says what and why, before anything is drawn.

    Example:
        >>> report(found, "patching.html")                                                         # doctest: +SKIP
    """
    facts = _facts(result)
    lines: dict[str, Any] = {
        "pairs": f"{facts['n']:,} ({facts['pairs']})",
        "one prediction for both halves": f"{facts['undistinguished']:,}",
        "one class for both halves": f"{facts['one_class']:,}",
        "the share is a": facts["aggregate"].replace("_", " "),
        "intervals": facts["interval"],
    }
    for name, known in facts["metrics"].items():
        lines[name] = f"{known['clean']:.4g} clean, {known['corrupt']:.4g} corrupt"
        lines[f"{name}: pairs that hardly change it, that raise it"] = f"{known['tiny']:,}, {known['reversed']:,}"
    blocks: list[Block] = [*_warnings(facts), Text(_MEANING), Facts(lines)]
    return report_result(result, path, sections=[Section("Clean and corrupt", blocks)])


def _warnings(facts: dict[str, Any]) -> list[Block]:
    found = {"the model predicts one class for both halves": facts["undistinguished"]}
    for name, known in facts["metrics"].items():
        found[f"{name} hardly differs between the halves"] = known["tiny"]
        found[f"{name} is higher on the corrupt half"] = known["reversed"]
    return [
        Note("warning", f"In {count} of {facts['n']} pairs {what}; shares say little about these.")
        for what, count in found.items()
        if count > UNCLEAR * facts["n"]
    ]


def _facts(result: Result) -> dict[str, Any]:
    facts = result.provenance.get("patching")
    if result.kind != "activation_patching" or facts is None:
        raise ResultMismatch(f"{result.title!r} is no activation patching (kind {result.kind!r}).")
    return facts


def _sentence(facts: dict[str, Any]) -> str:
    metrics = "; ".join(
        f"{name} {known['clean']:.4g} clean, {known['corrupt']:.4g} corrupt, {known['tiny']} pairs hardly differ, "
        f"{known['reversed']} the other way round"
        for name, known in facts["metrics"].items()
    )
    return (
        f"{facts['n']} pairs, {facts['undistinguished']} with one prediction for both halves; {metrics}. Shares are "
        f"{'ratios of means' if facts['aggregate'] == 'ratio_of_means' else 'means of ratios'}."
    )


def _interval(row: dict[str, Any], low: str, high: str) -> str:
    return "none" if row[low] is None or row[high] is None else f"[{row[low]:+.3f}, {row[high]:+.3f}]"
