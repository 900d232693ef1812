"""Roles and positional scores of heads as one HTML page.

The standard report of a result speaks of ablations. Nothing is ablated here, so these have a page of their own.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from circuits.weights.roles import LEAST, ROLES, top_roles
from mechvis.errors import ResultMismatch

if TYPE_CHECKING:
    from mechvis.report.blocks import Section
    from mechvis.results import Result

_BELIEF = {
    "head_roles": (
        "A score is a share of attention. Its control is the same share for another reason: uniform attention (cls, "
        "register), the image's popular keys (self, neighbours), other images' masks (object, background). Effect = "
        "score - control, excess = effect / (1 - control). A head is named by its largest excess, if the 95 % interval "
        "over images lies above the control, the effect survives the Benjamini-Hochberg correction over heads, and the "
        "excess is at least {least}."
    ),
    "positional": (
        "A score is the share of a pattern's squared distance from uniform attention that a prediction explains which "
        "knows nothing of the image: the mean pattern of other images, the pattern that the mean stream of other "
        "images makes through the head's own queries and keys, or one row of popular keys for all queries. Intervals "
        "are 95 % bootstrap intervals over images."
    ),
}

_SCOPE = (
    "Patterns say where a head looks. They do not say that it writes anything, or that what it writes matters: that "
    "takes an ablation or a patch. Other images may be looked at in other ways."
)


def report_heads(result: "Result", path: str | Path, *, least: float = LEAST) -> Path:
    """Write what :func:`head_roles` or :func:`positional_scores` found as one HTML file.

    Args:
        result: of either.
        path: the file.
        least: smallest excess that gives a head its name; see :func:`top_roles`.

    Raises:
        ResultMismatch: a result of something else.
        OutputNotWritable: before anything is drawn.

    Example:
        >>> report_heads(head_roles(model, images), "roles.html")                                  # doctest: +SKIP
    """
    from mechvis.report.blocks import Facts, Section, Table, Text
    from mechvis.report.build import ensure_report_path, write_report

    if result.kind not in _BELIEF:
        raise ResultMismatch(f"report_heads reads head_roles and positional, this result is of {result.kind!r}.")
    path = ensure_report_path(path)
    known = result.provenance
    facts = {
        "images": str(result.table["n"].max()),
        **known.get("roles", known.get("positional", {})),
        "seeds": ", ".join(f"{name} {seed}" for name, seed in known.get("seeds", {}).items()),
    }
    said = _BELIEF[result.kind].format(least=least)
    sections: list[Section] = []
    named = top_roles(result, least=least) if result.kind == "head_roles" else None
    if named is not None:
        caption = f"{(named['role'] != 'none').sum()} of {named.height} heads have a role."
        sections.append(Section("What was found", [Table(named, caption, bars=("excess",))]))
    sections.append(Section("How far to believe it", [Text(said), Text(_SCOPE), Facts(facts)]))
    # A map for every role that some head has; of the others the table says enough.
    drawn = set(result.metrics) if named is None else set(named["role"])
    sections += [_of_metric(result, metric, metric in drawn) for metric in result.metrics]
    model, data = (known.get(name, {}).get("name", "") for name in ("model", "data"))
    return write_report(path, result.title, f"{model} · {data}", sections, known)


def _of_metric(result: "Result", metric: str, drawn: bool) -> "Section":
    """One metric as a table over heads, and as a map."""
    from mechvis import plots
    from mechvis.report.blocks import Block, Figure, Section, Table

    rows = result.rows(metric).drop("metric")
    value = "excess" if metric in ROLES else "effect"
    rows = rows.drop([name for name in rows.columns if rows[name].null_count() == rows.height])
    rows = rows.sort(pl.col(value), descending=True, maintain_order=True)
    said = "effect: patches nearer than popular keys give" if metric == "distance" else value
    blocks: list[Block] = [Table(rows, f"{rows.height} heads; {said}.", bars=(value,))]
    if drawn:
        figure = plots.head_map(
            result.cube("layer", "head", value=value, metric=metric),
            significant=result.cube("layer", "head", value="significant", metric=metric) == 1,
            title=metric,
            label=value,
        )
        blocks.insert(0, Figure(figure, f"{metric}: {value} of every head."))
    return Section(metric, blocks)
