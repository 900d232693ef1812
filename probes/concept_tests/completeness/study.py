"""Completeness of a set of concepts, with its controls, and each concept's share of it (ConceptSHAP).

    eta(V) = ( max_g acc(h(g(s))) - a ) / ( acc(f) - a )

s are the concept scores per location, g a decoder that is trained on them, h the rest of the model, a the accuracy of
the best constant answer. 1: the scores hold all that the model needs; 0: no better than a constant; below 0: worse.
Steps:

1. g is trained on training images and judged on test images, from several seeds;
2. the same with as many random vectors, and with a linear g, for both: g is strong, and random directions score high;
3. what the representation itself scores, untouched, which is the most that any g could reach (in a ViT whose class
   token is held still, this is below 1);
4. Shapley values of eta over the concepts: g is trained again for each set, starting from the g of all concepts. The
   value of the empty set is 0, so the values sum to eta of all, exactly; and class by class they sum to the total.

Intervals are of the test images (bootstrap), with the accuracy per image averaged over the seeds of g.

Source: Yeh et al. 2020, ConceptSHAP; methods2.md 17.1 (**C**). Where we differ (X): test images are others than those g
is trained on; Shapley values by all sets up to 8 concepts and antithetic orders beyond, with the released estimator as
an option.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechvis.errors import BadData, OutOfRange, ShapeMismatch, unknown
from mechvis.progress import track
from mechvis.provenance import provenance
from mechvis.record import Record
from probes.concept_tests.completeness.decoder import Decoder
from probes.concept_tests.completeness.judge import Judge
from probes.concept_tests.completeness.located import Located, refuse_shared
from probes.concept_tests.completeness.scores import unit_concepts
from probes.concept_tests.completeness.shapley import (
    EXACT_UP_TO,
    exact_shapley,
    kernel_shapley,
    permutation_shapley,
)

if TYPE_CHECKING:
    from mechvis.report.blocks import Block

Estimator = Literal["auto", "exact", "permutation", "kernel", "none"]
ESTIMATORS = ("auto", "exact", "permutation", "kernel", "none")
_WORDS = {
    "set": "which vectors the scores are taken with; `representation` is the untouched input of the tail",
    "decoder": "kind of g",
    "against": "what answers are compared with: the model's own, or the labels",
    "eta": "completeness: 0 as the best constant, 1 as the model",
    "low": "lower end of the 95 % interval over test images",
    "high": "upper end",
    "spread": "standard deviation over seeds of g (of random sets: over draws)",
    "eta_random_answer": "the same with the accuracy of random answers (1 / classes) in the place of the constant's",
    "accuracy": "share of test images, mean over seeds",
    "n": "test images",
    "shapley": "the concept's share of eta; the shares sum to eta of all concepts",
    "alone": "eta of this concept alone",
    "without": "eta of all others",
    "class": "images whose wanted answer it is",
}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Completeness(Record):
    """What :func:`completeness` found. Tables: `completeness`, `shapley`, `shapley_by_class`."""

    KIND = "completeness"

    def eta(self, which: str = "concepts", *, decoder: str | None = None, against: str | None = None) -> float:
        """Completeness of a set: `concepts`, `random` or `representation`; of the study's own decoder and comparison,
        or of another.

        Raises:
            BadData: not measured.
        """
        decoder = "none" if which == "representation" else decoder or self.facts["decoder"]
        return self.pick(set=which, decoder=decoder, against=against or self.facts["against"])["eta"]

    @property
    def shapley(self) -> dict[str, float]:
        """Share by concept.

        Raises:
            BadData: they were not asked for.
        """
        if "shapley" not in self.tables:
            raise BadData("no Shapley values were asked for (shapley='none').")
        return dict(self.tables["shapley"].select("concept", "shapley").iter_rows())

    def figures(self) -> "list[Block]":
        """eta of the concepts beside its controls, and each concept's share."""
        from mechvis.plots.bars import bars
        from mechvis.report.blocks import Figure

        rows = self.table.filter(pl.col("against") == self.table["against"][0])
        names = [f"{row['set']}, {row['decoder']} g" for row in rows.iter_rows(named=True)]
        low, high = (rows[end].to_numpy() for end in ("low", "high"))
        shown = [Figure(bars(names, rows["eta"].to_numpy(), low=low, high=high, label="completeness (eta)"))]
        if "shapley" in self.tables:
            drawn = bars(list(self.shapley), np.array(list(self.shapley.values())), label="share of eta (Shapley)")
            shown.append(Figure(drawn, "The shares sum to eta of all concepts."))
        return shown


