"""From which layer a cross-layer transcoder writes: its own, or an earlier one.

A cross-layer transcoder is rewarded for explaining layer t by what an earlier layer computed on another way (several
write-ups say so). So whoever shows one says how much is written across layers:

    share(s → t) = Cov(c_{s→t}, ŷ^t) / Var(ŷ^t),   c_{s→t} what latents of layer s write to layer t

summed over columns; over rows, around the mean of each batch. The shares of a target add up to 1, with the skip
connection as one more source; a source that writes against the others has a negative one. A share says what the
transcoder does, not what the model does: transcoders of one layer each, with the same error, are the comparison.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import torch
from torch import Tensor

from mechvis.errors import BadData
from mechvis.provenance import provenance
from mechvis.record import Record
from mechvis.stats import interval_of
from sae.architectures.cross_layer import CrossLayerTranscoder
from sae.data import Rows
from sae.diffing.scaling import batches

if TYPE_CHECKING:
    from sae.dictionary import Dictionary

SKIP = "skip"
ENOUGH = 10
"""Batches that an interval needs."""


def layer_shares(
    d: "Dictionary",
    rows: Mapping[str, Tensor] | Iterable[Mapping[str, Tensor] | Rows],
    *,
    batch: int = 512,
    limit: int | None = None,
    seed: int = 0,
) -> Record:
    """How much of what is written to each layer comes from which layer.

    Args:
        d: a cross-layer transcoder.
        rows: activations by site that it was not trained on, some hundreds at least.
        batch: rows at a time, of tensors.
        limit: stop after so many rows; needed for a source that never ends.
        seed: of the bootstrap.

    Returns:
        Tables `targets` (share of the own layer, share across layers with a 95 % interval over batches where there are
        ten or more, FVU) and `shares` (every source and target).

    Raises:
        BadData: another architecture, no rows, a layer to which nothing is written.
        NotFinite: NaN or Inf in the rows.

    Example:
        >>> layer_shares(transcoder, rows).table.select("target", "own", "across")           # doctest: +SKIP
    """
    if not isinstance(d.architecture, CrossLayerTranscoder):
        raise BadData(f"layers share what a cross-layer transcoder writes; this is {d.architecture.NAME}.")
    found, n = [], 0
    for part in batches(rows, batch, limit):
        found.append(_covariances(d, part))
        n += len(next(iter(part.values())))
    if not found:
        raise BadData("there are no rows to look at.")
    covariance, errors = (np.stack([one[place] for one in found]) for place in (0, 1))
    targets, shares = [], []
    for t, name in enumerate(d.ends.writes):
        parts = covariance[:, t]
        whole = parts.sum()
        if not whole > 0:
            raise BadData(f"nothing that varies is written to {name}, so there is nothing to share.")
        value, low, high = interval_of(_share, parts[:, :t].sum(1), parts.sum(1), seed=seed)
        certain = len(found) >= ENOUGH
        error, variance = errors[:, t].sum(0)
        targets.append(
            {
                "target": name,
                "own": float(parts[:, t].sum() / whole),
                "across": value,
                "across_low": low if certain else None,
                "across_high": high if certain else None,
                "skip": float(parts[:, -1].sum() / whole),
                "fvu": float(error / variance) if variance > 0 else None,
                "n": n,
            }
        )
        for s, source in enumerate([*d.ends.reads, SKIP]):
            if s <= t or source == SKIP:
                shares.append({"source": source, "target": name, "share": float(parts[:, s].sum() / whole)})
    kinds = {name: pl.Float64 for name in ("own", "across", "across_low", "across_high", "skip", "fvu")}
    return Record(
        kind="layer_shares",
        title="What a cross-layer transcoder writes, by the layer that it reads",
        tables={
            "targets": pl.DataFrame(targets, schema={"target": pl.String, **kinds, "n": pl.Int64}),
            "shares": pl.DataFrame(shares),
        },
        facts={"rows": n},
        words={
            "own": "share of what is written to a layer that comes from that layer's own input",
            "across": "share that comes from earlier layers; interval over batches",
            "skip": "share of the linear map from the layer's own input",
            "fvu": "share of the target's variance that is not written",
        },
        caveats=(
            "Shares are of the transcoder, not of the model: what it writes across layers the model may compute inside "
            "the later one. Compare with transcoders of one layer, and put it in place of the model's layers.",
        ),
        provenance=provenance(seed=seed, dictionary=d.fingerprint),
    )


def _share(top: np.ndarray, bottom: np.ndarray) -> float:
    return float(top.sum() / bottom.sum()) if bottom.sum() > 0 else float("nan")


@torch.no_grad()
def _covariances(d: "Dictionary", part: Mapping[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """`[target source+1]`: what each source adds to what is written, the skip connection last; `[target 2]`: squared
    error and variance."""
    x, y = d.normalised(part)
    codes = d.architecture.encode(d, x)
    widths = list(d.ends.writes.values())
    y_hat = d.architecture.decode(d, codes)
    skip = x @ d.W_skip.T if d.architecture.skip else torch.zeros_like(y_hat)
    written, skipped, target = ((t.double().split(widths, dim=1)) for t in (y_hat + skip, skip, y))
    found, errors = np.zeros((len(widths), len(widths) + 1)), np.zeros((len(widths), 2))
    for t, some in enumerate(d.architecture.written_by(d, codes)):
        whole = written[t] - written[t].mean(0)
        for s, part_of in enumerate(some):
            found[t, s] = float((part_of.double() * whole).sum())
        found[t, -1] = float((skipped[t] * whole).sum())
        errors[t] = (
            float((target[t] - written[t]).square().sum()),
            float((target[t] - target[t].mean(0)).square().sum()),
        )
    return found, errors
