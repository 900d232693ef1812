"""Copying: does a head write what it reads?

    score = sum(lambda) / sum(|lambda|),    lambda: eigenvalues of W_V W_O

Elhage et al. 2021 (**K**). 1: all directions that survive the head come out as themselves (copying); -1: as their
opposites; 0: nothing of the kind. The d_head eigenvalues that are not zero by rank are those of the small matrix
`W_O W_V`.

The same on the directions that classes (or texts) have in the stream, where a copying head raises the class that it
sees: with U the classes' directions, their mean taken off because a shift of all logits says nothing (**X**),

    lambda: eigenvalues of  U W_V W_O U^T.

Baseline: random directions with the same singular values on both sides of the small product, `draws` times; their score
scatters around 0 with a width that depends on the singular values, so the table holds the middle 95 % of them and a
p-value of two sides, which is never below 1 / (draws + 1).
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from circuits.weights.chance import frames
from circuits.weights.exact import chosen_layers
from circuits.weights.ov_qk import ov
from circuits.weights.read_out import ReadOut
from circuits.weights.table import WeightTable
from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch
from mechvis.provenance import provenance
from mechvis.results import FALSE_DISCOVERY_RATE
from mechvis.stats import benjamini_hochberg

WORDS = {
    "unit": "the head",
    "layer": "its layer",
    "head": "its index",
    "on": "directions that it copies: all of the stream, or those of classes or texts",
    "score": "sum of the eigenvalues over sum of their sizes, -1 to 1; empty for a head that writes nothing there",
    "low": "lower end of the middle 95 % of random directions with the same singular values",
    "high": "upper end of it",
    "p": "share of random directions with a score of at least this size (two-sided, smallest 1 / (draws + 1))",
    "significant": f"survives a Benjamini-Hochberg correction at {FALSE_DISCOVERY_RATE} over the heads",
}


def copying_scores(
    model: Any,
    out: ReadOut | None = None,
    *,
    layers: Iterable[int] | None = None,
    folded: bool = False,
    draws: int = 100,
    seed: int = 0,
) -> WeightTable:
    """The copying score of every head, on the stream and on the directions of classes or texts.

    Args:
        model: a wrapped tower.
        out: also on these directions (:func:`circuits.weights.read_out`); they are of the stream, so take
            `folded=True` with them.
        layers: only these layers.
        folded: the reading side takes the stream before the norm's gain.
        draws: random directions per head.
        seed: of these.

    Returns:
        WeightTable: one row per head and kind of directions; see :data:`WORDS`.

    Raises:
        RefusedMethod: W_V W_O is not what the heads do.
        OutOfRange: no such layer, or fewer than one draw.
        BadData: directions of a single class.
        NotFinite: NaN or Inf in the weights.

    Example:
        >>> copying_scores(model, read_out(model), folded=True).top(3, on="class")                 # doctest: +SKIP
    """
    if draws < 1:
        raise OutOfRange(f"draws must be at least 1, got {draws}.")
    listed = chosen_layers(model, layers)
    spaces = {"stream": None} if out is None else {"stream": None, out.kind: _centred_directions(out)}
    blocks: dict[tuple, np.ndarray] = {}
    rows = []
    for layer in listed:
        circuit = ov(model, layer, folded=folded)
        read, write = circuit.A.double().cpu(), circuit.B.double().cpu()
        if not (torch.isfinite(read).all() and torch.isfinite(write).all()):
            raise NotFinite(f"NaN or Inf in the value or output weights of layer {layer}.")
        for head in range(len(read)):
            for on, classes in spaces.items():
                # Eigenvalues of U A B U^T are those of (B U^T U) A: everything stays d_head wide.
                back = write[head] if classes is None else _projected(write[head], classes)
                score, drawn = _score_and_chance(back, read[head], blocks, draws, seed)
                low, high = np.quantile(drawn, [0.025, 0.975]) if len(drawn) else (np.nan, np.nan)
                p = np.nan if np.isnan(score) else (1 + (np.abs(drawn) >= abs(score)).sum()) / (1 + len(drawn))
                rows.append((f"L{layer}H{head}", layer, head, on, score, low, high, p))
    table = pl.DataFrame(rows, schema=["unit", "layer", "head", "on", "score", "low", "high", "p"], orient="row")
    survives = np.zeros(table.height, bool)
    for on in spaces:
        where = (table["on"] == on).to_numpy()
        adjusted = benjamini_hochberg(table["p"].to_numpy()[where])
        survives[where] = np.nan_to_num(adjusted, nan=1.0) <= FALSE_DISCOVERY_RATE
    table = table.with_columns(pl.Series("significant", survives), pl.col("score", "low", "high", "p").fill_nan(None))
    facts = {"layers": listed, "folded": folded, "draws": draws, "names": [] if out is None else list(out.names)}
    return WeightTable(
        kind="copying",
        title="Which heads write what they read",
        table=table,
        words=WORDS,
        provenance=provenance(model, seed=seed, copying=facts),
    )


def eigenvalue_ratio(matrix: Float[np.ndarray, "*draw n n"], size: float = 0.0) -> np.ndarray:
    """Sum of the eigenvalues over the sum of their sizes; NaN for a matrix whose eigenvalues are all zero.

    Args:
        matrix: one, or several.
        size: of what the matrix was made of (the product of its factors' norms): eigenvalues whose sizes sum to less
            than a millionth of it are rounding.

    Raises:
        ShapeMismatch: not square.

    Example:
        >>> float(eigenvalue_ratio(np.diag([1.0, 3.0]))), float(eigenvalue_ratio(np.diag([1.0, -1.0])))
        (1.0, 0.0)
    """
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ShapeMismatch(f"eigenvalues need a square matrix, got {list(matrix.shape)}.")
    values = np.linalg.eigvals(matrix)
    total, sizes = values.sum(-1).real, np.abs(values).sum(-1)
    return np.divide(total, sizes, out=np.full(np.shape(total), np.nan), where=sizes > 1e-6 * size)


def _score_and_chance(back: Tensor, read: Tensor, blocks: dict, draws: int, seed: int) -> tuple[float, np.ndarray]:
    size = float(back.norm() * read.norm())
    if not size > 0:
        return np.nan, np.empty(0)
    # No eigenvalue but zero: what the head writes it does not read, so nothing is copied.
    score = float(np.nan_to_num(eigenvalue_ratio((back @ read).numpy(), size)))
    # back = U1 S1 V1^T and read = U2 S2 V2^T: only V1^T U2, the block G, is random.
    (u1, s1, _), (_, s2, v2) = (np.linalg.svd(m.numpy(), full_matrices=False) for m in (back, read))
    shape = (read.shape[0], len(s1), len(s2))
    if shape not in blocks:
        blocks[shape] = frames(*shape, draws, seed)
    drawn = eigenvalue_ratio((u1 * s1) @ blocks[shape] @ (s2[:, None] * v2), size)
    return score, drawn[~np.isnan(drawn)]


def _centred_directions(out: ReadOut) -> Float[Tensor, "class d_model"]:
    if len(out.names) < 2:
        raise BadData(f"copying on one {out.kind} has no meaning: only differences of logits say something.")
    found = out.directions().double().cpu()
    return found - found.mean(0)


def _projected(write: Tensor, classes: Tensor) -> Tensor:
    if classes.shape[1] != write.shape[1]:
        raise ShapeMismatch(
            f"directions of {classes.shape[1]} entries for a stream of {write.shape[1]}: out= belongs to another model."
        )
    return write @ classes.T @ classes