def completeness(
    train: Located,
    test: Located,
    concepts: Float[Tensor, "concept d"],
    *,
    names: Sequence[str] = (),
    threshold: float = 0.2,
    normalise: bool = True,
    against: Literal["model", "labels"] = "model",
    decoder: Decoder | None = None,
    seeds: int = 3,
    random_draws: int = 3,
    shapley: Estimator = "auto",
    orders: int = 20,
    masks: int = 100,
    include: float = 0.2,
    seed: int = 0,
    progress: bool = True,
    model: Any = None,
) -> Completeness:
    """How much of a model's answers a set of concepts can carry, beside random vectors and a linear decoder.

    Args:
        train: images that g is trained on.
        test: other images, of the same representation.
        concepts: vectors; brought to unit length.
        names: of the concepts.
        threshold: of the cosine, see :func:`concept_scores`.
        normalise: likewise.
        against: the answers to reproduce. Where labels are known, the other comparison is reported as well.
        decoder: settings of g.
        seeds: of g; eta is their mean.
        random_draws: sets of as many random unit vectors.
        shapley: `exact` (2^K sets), `permutation` (antithetic orders), `kernel` (the released estimator), `none`;
            `auto`: exact for up to 8 concepts.
        orders: pairs of orders, for `permutation`.
        masks: random sets, for `kernel` (X).
        include: probability of each concept to be in one (**C**).
        seed: of everything random.
        progress: show a progress bar.
        model: whose name goes into the record.

    Returns:
        Completeness: the first table has one row per set, decoder and comparison.

    Raises:
        SplitOverlap: test images among the training images.
        ShapeMismatch: widths or names that do not fit.
        BadData: the model is hardly better than a constant answer.
        OutOfRange, UnknownName.

    Example:
        >>> found = completeness(train, test, means)                                               # doctest: +SKIP
        >>> found.eta(), found.eta("random"), found.shapley                                        # doctest: +SKIP
    """
    if shapley not in ESTIMATORS:
        raise unknown("estimator of Shapley values", shapley, ESTIMATORS)
    if seeds < 1 or random_draws < 1:
        raise OutOfRange(f"seeds={seeds}, random_draws={random_draws}: at least 1 of each (a control is not optional).")
    refuse_shared(train, test)
    vectors = unit_concepts(concepts).to(train.z)
    if not train.z.shape[2] == test.z.shape[2] == vectors.shape[1]:
        raise ShapeMismatch(
            f"training images are {train.z.shape[2]} wide, test images {test.z.shape[2]}, concepts {vectors.shape[1]}."
        )
    k = len(vectors)
    names = tuple(names) or tuple(f"concept {i}" for i in range(k))
    if len(names) != k or len(set(names)) != k:
        raise ShapeMismatch(f"{k} concepts need {k} different names, got {len(set(names))}.")
    judge = Judge(train, test, threshold, normalise, decoder or Decoder())
    comparisons = [against]
    if train.labels is not None and test.labels is not None:
        comparisons += [other for other in ("model", "labels") if other != against]
    drawn = torch.Generator().manual_seed(seed)
    random = [torch.nn.functional.normalize(_normal(vectors, drawn), dim=1) for _ in range(random_draws)]
    kinds = list(dict.fromkeys([judge.settings.kind, "linear"]))
    chosen = _estimator(shapley, k)
    sets = {"exact": 2**k, "permutation": 2 * orders * k, "kernel": masks, "none": 0}[chosen]
    total = len(comparisons) * len(kinds) * (seeds + random_draws) + sets * seeds
    rows = []
    with track(total, "completeness", " decoders", show=progress) as bar:
        firsts: list[nn.Module] = []
        for compared in comparisons:
            for kind in kinds:
                settings = replace(judge.settings, kind=kind)
                fits = [judge.fit(vectors, compared, settings, seed + i) for i in range(seeds)]
                bar.update(seeds)
                if compared == against and kind == judge.settings.kind:
                    firsts = [g for g, _ in fits]
                right = np.stack([correct for _, correct in fits])
                rows.append(judge.row("concepts", kind, compared, right, seed))
                right = np.stack([judge.fit(some, compared, settings, seed + i)[1] for i, some in enumerate(random)])
                bar.update(random_draws)
                rows.append(judge.row("random", kind, compared, right, seed))
            rows.append(judge.row("representation", "none", compared, judge.untouched(compared)[None], seed))
        tables = {"completeness": pl.DataFrame(rows)}
        if chosen != "none":
            tables |= _shares(judge, vectors, names, against, firsts, chosen, (orders, masks, include), seed, bar)
    main = tables["completeness"].row(0, named=True)
    about = {name: value for name, value in train.about.items() if name in ("layer", "prefix", "images")}
    return Completeness(
        title=f"Completeness of {k} concepts",
        tables=tables,
        arrays={"concepts": vectors.cpu().numpy()},
        facts={
            "concepts": k,
            "decoder": judge.settings.kind,
            "against": against,
            "train": len(train),
            "test": len(test),
            "model accuracy": judge.whole(against),
            "best constant": judge.constant(against),
            "shapley estimator": chosen,
            "threshold": threshold,
            "normalise": normalise,
            "seeds": seeds,
            "random draws": random_draws,
            **about,
        },
        words=_WORDS,
        caveats=_caveats(tables["completeness"], main, judge.settings.kind, about),
        provenance=provenance(model=model, seed=seed, settings={"decoder": vars(judge.settings), "against": against}),
    )


