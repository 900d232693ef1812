"""One call: learn a subspace for a variable, compare it with everything simpler, and diagnose it (methods2.md 16.2).

1. Drop images without the behaviour, split the others by image (:mod:`circuits.subspace.splits`).
2. Learn a subspace for every k and seed on train pairs (:mod:`circuits.subspace.das`).
3. k is the smallest whose median accuracy over seeds, on validation pairs, is within `saturation` of the best; the seed
   is the best of that k on validation pairs. A spare row is where dead directions hide, so never take more.
4. Report on test pairs, beside: no edit, full swap, mean difference, probe, PCA, random rows, given directions (of a
   dictionary, say), the same training on shuffled values, and on a model with random weights if one is given.
5. Diagnose the chosen subspace (:mod:`circuits.subspace.diagnosis`); that cannot be left out.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import polars as pl

from circuits.subspace.accuracy import Accuracy, accuracy_of, judge, patched
from circuits.subspace.boundless import BoundlessSettings, train_boundless
from circuits.subspace.das import DasSettings, Trained, train_das
from circuits.subspace.diagnosis import diagnose
from circuits.subspace.directions import BASELINES, baseline_rows
from circuits.subspace.draws import Drawer, Draws
from circuits.subspace.interchange import Rows, checked_rows
from circuits.subspace.manifold import Manifold
from circuits.subspace.splits import FRACTIONS, Splits, split_images
from circuits.subspace.study import SubspaceStudy
from circuits.subspace.tail import Tail
from circuits.subspace.variable import Variable
from mechvis.errors import BadData, OutOfRange, ShapeMismatch
from mechvis.progress import track
from mechvis.provenance import provenance

RANDOM_DRAWS = 5
"""Random subspaces per k."""


def subspace_study(
    tail: Tail,
    variable: Variable,
    *,
    ks: Sequence[int] = (1, 2, 4),
    seeds: int = 5,
    settings: DasSettings | None = None,
    held_out: Any = None,
    within: Any = None,
    together: Any = None,
    fractions: tuple[float, float, float] = FRACTIONS,
    max_dropped: float = 0.1,
    pairs: int = 2000,
    saturation: float = 0.02,
    directions: Mapping[str, Rows] | None = None,
    random_tail: Tail | None = None,
    control_seeds: int = 2,
    boundless: BoundlessSettings | None = None,
    seed: int = 0,
    progress: bool = True,
) -> SubspaceStudy:
    """Find where a variable is, and how far to believe it.

    Args:
        tail: activations at a hook and the model behind them: :func:`circuits.subspace.site_tail`. The model stays as
            it is.
        variable: what should be swapped, with the right answers.
        ks: numbers of rows to try.
        seeds: subspaces per k; stability needs several.
        settings: of the training.
        held_out: bool per image: images (of some values, some backgrounds) for the second test only. None: the
            generalisation is reported as not measured.
        within: one name per image; a source shares its base's (the background, say, when the object is swapped).
        together: one name per image; images of one name stay in one split.
        fractions: shares of train, validation and test images.
        max_dropped: largest share of images whose answer is not the high-level model's.
        pairs: test and validation pairs, about: every image is a base equally often.
        saturation: how far below the best accuracy a smaller k may be.
        directions: further baselines by name: directions `[direction width]`, orthonormal, best first.
        random_tail: the same hook and images of a model with random weights.
        control_seeds: subspaces of the shuffled and of the random-weight control.
        boundless: also learn a subspace whose size is learnt.
        seed: of the splits, the pairs and the random baselines; learnt subspaces have the seeds 0, 1, ...
        progress: show a progress bar.

    Returns:
        SubspaceStudy: prints itself; `save`, `load`, `report`, `edit`.

    Raises:
        RefusedMethod: the behaviour does not exist on too many images.
        OutOfRange: a k outside of 1 to the width, or no seed.
        ShapeMismatch, BadData, NotFinite, TrainMode.

    Example:
        >>> tail = site_tail(model, images, "blocks.3.hook_resid_post")                      # doctest: +SKIP
        >>> study = subspace_study(tail, label_variable(images), ks=(1, 2, 4, 7))            # doctest: +SKIP
        >>> study                                                                            # doctest: +SKIP
        SubspaceStudy: 'label' at blocks.3.hook_resid_post, token 0 (width 128): k = 7, not flagged
    """
    started = time.perf_counter()
    settings = settings or DasSettings()
    ks = _checked(tail, variable, ks, seeds, control_seeds, directions, random_tail)
    tail.check()
    split = split_images(
        variable,
        tail.clean.argmax(1),
        held_out=held_out,
        together=together,
        fractions=fractions,
        max_dropped=max_dropped,
        seed=seed,
    )
    drawers = {"validation": split.validation, "test": split.test, "train": split.train, "unseen": split.unseen}
    drawn = {
        name: Drawer(images, within=within, seed=seed).rounds(pairs)
        for name, images in drawers.items()
        if images is not None
    }
    _ask_for_change(variable, drawn["test"])
    table = _Curve(tail, variable, drawn, seed)
    manifold = Manifold.of(tail.h[split.train]) if settings.penalty else None
    options = {"settings": settings, "within": within}
    jobs = len(ks) * seeds + control_seeds * (1 + (random_tail is not None)) + (boundless is not None)
    with track(jobs, f"learning subspaces of {variable.name}", " subspaces", show=progress) as bar:
        found: dict[int, list[Trained]] = {}
        for k in ks:
            found[k] = []
            for number in range(seeds):
                learnt = train_das(tail, variable, split.train, k=k, seed=number, manifold=manifold, **options)
                found[k].append(learnt)
                for name in ("test", "validation"):
                    table.add("DAS", k, number, name, learnt.rows)
                bar.update(1)
        k, chosen = _choose(table, found, saturation)
        _baselines(table, tail, variable, split, ks, directions or {}, seed)
        _controls(table, tail, variable, split, k, control_seeds, random_tail, options, bar)
        if boundless is not None:
            learnt = train_boundless(tail, variable, split.train, seed=seed, settings=boundless, within=within)
            table.add("boundless DAS", learnt.k, seed, "test", learnt.rows)
            bar.update(1)
    best = found[k][chosen]
    if split.unseen is not None:
        table.add("DAS", k, chosen, "unseen", best.rows)
    others = [learnt.rows for learnt in found[k] if learnt is not best]
    told = diagnose(tail, variable, best.rows, split, others=others, within=within, pairs=pairs, seed=seed)
    return SubspaceStudy(
        variable=variable.name,
        hook=tail.name,
        place=tail.place,
        width=tail.width,
        k=k,
        seed=best.seed,
        subspaces={f"k={k}/seed={one.seed}": one.rows for k, several in found.items() for one in several},
        curve=table.frame(),
        diagnosis=told.table,
        images=split.counts,
        settings={
            **asdict(settings),
            "ks": ks,
            "seeds": seeds,
            "pairs": pairs,
            "saturation": saturation,
            "max_dropped": max_dropped,
            "fractions": fractions,
            "within": within is not None,
            "control_seeds": control_seeds,
            "boundless": None if boundless is None else asdict(boundless),
        },
        provenance=provenance(
            tail.model, tail.images, seed=seed, timings={"study": round(time.perf_counter() - started, 3)}
        ),
    )


def _checked(
    tail: Tail,
    variable: Variable,
    ks: Sequence[int],
    seeds: int,
    control_seeds: int,
    directions: Mapping[str, Rows] | None,
    random_tail: Tail | None,
) -> tuple[int, ...]:
    if len(variable) != len(tail):
        raise ShapeMismatch(f"{variable.name!r} has {len(variable)} images, {tail.name} {len(tail)}.")
    ks = tuple(sorted(set(int(k) for k in ks)))
    if not ks or ks[0] < 1 or ks[-1] > tail.width:
        raise OutOfRange(f"ks={list(ks)}: {tail.name} has subspaces of 1 to {tail.width} rows.")
    if seeds < 1 or control_seeds < 1:
        raise OutOfRange(f"seeds={seeds}, control_seeds={control_seeds}: at least one each.")
    for name, rows in (directions or {}).items():
        if name in (*BASELINES, "DAS", "no edit", "full swap", "boundless DAS"):
            raise BadData(f"the baseline {name!r} is measured anyway; give yours another name.")
        checked_rows(rows, tail.width)
    if random_tail is not None and (len(random_tail), random_tail.width) != (len(tail), tail.width):
        raise ShapeMismatch(
            f"the random-weight tail has {len(random_tail)} images of width {random_tail.width}, "
            f"{tail.name} {len(tail)} of {tail.width}; they must be the same hook and images."
        )
    return ks


def _ask_for_change(variable: Variable, pairs: Draws) -> None:
    """An accuracy over pairs that never ask for another answer would be 1.0 for doing nothing."""
    if not bool((variable.answer(pairs.base, pairs.source) != variable.labels[pairs.base]).any()):
        raise BadData(
            f"swapping {variable.name!r} changes the right answer in none of {len(pairs)} test pairs: there is nothing "
            "to measure. Does the answer depend on the variable, and do the sources (within=) differ in it?"
        )


class _Curve:
    """The table of accuracies as it grows."""

    def __init__(self, tail: Tail, variable: Variable, drawn: dict[str, Draws], seed: int):
        self.tail, self.variable, self.drawn, self.seed = tail, variable, drawn, seed
        self.rows: list[dict[str, Any]] = []

    def add(
        self,
        method: str,
        k: int,
        seed: int,
        split: str,
        rows: Rows,
        *,
        tail: Tail | None = None,
        variable: Variable | None = None,
    ) -> None:
        tail, variable = tail or self.tail, variable or self.variable
        self.keep(method, k, seed, split, accuracy_of(tail, variable, self.drawn[split], rows, seed=self.seed))

    def keep(self, method: str, k: int, seed: int, split: str, found: Accuracy) -> None:
        self.rows.append({"method": method, "k": k, "seed": seed, "split": split, **found.row()})

    def validation(self, k: int) -> np.ndarray:
        return np.array([row["iia"] for row in self.rows if row["split"] == "validation" and row["k"] == k])

    def frame(self) -> pl.DataFrame:
        return pl.DataFrame(self.rows, infer_schema_length=None).with_columns(pl.selectors.float().fill_nan(None))


def _choose(table: _Curve, found: dict[int, list[Trained]], saturation: float) -> tuple[int, int]:
    """Smallest k that saturates, and the best of its seeds."""
    medians = {k: float(np.median(table.validation(k))) for k in found}
    best = max(medians.values())
    k = min(k for k, value in medians.items() if value >= best - saturation)
    # Equal accuracies: the lower loss at the end of the training.
    tails = [-float(one.losses[-max(1, len(one.losses) // 10) :].mean()) for one in found[k]]
    order = sorted(range(len(tails)), key=lambda i: (table.validation(k)[i], tails[i]))
    return k, order[-1]


def _baselines(
    table: _Curve,
    tail: Tail,
    variable: Variable,
    split: Splits,
    ks: tuple[int, ...],
    directions: Mapping[str, Rows],
    seed: int,
) -> None:
    h, values = tail.h[split.train], variable.values[split.train]
    for name in BASELINES:
        if name == "random":
            continue
        # Once for the largest: the smaller ones are its first rows.
        rows = baseline_rows(name, h, values.to(h.device), ks[-1], seed)
        for k in ks:
            if k <= len(rows):
                table.add(name, k, 0, "test", rows[:k])
    for k in ks:
        for draw in range(RANDOM_DRAWS):
            number = seed + draw
            table.add("random", k, number, "test", baseline_rows("random", h, values, k, number))
    for name, rows in directions.items():
        for k in ks:
            if k <= len(rows):
                table.add(name, k, 0, "test", rows[:k].to(h.device, h.dtype))
    pairs = table.drawn["test"]
    table.add("no edit", 0, 0, "test", tail.h[:0])
    swapped = judge(tail, variable, pairs, patched(tail, pairs, lambda base, source: source), seed=table.seed)
    table.keep("full swap", tail.width, 0, "test", swapped)


def _controls(
    table: _Curve,
    tail: Tail,
    variable: Variable,
    split: Splits,
    k: int,
    seeds: int,
    random_tail: Tail | None,
    options: dict[str, Any],
    bar: Any,
) -> None:
    for number in range(seeds):
        shuffled = variable.shuffled(split.groups, seed=number)
        learnt = train_das(tail, shuffled, split.train, k=k, seed=number, **options)
        for name in ("test", "train"):
            table.add("DAS, shuffled V", k, number, name, learnt.rows, variable=shuffled)
        table.add("no edit, shuffled V", 0, number, "test", learnt.rows[:0], variable=shuffled)
        bar.update(1)
    for number in range(seeds if random_tail is not None else 0):
        learnt = train_das(random_tail, variable, split.train, k=k, seed=number, **options)
        table.add("DAS, random weights", k, number, "test", learnt.rows, tail=random_tail)
        if not number:
            table.add("no edit, random weights", 0, 0, "test", learnt.rows[:0], tail=random_tail)
        bar.update(1)
