"""The results as a page."""

from collections.abc import Iterator
from typing import Any

from benchmarks.race import Row

SUBJECTS = {
    "forward": "Forward with nothing hooked",
    "caching": "Keeping activations",
    "sweeps": "Sweeps",
    "kernels": "Kernels",
}


def page(found: dict[str, Any], rows: list[Row]) -> str:
    """`results.md`.

    Args:
        found: what is known of machine and run, as `run.main` writes it.
        rows: all rows, the failed ones included.
    """
    lines = [
        "# Timings side by side",
        "",
        f"`{found['command']}`, {found['date']}: {found['machine']}, {found['threads']} thread(s), "
        + ", ".join(f"{name} {version}" for name, version in found["versions"].items())
        + ".",
        "",
        f"Times are medians of {found['clock']}, in interleaved rounds. *Ratio* is our median divided by theirs: "
        "below 1 we are faster. *Peak* is memory in MiB beyond what was there before, each in a process of its own. "
        "The machine may have been busy with other work: read the ratios. The **fastest peer** of a row is bold.",
        *(f"{note}" for note in found["notes"]),
        "",
    ]
    for subject, title in SUBJECTS.items():
        own = [row for row in rows if row.key.startswith(f"{subject}/")]
        if own:
            lines += [f"## {title}", "", *_times(own), ""]
    return "\n".join([*lines, *_goals(rows), *_bounds(rows), *_limits(found), *_notes(rows)])


def _times(rows: list[Row]) -> Iterator[str]:
    memory = any(row.peak for row in rows)
    yield "| task | contender | time (ms) | ratio |" + (" peak (MiB) |" if memory else "")
    yield "|---|---|---:|---:|" + ("---:|" if memory else "")
    for row in rows:
        if row.status == "failed":
            yield f"| {row.title} | FAILED: {_cell(row.reason)} | | |" + (" |" if memory else "")
            continue
        # Ours first, whatever order the rows were read back in (the file sorts names).
        place = {name: (name != row.ours, "mechvis" not in name, taken) for name, taken in row.seconds.items()}
        timed = sorted(row.seconds, key=place.__getitem__)
        for name in [*timed, *(name for name in row.failed if name not in row.seconds)]:
            task = row.title if name == row.ours else ""
            shown = f"**{name}**" if name == row.best_peer else name
            if name in row.seconds:
                time, ratio = f"{1000 * row.seconds[name]:.4g}", row.ratios.get(name)
            else:
                time, ratio = f"failed: {_cell(row.failed[name])}", None
            peak = f" {row.peak[name]:.1f} |" if name in row.peak else " |"
            yield f"| {task} | {shown} | {time} | {'' if ratio is None else f'{ratio:.3f}'} |" + (
                peak if memory else ""
            )


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")


def _goals(rows: list[Row]) -> list[str]:
    lines = [
        f"| {row.title} | {goal['text']} | {goal['asked']} | "
        + (
            "| not measured |"
            if goal["met"] is None
            else f"{goal['value']:.3f} | {'met' if goal['met'] else 'MISSED'} |"
        )
        for row in rows
        for goal in row.goals
    ]
    head = ["## Goals", "", "Judged to two decimals.", "", "| task | what | goal | found | |", "|---|---|---|---:|---|"]
    return [*head, *lines, ""] if lines else []


def _bounds(rows: list[Row]) -> list[str]:
    lines = []
    for row in rows:
        for name, bound in row.bounds.items():
            adds = (bound.get("multiply_adds", 0) + bound.get("low_precision", 0)) / 1e9
            ratio = classic = ""
            if bound.get("full"):
                done = bound["multiply_adds"] + bound["low_precision"]
                ratio, classic = f"{done / bound['full']:.3f}", f"{bound['classic'] / bound['full']:.3f}"
            lines.append(
                f"| {row.title} | {name} | {adds:.4g} | {ratio} | {classic} | {bound['bytes'] / 2**20:.4g} | "
                f"{1000 * bound['seconds']:.4g} | {1000 * row.seconds[name]:.4g} | {bound['share']:.0%} |"
            )
    if not lines:
        return []
    return [
        "## How far from the least",
        "",
        "Multiply-adds and bytes are counted from shapes (`benchmarks/bounds.py`), for the exact sweep that restarts "
        "each row where it differs, in one pass, and computes in the last block only what the read-out needs. "
        "*Of full* compares with one full forward per row; *classic* is the same without the shortcut for the keys and "
        "values of the last block. *Bound*: the time that this takes at the machine's limits below. Of kernels it is a "
        "copy of as many bytes.",
        "",
        "| task | who | multiply-adds (G) | of full | classic | bytes (MiB) | bound (ms) | taken (ms) | reached |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
        *lines,
        "",
    ]


def _limits(found: dict[str, Any]) -> list[str]:
    if not found["limits"]:
        return []
    lines = ["## What the machine can do", ""]
    for what, value in sorted(found["limits"].items()):
        lines.append(f"* {what}: {value:.4g}")
    return [*lines, ""]


def _notes(rows: list[Row]) -> list[str]:
    lines = [f"* {row.title} ({row.rounds} rounds): {' '.join(row.notes)}" for row in rows if row.notes]
    return ["## Notes", "", *lines, ""] if lines else []