def _shares(judge, vectors, names, against, firsts, chosen, drawing, seed, bar) -> dict[str, pl.DataFrame]:
    """Shapley values, in total and by class."""
    orders, masks, include = drawing
    k, classes = len(vectors), judge.n_classes
    known: dict[tuple, np.ndarray] = {}

    def value(mask: np.ndarray) -> np.ndarray:
        key = tuple(mask)
        if key not in known:
            found = np.zeros(classes)
            if mask.any():
                fits = [
                    # All concepts: the very decoders of the first table, so that the shares sum to its eta.
                    judge.by_class(judge.right(g, vectors, against), against)
                    if mask.all()
                    else judge.by_class(
                        judge.fit(vectors, against, judge.settings, seed + i, start=g, mask=mask)[1], against
                    )
                    for i, g in enumerate(firsts)
                ]
                found = np.mean(fits, axis=0)
                bar.update(len(fits))
            known[key] = found
        return known[key]

    error: list[float | None] = [None] * k
    if chosen == "exact":
        shares = exact_shapley(value, k)
    elif chosen == "permutation":
        shares, pairs = permutation_shapley(value, k, orders=orders, seed=seed)
        if len(pairs) > 1:
            error = (pairs.sum(2).std(0, ddof=1) / np.sqrt(len(pairs))).tolist()
    else:
        shares = kernel_shapley(value, k, masks=masks, include=include, seed=seed)
    eye = np.eye(k, dtype=bool)
    table = pl.DataFrame(
        {
            "concept": list(names),
            "shapley": shares.sum(1),
            "sampling_error": pl.Series(error, dtype=pl.Float64),
            "alone": [float(value(eye[j]).sum()) for j in range(k)],
            "without": [float(value(~eye[j]).sum()) for j in range(k)],
        }
    )
    by_class = pl.DataFrame(
        {
            "concept": [name for name in names for _ in range(classes)],
            "class": list(range(classes)) * k,
            "shapley": shares.ravel(),
        }
    )
    return {"shapley": table, "shapley_by_class": by_class}


def _estimator(asked: str, k: int) -> str:
    if asked == "auto":
        return "exact" if k <= EXACT_UP_TO else "permutation"
    if asked == "exact" and k > 12:
        raise OutOfRange(f"{k} concepts have {2**k:,} sets, each with a decoder to train; use shapley='permutation'.")
    return "none" if asked == "kernel" and k < 2 else asked


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)


def _caveats(table: pl.DataFrame, main: dict, kind: str, about: dict) -> tuple[str, ...]:
    where = (pl.col("against") == main["against"]) & (pl.col("decoder") == kind)
    random = table.filter(where & (pl.col("set") == "random")).row(0, named=True)
    said = [
        f"As many random vectors reach {random['eta']:.3f}: only what is above that speaks for these concepts "
        f"({main['eta']:.3f} [{main['low']:.3f}, {main['high']:.3f}])."
    ]
    most = table.filter((pl.col("set") == "representation") & (pl.col("against") == main["against"]))["eta"][0]
    if most < 0.9:
        said.append(
            f"The untouched representation reaches {most:.3f} through this tail; no concepts can be expected to reach "
            "more."
        )
    if about.get("prefix") == "own":
        said.append("The class token kept what it carries, so the answer can pass by the concepts.")
    if main["low"] <= random["eta"]:
        said.append("The interval holds what random vectors reach: these concepts are not shown to be better.")
    return tuple(said)
