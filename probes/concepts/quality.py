"""How good is a factorisation: error, sparsity, stability, and whether what it gives back looks real.

Each method is fitted on all folds but one and measured on the one that is left (methods2.md 17.4, **A**, **K**):

==============  ===================================================================================================
column          what it is
==============  ===================================================================================================
`error`         `|A - UV| / |A|`, Frobenius, on rows that were not fitted
`sparsity`      share of codes that are zero
`stability`     mean cosine of matched concepts (Hungarian algorithm) between fits on different folds
`frechet`       distance of Gaussians fitted to `UV` and `A` (as FID), as a share of the variance of `A`
`wasserstein`   earth mover's distance between `UV` and `A`, mean over random directions, as a share of their spread
`ood`           distance of `UV` to its k-th nearest real row, over the same for the held-out rows: 1 is as real as they
==============  ===================================================================================================
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float

from mechvis.errors import BadData, OutOfRange, ShapeMismatch
from mechvis.progress import track
from mechvis.provenance import provenance
from mechvis.record import Record
from probes.concepts.factors import Factorisation, Method, factorise
from probes.concepts.planted import matched
from probes.concepts.semi_nmf import checked_rows


class Extraction(Record):
    """Methods compared; `table` has one row per method, `tables["folds"]` one per method and fold."""

    KIND = "concept_extraction"


def extraction(
    rows: Float[np.ndarray, "row d"],
    methods: Sequence[Method] = ("semi_nmf", "pca", "kmeans"),
    n_concepts: int = 20,
    *,
    groups: np.ndarray | None = None,
    folds: int = 4,
    neighbours: int = 5,
    directions: int = 64,
    most: int = 2000,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> Extraction:
    """Compare factorisations on the same rows, always on rows that were not fitted.

    Args:
        rows: activations.
        methods: see :mod:`probes.concepts.factors`.
        n_concepts: for all of them.
        groups: the image of each row: rows of one image never lie on both sides. Default: each row for itself.
        folds: how many.
        neighbours: k of `ood`.
        directions: of `wasserstein`.
        most: rows used for the distances of distributions.
        seed: of folds, directions and fits.
        progress: show a progress bar.
        options: for :func:`probes.concepts.factors.factorise`.

    Returns:
        Extraction: means over the folds, with the smallest and largest fold beside.

    Raises:
        BadData: fewer groups than folds.
        OutOfRange, ShapeMismatch, NotFinite, UnknownName.

    Example:
        >>> extraction(rows, ["semi_nmf", "pca"], 10, groups=image_of_row).table                   # doctest: +SKIP
    """
    rows = checked_rows(rows, n_concepts)
    owner = np.arange(len(rows)) if groups is None else np.asarray(groups)
    if owner.shape != (len(rows),):
        raise ShapeMismatch(f"{len(rows)} rows but {list(owner.shape)} groups.")
    if folds < 2:
        raise OutOfRange(f"folds={folds}: at least 2, one to fit and one to measure.")
    names = np.unique(owner)
    if len(names) < folds:
        raise BadData(f"{len(names)} images cannot be cut into {folds} folds.")
    generator = np.random.default_rng(seed)
    fold_of = dict(zip(names.tolist(), generator.permutation(np.arange(len(names)) % folds).tolist(), strict=True))
    fold = np.array([fold_of[name] for name in owner.tolist()])
    lines = []
    with track(len(methods) * folds, "factorisations", " fits", show=progress) as bar:
        for method in methods:
            banks = []
            for left_out in range(folds):
                fitted = factorise(rows[fold != left_out], method, n_concepts, seed=seed, **options)
                banks.append(fitted.bank)
                line = held_out(
                    fitted,
                    rows[fold != left_out],
                    rows[fold == left_out],
                    neighbours=neighbours,
                    directions=directions,
                    most=most,
                    seed=seed,
                )
                lines.append({"method": method, "fold": left_out, **line})
                bar.update(1)
            for i, line in enumerate(lines[-folds:]):
                pairs = [matched(banks[i], banks[j])[1] for j in range(folds) if j != i]
                line["stability"] = float(np.mean(pairs))
    table = pl.DataFrame(lines)
    measures = [name for name in table.columns if name not in ("method", "fold")]
    summary = table.group_by("method", maintain_order=True).agg(
        *(pl.col(name).mean() for name in measures),
        *(pl.col(name).min().alias(f"{name}_least") for name in measures),
        *(pl.col(name).max().alias(f"{name}_most") for name in measures),
        pl.len().alias("folds"),
    )
    return Extraction(
        title=f"{len(methods)} factorisations into {n_concepts} concepts",
        tables={"methods": summary, "folds": table},
        facts={"rows": len(rows), "images": len(names), "n_concepts": n_concepts, "folds": folds},
        words={
            "error": "|A - UV| / |A| on rows that were not fitted",
            "sparsity": "share of codes that are zero",
            "stability": "mean cosine of matched concepts between fits on different folds",
            "frechet": "Frechet distance of UV to A, as a share of A's variance",
            "wasserstein": "sliced earth mover's distance of UV to A, as a share of A's spread",
            "ood": "distance to the k-th real neighbour, over that of real rows",
            "least, most": "smallest and largest fold",
        },
        caveats=(
            "Stable concepts need not be used by the model, and a small error needs no concepts at all: PCA is best "
            "at it by construction.",
        ),
        provenance=provenance(seed=seed, settings={"methods": list(methods), **options}),
    )


def held_out(
    fitted: Factorisation,
    known: Float[np.ndarray, "row d"],
    rows: Float[np.ndarray, "other d"],
    *,
    neighbours: int = 5,
    directions: int = 64,
    most: int = 2000,
    seed: int = 0,
) -> dict[str, float]:
    """Measures of one factorisation on rows that it was not fitted on.

    Args:
        fitted: the factorisation.
        known: rows it was fitted on, for `ood`.
        rows: others.
        neighbours, directions, most, seed: see :func:`extraction`.
    """
    codes = fitted.encode(rows)
    again = fitted.decode(codes)
    generator = np.random.default_rng(seed)
    some = generator.permutation(len(rows))[:most]
    real = known[generator.permutation(len(known))[:most]]
    return {
        "error": float(np.linalg.norm(rows - again) / np.linalg.norm(rows)),
        "sparsity": float((np.abs(codes) <= 1e-9 * max(np.abs(codes).max(), 1e-300)).mean()),
        "frechet": frechet(again[some], rows[some]) / max(float(rows[some].var(0).sum()), 1e-300),
        "wasserstein": sliced_wasserstein(again[some], rows[some], directions=directions, seed=seed),
        "ood": neighbour_distance(again[some], real, neighbours)
        / max(neighbour_distance(rows[some], real, neighbours), 1e-300),
    }


def frechet(first: Float[np.ndarray, "row d"], second: Float[np.ndarray, "other d"]) -> float:
    """Squared Frechet distance of the Gaussians fitted to two sets of rows (the formula of FID; **K**).

    Example:
        >>> rows = np.random.default_rng(0).normal(size=(50, 2))
        >>> round(frechet(rows, rows + [3.0, 4.0]), 6)
        25.0
    """
    means = first.mean(0) - second.mean(0)
    one, two = (np.atleast_2d(np.cov(rows, rowvar=False, bias=True)) for rows in (first, second))
    values, vectors = np.linalg.eigh(one)
    root = vectors * np.sqrt(np.clip(values, 0, None)) @ vectors.T
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ two @ root), 0, None)).sum()
    return float(max(means @ means + np.trace(one) + np.trace(two) - 2 * cross, 0.0))


def sliced_wasserstein(
    first: Float[np.ndarray, "row d"], second: Float[np.ndarray, "other d"], *, directions: int = 64, seed: int = 0
) -> float:
    """Earth mover's distance along random directions, as a share of the spread (standard deviation) of `second`.

    Example:
        >>> rows = np.random.default_rng(0).normal(size=(50, 1))
        >>> round(sliced_wasserstein(rows + 2 * rows.std(), rows), 6)
        2.0
    """
    from scipy.stats import wasserstein_distance

    towards = np.random.default_rng(seed).normal(size=(second.shape[1], directions))
    towards /= np.linalg.norm(towards, axis=0)
    ours, theirs = first @ towards, second @ towards
    far = [wasserstein_distance(ours[:, i], theirs[:, i]) for i in range(directions)]
    return float(np.mean(far) / max(np.sqrt(theirs.var(0).mean()), 1e-300))


def neighbour_distance(rows: Float[np.ndarray, "row d"], known: Float[np.ndarray, "other d"], k: int = 5) -> float:
    """Mean distance to the k-th nearest of the known rows.

    Raises:
        OutOfRange: fewer than k known rows.
    """
    from sklearn.neighbors import NearestNeighbors

    if not 1 <= k <= len(known):
        raise OutOfRange(f"the {k}-th neighbour among {len(known)} rows: ask for 1 to {len(known)}.")
    return float(NearestNeighbors(n_neighbors=k).fit(known).kneighbors(rows)[0][:, -1].mean())
