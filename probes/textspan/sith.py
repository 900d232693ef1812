"""What a head can write, read off its weights: no image needed (SITH, CVPR 2026; methods.md 2.7, **N**).

1. Per head, value and output weights as one map of the stream, `W_V W_O`. What surrounds it is folded in (**X**; else
   the directions are distorted): the gain of the norm before attention and its centring on the reading side;
   LayerScale, the centring and the gain of the last norm on the writing side.
2. Singular value decomposition: `W = sum_k sigma_k u_k v_k'`. The head reads along `u_k` and writes along `v_k`.
3. `v_k` through the projection into the joint space, explained by coherent matching pursuit over texts whose mean has
   been taken off (the modality gap). The sign of a singular pair is arbitrary, so both `+v` and `-v` are explained.

An edit rescales single `sigma_k` (:func:`rescaled`), where ablation takes out the whole head.

What the weights cannot say: which of these directions the data use. A text span needs images and says just that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechvis import edits
from mechvis.data.text_bank import TextBank, text_bank
from mechvis.data.text_encoding import encode_bank
from mechvis.edits import Edit
from mechvis.errors import BadData, OutOfRange, RefusedMethod
from mechvis.norms import is_rms
from mechvis.provenance import provenance
from mechvis.record import Record
from probes.textspan.coherent import LAM, K, coherent_omp
from probes.textspan.reading import LAYERS, Layers, tower_of

WORDS = {
    "head": "layer and number of the head",
    "rank": "1 for the largest singular value",
    "sigma": "singular value: gain from reading to writing, with the norms around it",
    "share": "its square, as a share of the squares of all singular values of the head",
    "sign": "+ or -: which way along the direction; the sign of a pair is arbitrary",
    "texts": "texts whose non-negative sum comes near the direction",
    "weights": "their coefficients",
    "fit": "cosine of that sum with the direction",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadMap:
    """Singular directions of one head, strongest first."""

    read: Float[Tensor, "k d_model"]
    """What each reads from the stream (before the norm's division)."""
    sigma: Float[Tensor, " k"]
    """Gains."""
    write: Float[Tensor, "k d_model"]
    """What each writes, as the last norm passes it on."""
    embedded: Float[Tensor, "k d_embed"]
    """The same after the projection into the joint space."""
    out: Float[Tensor, "d_head d_model"]
    """Output weights with what is folded in: from `z` to `write`'s space."""


def head_map(tower: Any, layer: int, head: int, *, fold: bool = True) -> HeadMap:
    """Singular directions of a head of an image tower.

    Args:
        tower: the image tower of a wrapped CLIP model.
        layer: its layer.
        head: its number.
        fold: fold norms and LayerScale in; False: the bare `W_V W_O` (directions are then distorted).

    Raises:
        OutOfRange: no such head.
        RefusedMethod: attention pooling, or something between a head and the projection that is not linear.

    Example:
        >>> head_map(clip.vision, 3, 1).sigma.shape                                        # doctest: +SKIP
        torch.Size([32])
    """
    parts = tower.parts
    if not 0 <= layer < len(parts.blocks) or not 0 <= head < parts.blocks[layer].attn.n_heads:
        raise OutOfRange(
            f"L{layer}H{head} does not exist: {len(parts.blocks)} layers of {parts.blocks[0].attn.n_heads}."
        )
    block = parts.blocks[layer]
    if parts.pooling is not None or parts.project is None or not block.linear_writes or block.attn.after is not None:
        raise RefusedMethod(
            "this read-off needs a linear way from a head to the embedding; this model has attention pooling, no "
            "projection, or a norm after its sub-layers. Use text_span."
        )
    with torch.no_grad():
        w_v, w_o = block.attn.in_weights()[2][head].double(), block.attn.out_weight()[head].double()
        eye = torch.eye(parts.d_model, dtype=tower.dtype, device=w_o.device)
        project = (parts.project(eye) - parts.project(torch.zeros_like(eye))).double()
        if fold:
            w_v = _norm_in(block.ln1, w_v)
            if block.scale1 is not None:
                w_o = w_o @ block.scale1(eye).double()
            w_o = _norm_out(parts.ln_final, w_o)
        # The product has rank d_head: decompose it through its two thin factors.
        q_in, r_in = torch.linalg.qr(w_v)
        q_out, r_out = torch.linalg.qr(w_o.T)
        left, sigma, right = torch.linalg.svd(r_in @ r_out.T)
        write = right @ q_out.T
        return HeadMap(read=(q_in @ left).T, sigma=sigma, write=write, embedded=write @ project, out=w_o)


def _norm_in(norm: nn.Module, w: Tensor) -> Tensor:
    """`diag(gain) W`, with the mean over the stream taken off what it reads."""
    gain = getattr(norm, "weight", None)
    w = w if gain is None else gain.double()[:, None] * w
    return w - w.mean(0, keepdim=True) if hasattr(norm, "eps") and not is_rms(norm) else w


def _norm_out(norm: nn.Module, w: Tensor) -> Tensor:
    """Writes as the last norm passes them on, but for its division."""
    w = w - w.mean(1, keepdim=True) if hasattr(norm, "eps") and not is_rms(norm) else w
    gain = getattr(norm, "weight", None)
    return w if gain is None else w * gain.double()


def sith(
    clip: Any,
    bank: str | Path | TextBank = "general",
    *,
    layers: Layers = LAYERS,
    directions: int = 5,
    k: int = K,
    lam: float = LAM,
    center: bool = True,
    fold: bool = True,
    cache: str | Path | None = None,
) -> Record:
    """Explain the strongest singular directions of every head by texts, without images.

    Args:
        clip: a wrapped CLIP model.
        bank: the texts.
        layers: whose heads; a negative number: that many last ones. None: all.
        directions: singular directions per head, strongest first.
        k: texts per direction (**N**: 5).
        lam: weight of the texts' coherence (**N**: 0.3).
        center: take the mean of the texts off first.
        fold: fold norms and LayerScale in (**X**).
        cache: a folder that keeps the embeddings of the texts.

    Returns:
        Record: one row per head, direction and sign.

    Raises:
        OutOfRange, RefusedMethod, BadData: see :func:`head_map`, :func:`coherent_omp` and `encode_bank`.

    Example:
        >>> sith(mechvis.load("scenes-clip"), "scenes").table                              # doctest: +SKIP
    """
    tower, bank = tower_of(clip), text_bank(bank)
    if directions < 1:
        raise OutOfRange(f"directions={directions}: explain at least one.")
    pool = encode_bank(clip, bank, cache=cache)
    atoms = centred(pool) if center else pool
    n = len(tower.parts.blocks)
    which = range(n) if layers is None else range(max(n + layers, 0), n) if isinstance(layers, int) else sorted(layers)
    rows = []
    for layer in which:
        for head in range(tower.parts.blocks[layer].attn.n_heads):
            found = head_map(tower, layer, head, fold=fold)
            shares = found.sigma**2 / (found.sigma**2).sum()
            for rank in range(min(directions, len(found.sigma))):
                for sign in (1.0, -1.0):
                    code = coherent_omp(sign * found.embedded[rank].cpu().numpy(), atoms, k=k, lam=lam)
                    rows.append(
                        {"head": f"L{layer}H{head}", "rank": rank + 1, "sigma": float(found.sigma[rank])}
                        | {"share": float(shares[rank]), "sign": "+" if sign > 0 else "-"}
                        | {"texts": [bank.texts[i] for i in code.picks], "weights": code.weights.tolist()}
                        | {"properties": [bank.properties[i] for i in code.picks], "fit": code.fit}
                    )
    lists = {"texts": pl.List(pl.String), "weights": pl.List(pl.Float64), "properties": pl.List(pl.String)}
    return Record(
        kind="sith",
        title=f"What heads can write, by their weights, {tower.name}, bank {bank.name}",
        tables={"directions": pl.DataFrame(rows, schema_overrides=lists)},
        facts={"bank": bank.name, "k": k, "lam": lam, "center": center, "fold": fold, "directions": directions},
        words=WORDS | {"properties": "properties of these texts"},
        caveats=(
            "Weights only: which of these directions the images use is not known. Compare with a text span.",
            "A fit far below 1 means that the texts do not explain the direction.",
        ),
        provenance=provenance(model=tower, bank=bank.fingerprint),
    )


def centred(pool: Float[np.ndarray, "text d_embed"]) -> Float[np.ndarray, "text d_embed"]:
    """Unit texts minus their mean: what they share says nothing of any.

    Raises:
        BadData: fewer than two texts.
    """
    if len(pool) < 2:
        raise BadData("one text minus its mean leaves nothing.")
    pool = pool / np.linalg.norm(pool, axis=1, keepdims=True)
    return pool - pool.mean(0)


def rescaled(
    tower: Any, layer: int, head: int, factors: Mapping[int, float] | Sequence[float], *, fold: bool = True
) -> Edit:
    """An edit that multiplies single singular values of a head: 0 takes a direction out, 1 leaves it.

    The head's `z` is changed so that it writes as if its `W_V W_O` had these singular values; what the value bias adds,
    and where the head looks, stay as they are.

    Args:
        tower: the image tower.
        layer: layer of the head.
        head: its number.
        factors: rank (0 for the largest singular value) -> factor; or one factor per rank.
        fold: as in :func:`head_map`.

    Returns:
        An edit for `tower.run(pixels, edits=[...])`.

    Raises:
        OutOfRange: a rank that the head does not have, or a factor that is not finite.

    Example:
        >>> tower.run(pixels, edits=[rescaled(tower, 3, 1, {0: 0.0})])                     # doctest: +SKIP
    """
    found = head_map(tower, layer, head, fold=fold)
    factors = dict(factors) if isinstance(factors, Mapping) else dict(enumerate(factors))
    scale = torch.ones_like(found.sigma)
    for rank, factor in factors.items():
        if not 0 <= rank < len(scale) or not np.isfinite(factor):
            raise OutOfRange(f"factor {factor} of rank {rank}: L{layer}H{head} has ranks 0 to {len(scale) - 1}.")
        scale[rank] = factor
    bias = tower.parts.blocks[layer].attn.in_biases()[2]
    bias = torch.zeros(len(found.out)).to(found.out) if bias is None else bias[head].detach().double()
    # M with  M out = out V diag(scale) V': z M writes what z writes, with every direction rescaled.
    turned = found.out @ found.write.T @ torch.diag(scale) @ found.write
    change = turned @ torch.linalg.pinv(found.out)

    def rescale(z: Tensor) -> Tensor:
        return ((z.double() - bias) @ change + bias).to(z.dtype)

    return edits.call(f"blocks.{layer}.attn.hook_z", rescale, heads=[head])
