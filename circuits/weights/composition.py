"""Composition: how much of what a head reads lies in the directions that an earlier head writes.

    Q:  || OV1 QK2 ||_F / (||OV1||_F ||QK2||_F)          head 2 asks with what head 1 wrote
    K:  || OV1 QK2^T ||_F / (...)                        head 2 is found by what head 1 wrote
    V:  || OV1 OV2 ||_F / (...)                          head 2 passes on what head 1 wrote

Elhage et al. 2021 (**K**), row vectors. The same numbers as transformer_lens' `all_composition_scores`, which holds
every pair's product in memory at once; here one pair of layers at a time. Beside every score stands what random
directions with the same singular values would give (:mod:`circuits.weights.chance`): about 1 / sqrt(d_model), so scores
of models of different width cannot be compared, and the excess can.

A score above chance says that a path *could* carry something. Whether it does on images is what path patching and edge
attribution say. Two traps: directions that all matrices share (a common mean) raise all scores together, and so do
channels of a large norm gain, unless the gain is folded (`folded=True`, methods.md 2.7 **X**).
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from circuits.weights.chance import by_chance, shares
from circuits.weights.exact import chosen_layers
from circuits.weights.ov_qk import ov, qk
from circuits.weights.table import WeightTable
from mechvis.errors import BadData, NotFinite, unknown
from mechvis.provenance import provenance
from mechvis.results import FALSE_DISCOVERY_RATE
from mechvis.stats import benjamini_hochberg

KINDS = ("q", "k", "v")

WORDS = {
    "unit": "edge: the writing head, and which input of the reading head",
    "kind": "q, k or v: the input that reads",
    "source_layer": "layer of the writing head",
    "source_head": "the writing head",
    "layer": "layer of the reading head",
    "head": "the reading head",
    "score": "composition score, 0 to 1; empty where one of the two matrices is zero",
    "chance": "expected score of random directions with the same singular values",
    "sd": "standard deviation of the score of random directions",
    "excess": "score minus chance",
    "z": "excess in standard deviations",
    "p": "probability of at least this score for random directions",
    "significant": f"survives a Benjamini-Hochberg correction at {FALSE_DISCOVERY_RATE} over all pairs of its kind",
}


def composition(
    model: Any,
    *,
    kinds: Sequence[str] = KINDS,
    layers: Iterable[int] | None = None,
    folded: bool = False,
) -> WeightTable:
    """Composition scores of every head with every head of a later layer, beside what chance gives.

    Args:
        model: a wrapped tower.
        kinds: which inputs of the reading head: `q`, `k`, `v`.
        layers: only heads of these layers, as writers and as readers; at least two.
        folded: fold the norm's gain into all sides that read (as writers read too). The default, False, is the
            published score and transformer_lens'.

    Returns:
        WeightTable: one row per pair and kind, named as edges are (`L0H1->L1H2.q`); `.top(10, by="z")`. A head whose
        matrix is zero has no score.

    Raises:
        RefusedMethod: scores of q and k of a model with rotary positions or q-norm (`kinds=("v",)` is fine there), or
            heads whose W_V W_O is not what they do.
        UnknownName: another kind.
        BadData: fewer than two layers, or no kind.
        NotFinite: NaN or Inf in the weights; says where.

    Example:
        >>> found = composition(mechvis.load("scenes-vit"))                                        # doctest: +SKIP
        >>> found.top(3, by="z", kind="v")                                                         # doctest: +SKIP
    """
    kinds = [kinds] if isinstance(kinds, str) else list(dict.fromkeys(kinds))
    for kind in kinds:
        if kind not in KINDS:
            raise unknown("kind of composition", kind, KINDS)
    listed = chosen_layers(model, layers)
    if not kinds or len(listed) < 2:
        raise BadData(f"composition needs a kind and heads of two layers, got kinds {kinds} and layers {listed}.")
    writers, readers = {}, {}
    for layer in listed:
        circuit = _double(ov(model, layer, folded=folded))
        writers[layer] = _decomposed(circuit, layer, "W_V W_O")
        for kind in kinds:
            matrix = circuit if kind == "v" else _double(qk(model, layer, folded=folded))
            readers[kind, layer] = _decomposed(matrix.T if kind == "k" else matrix, layer, f"{kind} input")
    parts = [
        _pairs(kind, first, second, writers[first], readers[kind, second], model.parts.d_model)
        for kind in kinds
        for second in listed
        for first in listed
        if first < second
    ]
    table = pl.concat(parts)
    adjusted = [benjamini_hochberg(table.filter(pl.col("kind") == kind)["p"].to_numpy()) for kind in kinds]
    survives = np.nan_to_num(np.concatenate(adjusted), nan=1.0) <= FALSE_DISCOVERY_RATE
    table = table.with_columns(pl.Series("significant", survives))
    floats = [name for name, kind in table.schema.items() if kind.is_float()]
    return WeightTable(
        kind="composition",
        title="How much of what a head reads is written by earlier heads",
        table=table.with_columns(pl.col(floats).fill_nan(None)),
        words=WORDS,
        provenance=provenance(model, composition={"kinds": kinds, "layers": listed, "folded": folded}),
    )


def _pairs(kind: str, first: int, second: int, writer: tuple, reader: tuple, d: int) -> pl.DataFrame:
    """Rows of all heads of one layer with all heads of a later one."""
    (_, s, v), (u, r, _) = writer, reader  # [head d direction], [head direction]
    left = rearrange(v * s[:, None], "h d i -> (h i) d")
    right = rearrange(u * r[:, None], "h d j -> d (h j)")
    product = rearrange(left @ right, "(h i) (g j) -> h g (i j)", h=len(s), g=len(r)).norm(dim=-1).numpy()
    size = (s.norm(dim=-1)[:, None] * r.norm(dim=-1)).numpy()
    score = np.divide(product, size, out=np.full_like(product, np.nan), where=size > 0)
    chance = by_chance(shares(s.numpy())[:, None], shares(r.numpy())[None], d)
    nothing = np.isnan(score)
    source, target = (axis.ravel() for axis in np.indices(score.shape))
    columns = {
        "score": score,
        "chance": np.where(nothing, np.nan, chance.mean),
        "sd": np.where(nothing, np.nan, chance.sd),
        "excess": score - chance.mean,
        "z": chance.z(score),
        "p": np.where(nothing, np.nan, chance.p(np.nan_to_num(score))),
    }
    return pl.DataFrame(
        {
            "unit": [f"L{first}H{h}->L{second}H{g}.{kind}" for h, g in zip(source, target, strict=True)],
            "kind": [kind] * score.size,
            "source_layer": np.full(score.size, first, np.int32),
            "source_head": source.astype(np.int32),
            "layer": np.full(score.size, second, np.int32),
            "head": target.astype(np.int32),
            **{name: np.where(nothing, np.nan, value).ravel() for name, value in columns.items()},
        }
    )


def _double(matrix: Any) -> Any:
    """In double precision: scores near chance differ by little."""
    return type(matrix)(matrix.A.double().cpu(), matrix.B.double().cpu())


def _decomposed(
    matrix: Any, layer: int, what: str
) -> tuple[
    Float[Tensor, "head d_model direction"], Float[Tensor, "head direction"], Float[Tensor, "head d_model direction"]
]:
    if not (torch.isfinite(matrix.A).all() and torch.isfinite(matrix.B).all()):
        raise NotFinite(f"NaN or Inf in the weights of layer {layer} ({what}).")
    return matrix.svd()
