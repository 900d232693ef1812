"""How far an estimate can be believed: some of its units measured exactly, from the top and at random.

The linearity check of faithfulness.md 2.4: attribution patching can be worthless on a confident model
(benchmark_apps.md finding 4: mean estimate 0.01 where the exact mean effect is 3.79), and nothing in its own numbers
shows it.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy import stats

from circuits.edge_patching import edge_effects
from circuits.task import Task
from mechvis.errors import OutOfRange
from mechvis.results import Result


def agreement(
    estimated: np.ndarray, exact: np.ndarray, *, top: np.ndarray, random: np.ndarray
) -> dict[str, float | int | None]:
    """Rank and sign agreement of estimated and exact mean effects.

    Args:
        estimated: mean estimate per measured unit.
        exact: mean exact effect of the same units.
        top: bool, which of them are there because their estimate is large.
        random: bool, which of them were drawn at random from all others.

    Returns:
        `spearman` and `pearson` over all measured units, `sign` (share of the top with the exact effect's sign),
        `ratio` (sum of |estimate| over sum of |exact|, top units), and `missed` (largest exact effect among the random
        ones as a share of the largest among the top).

    Example:
        >>> found = agreement(np.array([2., 1., 0.]), np.array([4., 2., 0.]),
        ...                   top=np.array([True, True, False]), random=np.array([False, False, True]))
        >>> found["sign"], found["ratio"]
        (1.0, 0.5)
    """

    def safe(function: Callable, a: np.ndarray, b: np.ndarray) -> float | None:
        if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
            return None
        return float(function(a, b).statistic)

    size = np.abs(exact)
    largest = float(size[top].max()) if top.any() else 0.0
    return {
        "n_top": int(top.sum()),
        "n_random": int(random.sum()),
        "spearman": safe(stats.spearmanr, estimated, exact),
        "pearson": safe(stats.pearsonr, estimated, exact),
        "sign": float(np.mean(np.sign(estimated[top]) == np.sign(exact[top]))) if top.any() else None,
        "ratio": float(np.abs(estimated[top]).sum() / size[top].sum()) if size[top].sum() > 0 else None,
        "missed": float(size[random].max() / largest) if random.any() and largest > 0 else None,
    }


def chosen(effects: np.ndarray, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of half of `n` units from the top (by size) and half at random among the others, as two arrays.

    Raises:
        OutOfRange: fewer than two.
    """
    if not isinstance(n, int) or n < 2:
        raise OutOfRange(f"verify={n!r}: at least two units, one from the top and one at random; 0 for none.")
    order = np.argsort(-np.abs(effects), kind="stable")
    n_top = min(len(order), (n + 1) // 2)
    rest = order[n_top:]
    drawn = np.random.default_rng(seed).choice(rest, size=min(n - n_top, len(rest)), replace=False)
    return order[:n_top], np.sort(drawn)


def with_agreement(result: Result, task: Task, n: int, *, seed: int = 0, progress: bool = True) -> Result:
    """An edge attribution with its agreement with exact patching in `provenance["agreement"]` and a column `exact`.

    Args:
        result: of :func:`circuits.attribution.eap.eap`.
        task: the same task.
        n: how many edges to measure exactly.
        seed: of the random edges.
        progress: show a progress bar.
    """
    import polars as pl

    effects = result.rows()["effect"].to_numpy()
    top, random = chosen(effects, n, seed)
    places = np.concatenate([top, random])
    exact = edge_effects(task, task.graph.places[places], progress=progress).mean(1)
    is_top = np.arange(len(places)) < len(top)
    found = agreement(effects[places], exact, top=is_top, random=~is_top)
    column = np.full(result.table.height, np.nan)
    column[places] = exact
    table = result.table.with_columns(pl.Series("exact", column).fill_nan(None))
    return replace(result, table=table, provenance={**result.provenance, "agreement": found})
