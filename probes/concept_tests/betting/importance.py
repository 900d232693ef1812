"""Which concepts matter for an output: all of them tested, ranked by how soon they are told, and corrected for.

1. each concept is tested in many orders of the images (:mod:`probes.concept_tests.betting.single`);
2. importance = share of orders that reject, and mean of `1 - tau / tau_max`: a test that needs few images to reject has
   seen a strong dependence. tau depends on the order, which is why it is averaged;
3. rank by mean tau;
4. the wealths where runs stopped are e-values, and their mean over orders is one (X): e-BH over the concepts, and the
   greedy form of the released code beside it. Runs go on to a wealth of K / alpha for that.

How far to believe it: the orders are of the same images, so their spread is no sampling error of images; validity comes
from each single run. Concepts that hang together all matter to the global test; the conditional one asks for what a
concept adds, and is as good as its sampler, whose check is in the table.

Source: SKIT, methods2.md 17.7 (**C**), 20.5.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl
from jaxtyping import Float

from mechvis import stats
from mechvis.errors import BadData, ShapeMismatch, unknown
from mechvis.progress import track
from mechvis.provenance import provenance
from mechvis.record import Record
from probes.concept_tests.betting.kernels import Widths
from probes.concept_tests.betting.many import e_bh, e_bh_greedy
from probes.concept_tests.betting.sampler import ConditionalSampler, sampler_check, scores
from probes.concept_tests.betting.single import columns, conditional_test, global_test, local_test
from probes.concept_tests.betting.wealth import ALPHA, TAU_MAX, Outcome

if TYPE_CHECKING:
    from mechvis.report.blocks import Block

_WORDS = {
    "rank": "1 is told soonest",
    "rejection_rate": "share of orders in which the wealth reached 1 / alpha",
    "importance": "mean over orders of 1 - tau / tau_max",
    "low": "lower end of its 95 % interval over orders of the same images",
    "high": "upper end",
    "tau": "mean number of steps until rejection; tau_max where there was none",
    "e_value": "mean over orders of the wealth where the run stopped",
    "rejected": "by e-BH over all concepts",
    "rejected_greedy": "by the greedy form of e-BH",
    "sampler_p": "p of the check of the conditional sampler; small: do not trust this row",
    "correlation": "Spearman correlation of score and output, for the sign",
}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ConceptImportance(Record):
    """What :func:`concept_importance` found; one row per concept, most important first."""

    KIND = "concept_importance"

    @property
    def ranking(self) -> tuple[str, ...]:
        """Concepts, most important first."""
        return tuple(self.table["concept"])

    @property
    def rejected(self) -> tuple[str, ...]:
        """Concepts whose independence is rejected by e-BH."""
        return tuple(self.table.filter(pl.col("rejected"))["concept"])

    def figures(self) -> "list[Block]":
        """Importance as bars, those that e-BH does not reject pale."""
        from mechvis.plots.bars import bars
        from mechvis.report.blocks import Figure

        # An interval that could not be made (one order) is none: bars draws nothing for NaN.
        low, high = (self.table[end].cast(pl.Float64).fill_null(float("nan")).to_numpy() for end in ("low", "high"))
        values, sure = self.table["importance"].to_numpy(), self.table["rejected"].to_numpy()
        drawn = bars(
            self.ranking, values, low=low, high=high, significant=sure, label="importance (mean of 1 - tau / tau_max)"
        )
        return [Figure(drawn, "Pale: not rejected by e-BH. Intervals are over orders of the same images.")]


def concept_importance(
    y: Float[np.ndarray, " image"],
    z: Float[np.ndarray, "image concept"],
    *,
    names: Sequence[str] = (),
    kind: Literal["global", "conditional"] = "global",
    reference: Float[np.ndarray, "other concept"] | None = None,
    reference_ids: Sequence[str] = (),
    ess: float | None = None,
    alpha: float = ALPHA,
    tau_max: int = TAU_MAX,
    orders: int = 100,
    widths: Widths | None = None,
    ids: Sequence[str] = (),
    seed: int = 0,
    progress: bool = True,
    model: Any = None,
    images: Any = None,
) -> ConceptImportance:
    """Test and rank all concepts of a set.

    Args:
        y: output per image: a logit, a logit difference, an embedding.
        z: concept scores.
        names: of the concepts.
        kind: `global`: is the output independent of the score; `conditional`: given all other scores.
        reference: scores of other images, for the sampler of the conditional test.
        reference_ids: names of those images, to refuse them among the tested ones.
        ess: of the sampler, see :class:`ConditionalSampler`.
        alpha: level of each run, and false discovery rate of e-BH.
        tau_max: longest run.
        orders: permutations of the images (**C**).
        widths: of the kernels.
        ids: names of the images; one that comes twice is refused.
        seed: of orders and draws.
        progress: show a progress bar.
        model: whose name goes into the record.
        images: likewise.

    Raises:
        UnknownName: another kind.
        SplitOverlap: tested images in the reference.
        BadData: a conditional test without reference, a global one with it; too few images; a constant score.
        ShapeMismatch, NotFinite, OutOfRange.

    Example:
        >>> found = concept_importance(logit, scores, names=names, ids=images.ids)                 # doctest: +SKIP
        >>> found.ranking[:3], found.rejected                                                      # doctest: +SKIP
    """
    if kind not in ("global", "conditional"):
        raise unknown("kind of test", kind, ("global", "conditional"))
    if (reference is None) == (kind == "conditional"):
        raise BadData(
            "reference= holds other images for the sampler of the conditional test; give it there and only there."
        )
    y, z = columns("outputs", y), scores(z)
    names = _named(names, z.shape[1])
    if constant := [name for name, one in zip(names, z.std(0), strict=True) if one == 0]:
        raise BadData(f"the score of {constant[0]!r} is the same for all images; leave the concept out.")
    shared = {"alpha": alpha, "tau_max": tau_max, "orders": orders, "widths": widths, "ids": ids, "seed": seed}
    shared["stop"] = len(names) / alpha
    sampler = None if reference is None else ConditionalSampler(reference, ess=ess, ids=reference_ids)
    outcomes, checks = [], []
    with track(len(names), "importance by betting", " concepts", show=progress) as bar:
        for concept in range(len(names)):
            if sampler is None:
                outcomes.append(global_test(y, z[:, concept], **shared))
            else:
                outcomes.append(conditional_test(y, z, concept, sampler, **shared))
                checks.append(sampler_check(sampler, z, concept, seed=seed))
            bar.update(1)
    said = ["The interval is over orders of the same images, not over images."]
    if kind == "global":
        said.append("Scores that hang together all depend on the output: the conditional test asks what each adds.")
    elif min(stats.holm(np.array(checks))) < alpha:
        bad = [name for name, p in zip(names, stats.holm(np.array(checks)), strict=True) if p < alpha]
        said.append(f"The sampler fails its check for {', '.join(bad)}: their rows may reject for that reason alone.")
    more = {"correlation": [_spearman(y[:, 0], z[:, j]) for j in range(len(names))]} if y.shape[1] == 1 else {}
    if checks:
        more["sampler_p"] = checks
    return _record(
        f"Importance of {len(names)} concepts by {kind} tests", names, outcomes, more, said, seed,
        {"kind": kind, "images": len(y), "orders": orders, "alpha": alpha}, model, images,
    )  # fmt: skip


def local_importance(
    z: Float[np.ndarray, " concept"],
    reference: Float[np.ndarray, "other concept"],
    outputs: Float[np.ndarray, " other"],
    *,
    names: Sequence[str] = (),
    given: Sequence[int] = (),
    draws: Literal["weights", "nearest"] = "weights",
    ess: float | None = None,
    alpha: float = ALPHA,
    tau_max: int | None = None,
    orders: int = 20,
    widths: Widths | None = None,
    seed: int = 0,
    progress: bool = True,
    model: Any = None,
) -> ConceptImportance:
    """Which concepts of one image matter for what the model says to it.

    Args:
        z: the image's scores.
        reference: scores of other images, which stand for drawn ones.
        outputs: the model's output for those.
        names: of the concepts.
        given: concepts that are held throughout, and not tested.
        draws: how reference images stand for drawn ones, see :func:`local_test`.
        tau_max: longest run; default 400, at most the effective number of images.
        ess, alpha, widths, seed, progress, model: as in :func:`concept_importance`.
        orders: runs, each with its own draws.

    Raises:
        ShapeMismatch, NotFinite, OutOfRange, BadData.

    Example:
        >>> local_importance(z[3], z_of_others, logits_of_others, names=names).ranking[0]          # doctest: +SKIP
        'star'
    """
    sampler = ConditionalSampler(reference, ess=ess)
    names = _named(names, sampler.n_concepts)
    tested = [j for j in range(len(names)) if j not in set(given)]
    if not tested:
        raise BadData("all concepts are given; none is left to test.")
    shared = {"alpha": alpha, "tau_max": tau_max, "orders": orders, "widths": widths, "seed": seed, "given": given}
    shared["draws"] = draws
    outcomes = []
    with track(len(tested), "importance by betting", " concepts", show=progress) as bar:
        for concept in tested:
            outcomes.append(local_test(z, concept, sampler, outputs, stop=len(tested) / alpha, **shared))
            bar.update(1)
    held = ", ".join(names[j] for j in given) or "none"
    said = ["The interval is over runs with other draws of the same reference images, not over images."]
    return _record(
        f"Importance of {len(tested)} concepts for one image", [names[j] for j in tested], outcomes, {}, said, seed,
        {"kind": "local", "given": held, "reference": len(sampler.reference), "orders": orders, "alpha": alpha},
        model, None,
    )  # fmt: skip


def _named(names: Sequence[str], k: int) -> tuple[str, ...]:
    names = tuple(names) or tuple(f"concept {j}" for j in range(k))
    if len(names) != k or len(set(names)) != k:
        raise ShapeMismatch(f"{k} concepts need {k} different names, got {len(set(names))}.")
    return names


def _record(title, names, outcomes: list[Outcome], more, said, seed, facts, model, images) -> ConceptImportance:
    e_values = np.array([found.wealth.mean() for found in outcomes])
    steps, alpha = outcomes[0].steps, outcomes[0].alpha
    per_order = np.stack([1 - found.tau / steps for found in outcomes])
    interval = stats.bootstrap(per_order, seed=seed)
    table = pl.DataFrame(
        {
            "concept": list(names),
            "importance": per_order.mean(1),
            "low": interval.low,
            "high": interval.high,
            "rejection_rate": [float(found.rejected.mean()) for found in outcomes],
            "tau": [float(found.tau.mean()) for found in outcomes],
            "e_value": e_values,
            "rejected": e_bh(e_values, alpha),
            "rejected_greedy": e_bh_greedy(e_values, alpha),
            **more,
        }
    ).with_columns(pl.col("low", "high").fill_nan(None))
    table = table.sort("tau", "e_value", descending=[False, True], maintain_order=True).with_row_index("rank", offset=1)
    table = table.select(
        "concept", pl.col("rank").cast(pl.Int64), *(c for c in table.columns if c not in ("concept", "rank"))
    )
    return ConceptImportance(
        title=title,
        tables={"importance": table},
        arrays={"tau": np.stack([found.tau for found in outcomes]), "wealth": np.stack([f.wealth for f in outcomes])},
        facts={**facts, "tau_max": steps, "concepts": len(names)},
        words=_WORDS,
        caveats=tuple(said),
        provenance=provenance(model=model, images=images, seed=seed),
    )


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic) if a.std() > 0 else 0.0
