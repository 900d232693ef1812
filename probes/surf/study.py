"""Which concept method says the truth about a classifier? SURF of several methods on images that none of them saw.

Two rows bound the table: `perfect` (the class weights themselves) and `nothing` (a surrogate that gives every image the
mean logits). A method below `random` of the same size explains less than random directions do.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from mechvis.data.images import ImageSet, refuse_overlap
from mechvis.errors import BadData
from mechvis.provenance import provenance
from mechvis.record import Record
from mechvis.stats import bootstrap
from probes.features import collect
from probes.null_space.head import LinearHead, linear_head
from probes.surf.explanation import Explanation
from probes.surf.methods import METHODS, cav, explain
from probes.surf.sanity import perfect
from probes.surf.surrogate import MEASURES, Evaluation, errors, pooled, surrogate

WORDS = {
    "mae": "SURF_MAE: mean absolute difference of the logits over all classes, in logits",
    "emd": "SURF_EMD: total variation between the class probabilities, 0 to 1",
    "top1": "share of images for which surrogate and model name the same class",
    "rank": "Spearman's correlation of the logits across classes",
    "concepts": "concepts per class",
    "n": "images",
}


class Surf(Record):
    """Faithfulness of concept explanations; see :func:`probes.surf.surf`."""

    KIND = "surf"

    def best(self) -> str:
        """The method with the smallest SURF_EMD, bounds and random directions left out."""
        found = self.table.filter(pl.col("role") == "method").sort("emd")
        return found["method"][0]

    def figures(self) -> list:
        """SURF_EMD of every row."""
        from mechvis.plots.bars import bars
        from mechvis.report.blocks import Figure

        table = self.table
        low, high = table["emd_low"].to_numpy(), table["emd_high"].to_numpy()
        figure = bars(table["method"].to_list(), table["emd"].to_numpy(), low=low, high=high, label="SURF_EMD")
        return [Figure(figure, "Smaller is more faithful.")]


def surf(
    explanations: Sequence[Explanation],
    evaluation: Evaluation,
    *,
    temperature: float = 1.0,
    parts: int = 5,
    seed: int = 0,
    title: str = "Faithfulness of concept explanations",
    about: dict[str, Any] | None = None,
) -> Surf:
    """SURF of given explanations on the same images.

    Args:
        explanations: at least one, with different names.
        evaluation: the head, and embeddings of images that no explanation was made from.
        temperature: logits are divided by it before the softmax of SURF_EMD.
        parts: concepts per class of the row `perfect`.
        seed: of the bootstrap.
        title: of the record.
        about: provenance.

    Returns:
        Surf: a row per explanation (`method role mae emd top1 rank` with `_low`, `_high`, `n`, `concepts`); per-image
        values in `arrays` (`mae/<method>`, ...).

    Raises:
        BadData: no explanation, or two of one name.
        ShapeMismatch, NotFinite, OutOfRange.

    Example:
        >>> surf([shared("axes", np.eye(20), data.head)], data).pick(method="axes")["mae"]         # doctest: +SKIP
        0.0
    """
    names = [each.name for each in explanations]
    if not names or len(set(names)) != len(names) or {"perfect", "nothing"} & set(names):
        raise BadData(
            f"give at least one explanation, with different names that are not 'perfect' or 'nothing': got {names}."
        )
    head, logits = evaluation.head, evaluation.logits
    whole = perfect(head, min(parts, head.weight.shape[1]), np.random.default_rng(seed))
    known = pooled(evaluation.embeddings if evaluation.fit is None else evaluation.fit)
    guesses = {each.name: surrogate(each, head, evaluation.embeddings) for each in explanations}
    guesses["perfect"] = surrogate(whole, head, evaluation.embeddings)
    guesses["nothing"] = np.broadcast_to(head(known).mean(0), logits.shape)
    sizes = {each.name: len(each.concepts[0]) for each in [*explanations, whole]} | {"nothing": 0}
    rows, arrays = [], {}
    for name, guessed in guesses.items():
        found = errors(logits, guessed, temperature=temperature)
        role = "bound" if name in ("perfect", "nothing") else "random" if name == "random" else "method"
        row: dict[str, Any] = {"method": name, "role": role, "concepts": sizes[name]}
        for measure in MEASURES:
            one = bootstrap(found[measure], seed=seed)
            row |= {measure: float(one.effect[0]), f"{measure}_low": float(one.low[0])}
            row |= {f"{measure}_high": float(one.high[0])}
            arrays[f"{measure}/{name}"] = found[measure]
        rows.append(row | {"n": len(logits)})
    table = pl.DataFrame(rows, infer_schema_length=None).with_columns(pl.col(pl.Float64).fill_nan(None)).sort("emd")
    return Surf(
        title=title,
        tables={"methods": table},
        arrays=arrays,
        facts={"temperature": temperature, "images": len(logits), "classes": len(head.weight)},
        words=WORDS,
        caveats=_caveats(table),
        provenance=about or provenance(seed=seed),
    )


def surf_of_model(
    model: Any,
    fit_images: ImageSet,
    images: ImageSet,
    *,
    methods: Sequence[str] = METHODS,
    factors: Sequence[str] = (),
    n_concepts: int = 5,
    per_class: bool = True,
    temperature: float = 1.0,
    seed: int = 0,
    progress: bool = True,
    allow_overlap: bool = False,
) -> Surf:
    """Concept methods on a wrapped classifier, compared by how well they predict it.

    Args:
        model: a wrapped classifier with a linear head.
        fit_images: images that concepts are made from.
        images: other images, to judge them on.
        methods: some of `pca`, `nmf`, `semi_nmf`, `kmeans`, `random`.
        factors: columns of the images whose values become CAVs, e.g. `["background", "colour"]`.
        n_concepts: per class, or in all.
        per_class: concepts of each class, or one dictionary.
        temperature: see :func:`surf`.
        seed: of the methods and the bootstrap.
        progress: show progress bars.
        allow_overlap: accept images that concepts were made from.

    Raises:
        SplitOverlap: concepts would be judged on the images they were made from.
        RefusedMethod: the head is not linear.
        UnknownName: no such method or column.

    Example:
        >>> surf_of_model(model, some, others, factors=["background"])                             # doctest: +SKIP
    """
    if not allow_overlap:
        refuse_overlap(fit_images, images, what="images that concepts are made from and judged on")
    head: LinearHead = linear_head(model)
    fit = collect(model, fit_images, head.site, progress=progress)
    rows = np.asarray(fit[head.site], np.float64)
    judged = np.asarray(collect(model, images, head.site, progress=progress)[head.site], np.float64)
    made = [explain(name, head, rows, n_concepts=n_concepts, per_class=per_class, seed=seed) for name in methods]
    if factors:
        made.append(cav(head, rows, {name: fit.target(name) for name in factors}))
    name = getattr(model, "name", "") or "a model"
    return surf(
        made,
        Evaluation(head=head, embeddings=judged, fit=rows),
        temperature=temperature,
        parts=n_concepts,
        seed=seed,
        title=f"Faithfulness of concept explanations of {name}",
        about=provenance(model=model, images=images, seed=seed, concepts={"per_class": per_class, "n": n_concepts}),
    )


def _caveats(table: pl.DataFrame) -> tuple[str, ...]:
    said = ["Only the last linear layer is explained: what happens before it is taken as given."]
    by_name = {row["method"]: row for row in table.iter_rows(named=True)}
    bounds = {"nothing": "the mean logits for every image", "random": "random directions of the same number"}
    for bound, words in bounds.items():
        for measure in ("mae", "emd") if bound in by_name else ():
            limit = by_name[bound][measure]
            worse = [n for n, row in by_name.items() if row["role"] == "method" and row[measure] >= limit]
            if worse:
                said.insert(0, f"By SURF_{measure.upper()} no better than {words}: {', '.join(worse)}.")
    return tuple(said)
