"""An evaluation of a circuit in words: what stands against it first, then the numbers, then what they are about."""

from typing import TYPE_CHECKING

BLOCKS = ("curve", "random edges", "random heads", "completeness", "minimality", "sensitivity")
"""What an evaluation can hold besides faithfulness and necessity, in the order in which it is said."""

if TYPE_CHECKING:
    from circuits.evaluation.evaluation import CircuitEvaluation


def summary(found: "CircuitEvaluation") -> str:
    """The whole evaluation in some lines of text."""
    facts = found.facts
    lines = [
        f"{found.title}: {facts['edges']} of {facts['n_edges']} edges, {facts['components']} of "
        f"{facts['n_components']} components ({found.level})"
    ]
    lines += [f"  ! {flag}" for flag in found.flags]
    width = max(len(name) for name in found.measures["measure"])
    for row in found.measures.iter_rows(named=True):
        ends = "" if row["low"] is None else f"[{row['low']:.3f}, {row['high']:.3f}]"
        better = f"{row['better']} is better" if row["better"] else ""
        left_out = f", {row['excluded']} left out" if row["excluded"] else ""
        end = f"n={row['n']}{left_out}"
        lines.append(f"  {row['measure']:{width}}  {row['value']:>8.4g}  {ends:18}  {end:18}  {better}".rstrip())
    lines += [f"  {name}: not run, {found.not_run[name]}" for name in BLOCKS if name in found.not_run]
    return "\n".join([*lines, f"  {scope(found)}"])


def scope(found: "CircuitEvaluation") -> str:
    """What the numbers are about, and what they are not."""
    task = found.provenance.get("task", {})
    model = (found.provenance.get("model") or {}).get("name", "this model")
    return (
        f"Measured on {task.get('n', '?')} images of {task.get('images', '?')!r} in {model}: {task.get('ablation')} "
        f"ablation, {task.get('metric')} from {found.facts['empty']:.4g} (every edge cut) to {found.facts['full']:.4g} "
        "(whole model). Says nothing about other images, classes"
        f"{'.' if found.sensitivity is not None else ', ablations or metrics.'}"
    )


def verdict(found: "CircuitEvaluation") -> str:
    """Two or three sentences."""
    share = found.facts["edges"] / found.facts["n_edges"]
    enough, needed = found.measure("faithfulness"), found.measure("necessity")
    text = (
        f"These {found.facts['edges']} edges ({share:.1%}) keep {enough['value']:.1%} of what the model does over "
        f"having every edge cut{_between(enough)}; cutting only them takes away {needed['value']:.1%}"
        f"{_between(needed)}."
    )
    for control in found.controls:
        row = control.row()
        text += (
            f" Random circuits of the same size and layer profile ({control.how}) keep {row['random median']:.1%} in "
            f"the median (95 % of them {row['random low']:.1%} to {row['random high']:.1%}; p = {control.p:.3g})."
        )
    return text


def _between(row: dict) -> str:
    return "" if row["low"] is None else f" (95 % interval {row['low']:.1%} to {row['high']:.1%})"
