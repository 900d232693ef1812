"""How much of a head lies along a property, without a greedy choice: a second opinion on its name. (**X**)

A property's values (`red`, `green`, ...) span a subspace of the joint space: their embeddings minus their mean.
`inside` is the share of a head's variance that lies in it. By chance, a subspace of that dimension holds more where the
head writes along texts at all; so the comparison is with random subspaces of the same dimension inside the span of
*all* properties of the bank.

The p-values of :mod:`probes.textspan.labels` count texts and know nothing of how large a property is in the embedding;
these know nothing of texts. A name that both give is worth more than either.
"""

import numpy as np
import polars as pl
from jaxtyping import Float

from mechvis.data.text_bank import TextBank
from mechvis.data.text_encoding import directions
from mechvis.errors import BadData, OutOfRange
from mechvis.stats import benjamini_hochberg

_RANK = 1e-6
"""Singular values below this share of the largest are rounding errors."""


def subspace(bank: TextBank, pool: Float[np.ndarray, "text d_embed"], name: str) -> Float[np.ndarray, "k d_embed"]:
    """Orthonormal basis of the directions between the values of a property.

    Raises:
        UnknownName: no text is about the property.
        BadData: it has one value, so there is nothing between its values.
    """
    _, classes = directions(bank, pool, name)
    if len(classes) < 2:
        raise BadData(f"the property {name!r} has one value in {bank.name!r}; what varies needs two.")
    return orthonormal(classes - classes.mean(0))


def orthonormal(rows: Float[np.ndarray, "n d_embed"]) -> Float[np.ndarray, "k d_embed"]:
    """Orthonormal basis of the span of some vectors."""
    _, sizes, right = np.linalg.svd(rows, full_matrices=False)
    return right[sizes > _RANK * sizes[0]]


def inside(
    covariances: Float[np.ndarray, "head d_embed d_embed"],
    bank: TextBank,
    pool: Float[np.ndarray, "text d_embed"],
    *,
    draws: int = 1999,
    seed: int = 0,
) -> pl.DataFrame:
    """Share of each head's variance along each property, against random subspaces of the properties' common span.

    Args:
        covariances: of the heads.
        bank: the texts with their properties; a property of one value is left out.
        pool: their embeddings.
        draws: random subspaces.
        seed: fixes them; the same for all heads.

    Returns:
        `head property inside inside_chance inside_p inside_q`; the last is the same in all rows of a head: the p-value
        of its best property, corrected for the numbers of properties (Bonferroni) and heads (Benjamini-Hochberg).

    Raises:
        BadData: no property with two values.
        OutOfRange: fewer than 99 draws.

    Example:
        >>> from mechvis.data.text_bank import text_bank
        >>> inside(np.eye(88)[None], text_bank("scenes"), np.eye(88))["inside"].round(3).to_list()
        [0.08, 0.057, 0.08]
    """
    if draws < 99:
        raise OutOfRange(f"draws={draws}: with fewer than 99 no p-value can reach 0.01.")
    bases = {name: subspace(bank, pool, name) for name in bank.property_names if len(bank.values(name)) > 1}
    if not bases:
        raise BadData(f"no property of the text bank {bank.name!r} has two values.")
    common = orthonormal(np.concatenate(list(bases.values())))
    generator = np.random.default_rng(seed)
    totals = np.maximum(np.einsum("hdd->h", covariances), np.finfo(float).tiny)
    # A random subspace looks the same from every basis, so that of the head's own principal directions will do: the
    # variance in it is the sum of the head's eigenvalues, each times how much of its direction lies inside.
    spectra = np.stack([np.linalg.eigvalsh(common @ each @ common.T)[::-1] for each in covariances])
    used = int((spectra > _RANK**2 * spectra.max(1, keepdims=True)).sum(1).max())
    rows = []
    by_size: dict[int, np.ndarray] = {}
    for name, basis in bases.items():
        if len(basis) not in by_size:
            parts = [random_parts(generator, len(basis), len(common), used) for _ in range(draws)]
            by_size[len(basis)] = np.stack(parts) @ spectra[:, :used].T
        share = np.array([_held(each, basis) for each in covariances]) / totals
        by_chance = by_size[len(basis)] / totals
        p = (1 + (by_chance >= share - 1e-9).sum(0)) / (1 + draws)
        rows += [
            {"head": head, "property": name, "inside": float(share[head])}
            | {"inside_chance": float(by_chance[:, head].mean()), "inside_p": float(p[head])}
            for head in range(len(covariances))
        ]
    table = pl.DataFrame(rows)
    # The smallest p of a head, times the number of properties; then over the heads.
    best = table.group_by("head", maintain_order=True).agg(pl.col("inside_p").min() * len(bases))
    corrected = benjamini_hochberg(np.minimum(best["inside_p"].to_numpy(), 1.0))
    return table.join(
        best.select("head").with_columns(inside_q=corrected), on="head", how="left", maintain_order="left"
    )


def _held(covariance: np.ndarray, basis: np.ndarray) -> float:
    """Variance in the span of an orthonormal basis."""
    return float(((basis @ covariance) * basis).sum())


def random_parts(generator: np.random.Generator, k: int, d: int, r: int) -> Float[np.ndarray, " r"]:
    """How much of each of `r` of `d` orthonormal directions lies in a random subspace of `k` dimensions.

    The subspace is that of `d x k` normal numbers. Of these, the `d - r` rows that nobody asks about enter only by
    their products, which are drawn at once (Bartlett's decomposition of a Wishart matrix) where there are enough.

    Example:
        >>> parts = random_parts(np.random.default_rng(0), 3, 5, 5)
        >>> parts.sum().round(6)
        np.float64(3.0)
    """
    rows, others = generator.normal(size=(r, k)), d - r
    if others < k:
        full = np.concatenate([rows, generator.normal(size=(others, k))])
        return np.square(np.linalg.qr(full)[0]).sum(1)[:r]
    lower = np.tril(generator.normal(size=(k, k)), -1)
    lower[np.diag_indices(k)] = np.sqrt(generator.chisquare(others - np.arange(k)))
    return (rows * np.linalg.solve(rows.T @ rows + lower @ lower.T, rows.T).T).sum(1)
