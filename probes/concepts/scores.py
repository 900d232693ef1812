"""From activations to TCAV scores: vectors per run, how often a step along them raises the class, and the test.

Everything here is about arrays; :mod:`probes.concepts.tcav` reads them from a model and says why runs are independent.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import polars as pl
from jaxtyping import Float

from mechvis.errors import BadData, OutOfRange, ShapeMismatch, unknown
from mechvis.record import Record, finite
from mechvis.stats import benjamini_hochberg, bootstrap, holm
from probes.concepts.cav import Classifier, cav

Correction = Literal["holm", "bh", "none"]

MOST_RANDOM_RUNS = 50
"""Random runs, where there are images for so many."""


class TCAV(Record):
    """Concepts tested for classes; `table` has one row per concept and class."""

    KIND = "tcav"

    def significant(self) -> pl.DataFrame:
        """The rows that survive the correction."""
        return self.table.filter(pl.col("significant"))

    def figures(self) -> list[Any]:
        """Scores with the spread of their runs."""
        from mechvis.plots.bars import bars
        from mechvis.report.blocks import Figure

        table = self.table
        names = [f"{row['concept']} for {row['target']}" for row in table.iter_rows(named=True)]
        effects = {name: table[name].to_numpy() - 0.5 for name in ("score", "low", "high")}
        drawn = bars(
            names,
            effects["score"],
            low=effects["low"],
            high=effects["high"],
            significant=table["significant"].to_numpy(),
            label="TCAV score - 0.5 (95 % interval over runs)",
        )
        return [Figure(drawn, "Right: the concept supports the class; left: it speaks against it.")]


def score_concepts(
    concepts: Mapping[str, Float[np.ndarray, "row d"]],
    random: Float[np.ndarray, "row d"],
    slopes: Mapping[str, Float[np.ndarray, "image d"]],
    *,
    runs: int = 20,
    fresh: bool = True,
    per_run: int | None = None,
    classifier: Classifier = "logistic",
    correction: Correction = "holm",
    level: float = 0.05,
    seed: int = 0,
    about: dict[str, Any] | None = None,
    provenance: dict[str, Any] | None = None,
) -> TCAV:
    """The same from activations and slopes that are there already.

    Args:
        concepts: name -> activations of images with the concept.
        random: activations of random images.
        slopes: class -> derivative of its logit by the same activations, one row per explained image.
        runs, fresh, per_run, classifier, correction, level, seed: see :func:`tcav`.
        about: more facts for the record.
        provenance: for the record.

    Raises:
        BadData: too few rows for independent runs.
        ShapeMismatch, NotFinite, UnknownName, OutOfRange.
    """
    if correction not in ("holm", "bh", "none"):
        raise unknown("correction", correction, ("holm", "bh", "none"))
    if runs < 3:
        raise OutOfRange(f"runs={runs}: a test over runs needs at least 3.")
    if not concepts or not slopes:
        raise BadData("give at least one concept and one class to test it for.")
    known = {**{f"the concept {name!r}": rows for name, rows in concepts.items()}, "the random images": random}
    known |= {f"slopes of {name!r}": rows for name, rows in slopes.items()}
    for name, rows in known.items():
        if np.ndim(rows) != 2 or np.shape(rows)[1] != np.shape(random)[1]:
            raise ShapeMismatch(f"{name}: rows [row {np.shape(random)[-1]}] are wanted, got {list(np.shape(rows))}.")
        finite(name, np.asarray(rows))
    generator = np.random.default_rng(seed)
    size = _size(concepts, len(random), runs, fresh, per_run)
    # The more random runs, the better is known what no concept scores; images that are left over pay for them.
    random_runs = min(max(runs, (len(random) // size - runs) // 2), MOST_RANDOM_RUNS) if fresh else runs
    random_runs = max(random_runs, runs)
    # The random runs are one set against another; concepts are measured against a third, the same for all of them.
    pools = _draws(generator, len(random), 2 * random_runs + runs, size, fresh)
    options = {"classifier": classifier}
    null = [cav(random[pools[i]], random[pools[random_runs + i]], seed=seed + i, **options) for i in range(random_runs)]
    rows, arrays = [], {}
    for name, own in concepts.items():
        sets = _draws(generator, len(own), runs, size, fresh)
        found = [
            cav(own[mine], random[theirs], seed=seed + i, **options)
            for i, (mine, theirs) in enumerate(zip(sets, pools[2 * random_runs :], strict=True))
        ]
        arrays[f"vectors/{name}"] = np.stack([each.vector for each in found])
        told = bootstrap(np.array([each.accuracy for each in found]), seed=seed)
        for target, slope in slopes.items():
            scores, chance = (_scores(slope, each) for each in (found, null))
            mean = bootstrap(scores, seed=seed)
            rows.append(
                {
                    "concept": name,
                    "target": target,
                    "score": mean.effect[0],
                    "low": mean.low[0],
                    "high": mean.high[0],
                    "random_score": float(chance.mean()),
                    "random_spread": float(chance.std(ddof=1)),
                    "as_extreme": float((np.abs(chance - 0.5) >= abs(mean.effect[0] - 0.5) - 1e-12).mean()),
                    "p": welch(scores, chance),
                    "slope": float(np.mean([(slope @ each.vector).mean() for each in found])),
                    "accuracy": told.effect[0],
                    "accuracy_low": told.low[0],
                    "accuracy_high": told.high[0],
                    "images": len(slope),
                    "runs": runs,
                    "random_runs": random_runs,
                }
            )
    p = np.array([row["p"] for row in rows])
    adjusted = {"holm": holm, "bh": benjamini_hochberg, "none": lambda values: values}[correction](p)
    for row, value in zip(rows, adjusted, strict=True):
        # A vector that cannot tell its own concept has no meaning, however consistent.
        row |= {"p_adjusted": float(value), "significant": bool(value <= level and row["accuracy_low"] > 0.5)}
    said = [
        f"{len(rows)} tests, corrected by {correction}; {runs} runs of {size} images a side, {random_runs} random ones."
    ]
    if not fresh:
        said.append(
            "Runs share images (fresh=False): the test is then too sure of itself, and random concepts come out "
            "significant far more often than the level says."
        )
    said.append("A score says in how many images the class logit would rise along the direction, not by how much.")
    said.append(
        "Significant means that the direction comes out the same again and scores otherwise than random directions do "
        "on average. A single random direction may score as high: as_extreme says how often."
    )
    first = ["concept", "target", "score", "low", "high", "random_score", "p", "p_adjusted", "significant", "accuracy"]
    table = pl.DataFrame(rows)
    return TCAV(
        title=f"TCAV of {len(concepts)} concepts for {len(slopes)} classes",
        tables={"scores": table.select(*first, *(name for name in table.columns if name not in first))},
        arrays={**arrays, "vectors/random": np.stack([each.vector for each in null])},
        facts={
            "runs": runs,
            "fresh": fresh,
            "per_run": size,
            "correction": correction,
            "level": level,
            **(about or {}),
        },
        words={
            "score": "share of the class's images whose logit rises along the concept's direction; mean over runs",
            "random_score": "the same for random images in the concept's place",
            "as_extreme": "share of random runs whose score lies at least as far from 0.5",
            "p": "Welch's t-test between these over the runs, two-sided",
            "significant": "p_adjusted <= level, and the vector tells its concept better than chance",
            "accuracy": "share of held-out images on the right side of the vector's plane; 0.5 is chance",
            "slope": "mean derivative of the logit for a step of length one along the vector",
        },
        caveats=tuple(said),
        provenance=provenance or {},
    )


def welch(first: Float[np.ndarray, " run"], second: Float[np.ndarray, " run"]) -> float:
    """Two-sided p of Welch's t-test, never below what a permutation of the runs could show (two in
    `C(n + m, n)`).

    Example:
        >>> round(welch(np.array([1.0, 1.0, 1.0]), np.array([0.0, 0.0, 0.0])), 3)
        0.1
    """
    from math import comb

    from scipy.special import stdtr

    n, m = len(first), len(second)
    one, two = first.var(ddof=1) / n, second.var(ddof=1) / m
    apart = float(first.mean() - second.mean())
    least = min(1.0, 2 / comb(n + m, n))
    if one + two == 0:
        return 1.0 if apart == 0 else least
    freedom = (one + two) ** 2 / (one**2 / (n - 1) + two**2 / (m - 1))
    return float(max(2 * stdtr(freedom, -abs(apart) / np.sqrt(one + two)), least))


def _scores(slopes: np.ndarray, vectors: Sequence[Any]) -> np.ndarray:
    return np.array([(slopes @ each.vector > 0).mean() for each in vectors])


def _size(concepts: Mapping[str, np.ndarray], n_random: int, runs: int, fresh: bool, per_run: int | None) -> int:
    """Images of each set in a run."""
    few = min(len(rows) for rows in concepts.values())
    if not fresh:
        size = min(few, n_random // 2) if per_run is None else per_run
        if size > min(few, n_random):
            raise BadData(f"per_run={size}, and there are {few} images of a concept and {n_random} random ones.")
        return size
    most = min(few // runs, n_random // (3 * runs))
    size = most if per_run is None else per_run
    if size > most or size < 4:
        needed = max(size, 8)
        raise BadData(
            f"{runs} independent runs of {needed} images need {needed * runs} images of every concept (the fewest are "
            f"{few}) and {needed * 3 * runs} random ones (there are {n_random}). Give more, ask "
            "for fewer runs, or pass fresh=False, which reuses images and is too sure of itself."
        )
    return size


def _draws(generator: np.random.Generator, n: int, count: int, size: int, fresh: bool) -> list[np.ndarray]:
    if fresh:
        order = generator.permutation(n)
        return [order[i * size : (i + 1) * size] for i in range(count)]
    return [generator.permutation(n)[:size] for _ in range(count)]
