"""The direct effects of an image set as one table: how much of the output each part of the model writes.

For every term (a head, an MLP, a bias, what came before), over all images:

* `share`: the mean of `<term, output> / <output, output>`. Shares add up to one.
* `spread`: the variance of the term over images, relative to that of the output. Spreads do not add up to one where
  terms go together; a constant term has none.
* `direct` (classifiers): what the term adds to logit(target) - logit(runner-up) of the clean run. They add up to the
  model's own logit difference.

Direct effects say what a part writes into the output, not what would happen without it: later blocks react, and a part
also acts through them. `mechvis.decompose.ablations` shows both side by side.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch

from mechvis import metrics, stats
from mechvis.data.images import ImageSet
from mechvis.decompose.readout import Of
from mechvis.decompose.stream import stream
from mechvis.decompose.terms import Convention, Pooling
from mechvis.engine import free_memory
from mechvis.errors import BadData, OutOfMemory, unknown
from mechvis.labels import with_model_classes
from mechvis.provenance import provenance
from mechvis.record import Record

LAYERS = 4
"""Layers from the end whose heads are told apart by default: earlier ones hardly write to the output directly."""

WORDS = {
    "term": "what is written: a head, an MLP, a bias, everything before a layer",
    "share": "mean over images of <term, output> / <output, output>; shares add up to one",
    "low": "lower end of the 95 % interval over images of the share",
    "high": "upper end of the interval",
    "spread": "variance of the term over images / variance of the output",
    "norm": "mean length of the term",
    "direct": "what the term adds to logit(target) - logit(runner-up); adds up to the model's own",
    "direct_low": "lower end of the 95 % interval over images",
    "direct_high": "upper end of the interval",
    "n": "images",
}
CAVEATS = (
    "Direct effects only: what a part writes into the output. Without it, later blocks would react, and what it does "
    "through them is not counted here; mechvis.decompose.ablations measures both.",
    "The divisor of the last norm is held at its value for each image.",
)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Decomposition(Record):
    """Direct effects of an image set; the terms themselves are in `arrays["values"]` if they were kept."""

    KIND = "decomposition"

    @property
    def names(self) -> tuple[str, ...]:
        """The terms, in order."""
        return tuple(self.table["term"])

    @property
    def values(self) -> np.ndarray:
        """The terms `[image term d_out]`.

        Raises:
            BadData: they were not kept.
        """
        if "values" not in self.arrays:
            raise BadData("the terms were not kept; call decompose(..., keep=True).")
        return self.arrays["values"]

    def places(self, names: str | Sequence[str]) -> list[int]:
        """Places of terms by name; `heads`, `MLPs` and `biases` mean all of a kind.

        Raises:
            UnknownName: no such term.
        """
        kinds = {"heads": "head", "MLPs": "mlp", "biases": "bias"}
        found: list[int] = []
        for name in [names] if isinstance(names, str) else names:
            if name in kinds:
                found += [i for i, kind in enumerate(self.table["kind"]) if kind == kinds[name]]
            elif name in self.names:
                found.append(self.names.index(name))
            else:
                raise unknown("term", name, [*self.names, *kinds])
        return sorted(set(found))

    def figures(self) -> list[Any]:
        """The largest shares as bars."""
        from mechvis.plots.bars import bars
        from mechvis.report.blocks import Figure

        top = self.table.sort(pl.col("share").abs(), descending=True).head(24)
        low, high = top["low"].to_numpy(), top["high"].to_numpy()
        shown = bars(top["term"].to_list(), top["share"].to_numpy(), low=low, high=high, label="share of the output")
        return [Figure(shown, "The largest shares, with 95 % intervals over images.")]

    def without(self, names: str | Sequence[str]) -> np.ndarray:
        """The output with these terms at their mean over the images, `[image d_out]`: mean ablation of the direct path
        (methods.md 2.1 **C**), without a forward pass."""
        places = self.places(names)
        values = self.values
        return values.sum(1) - values[:, places].sum(1) + values[:, places].mean(0).sum(0)


def decompose(
    model: Any,
    images: Any,
    *,
    layers: int | Iterable[int] | None = -LAYERS,
    of: Of = "output",
    convention: Convention = "linear",
    pooling: Pooling = "heads",
    keep: bool = False,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> Decomposition:
    """How much of the output every head, MLP and bias writes, over an image set.

    Args:
        model: a wrapped image tower (for CLIP: `clip.vision`, or a zero-shot classifier).
        images: an `ImageSet`, or pixels.
        layers: layers whose heads and MLPs are told apart; -4: the last four (all, where there are no more). None: all.
        of: `output`, `pooled`, `embedding` or `logits`.
        convention: `linear`, or `even_split` as in the published code; see :mod:`mechvis.decompose.terms`.
        pooling: of a model with attention pooling: its `heads`, or `through` them the layers.
        keep: keep all terms, `[image term d_out]`.
        batch_size: images per forward pass.
        seed: of the intervals.
        progress: show a progress bar.

    Raises:
        OutOfMemory: the terms do not fit into memory; says how much they need.
        And what :func:`mechvis.decompose.terms` raises.

    Example:
        >>> found = decompose(model, images)                                           # doctest: +SKIP
        >>> found.pick(term="L3H1")["direct"]                                          # doctest: +SKIP
        1.9
    """
    if hasattr(model, "vision"):
        model = model.vision  # of a CLIP model: the tower that sees the images
    if isinstance(layers, int):
        layers = max(layers, -len(model.parts.blocks))
    images = with_model_classes(images, model) if isinstance(images, ImageSet) and model.parts.head else images
    n = len(images)
    sums = _Sums()
    shares: list[np.ndarray] = []
    directs: list[np.ndarray] = []
    values: np.ndarray | None = None
    labels = images.labels if isinstance(images, ImageSet) else None
    error, found = 0.0, None
    settings = {"layers": layers, "of": of, "convention": convention, "pooling": pooling}
    for where, found in stream(model, images, **settings, batch_size=batch_size, progress=progress):
        batch = found.values.double()
        whole = batch.sum(1)
        shares.append((torch.einsum("itd,id->it", batch, whole) / whole.square().sum(1, keepdim=True)).cpu().numpy())
        if found.of == "logits" and whole.shape[1] > 1:
            given = None if labels is None else torch.as_tensor(labels[where], device=whole.device)
            target, contrast = metrics.classes_of(found.whole, given)
            rows = torch.arange(len(whole), device=whole.device)
            directs.append((batch[rows, :, target] - batch[rows, :, contrast]).cpu().numpy())
        sums.add(batch)
        if keep:
            values = _room(n, found.values) if values is None else values
            values[where] = found.values.cpu().numpy()
        error = max(error, found.error)
    spread, norm, mean = sums.result()
    share = stats.bootstrap(np.concatenate(shares).T, seed=seed)
    columns = {
        "term": list(found.names),
        "kind": list(found.kinds),
        "layer": list(found.layers),
        "share": share.effect,
        "low": share.low,
        "high": share.high,
        "spread": spread,
        "norm": norm,
        "n": [n] * len(found.names),
    }
    if directs:
        direct = stats.bootstrap(np.concatenate(directs).T, seed=seed)
        columns |= {"direct": direct.effect, "direct_low": direct.low, "direct_high": direct.high}
    table = pl.DataFrame(columns, schema_overrides={"layer": pl.Int64})
    return Decomposition(
        title=f"What writes the {found.of}: {len(found.names)} terms, {n} images",
        tables={"terms": table},
        arrays={"mean": mean} | ({} if values is None else {"values": values}),
        facts={**{k: v if not isinstance(v, range) else list(v) for k, v in settings.items()}, "of": found.of, "n": n}
        | {"relative_error": error},
        words={name: WORDS[name] for name in columns if name in WORDS},
        caveats=(f"The terms add up to the model's output with a relative error of {error:.1e}.", *CAVEATS),
        provenance=provenance(model=model, images=images if isinstance(images, ImageSet) else None, seed=seed),
    )


def _room(n: int, values: torch.Tensor) -> np.ndarray:
    """An array for the terms of all images."""
    shape = (n, *values.shape[1:])
    needed = int(np.prod(shape)) * values.element_size()
    if needed > 0.7 * free_memory():
        raise OutOfMemory(
            f"the terms of {n} images need {needed / 1e9:.1f} GB and {free_memory() / 1e9:.1f} GB are free. Use fewer "
            "layers (layers=-2), keep=False, or mechvis.decompose.stream."
        )
    return np.empty(shape, torch.empty(0, dtype=values.dtype).numpy().dtype)


class _Sums:
    """Mean, length and variance of terms, and variance of their sum, one batch at a time, in float64."""

    def __init__(self):
        self.n = 0
        self.mean: torch.Tensor | None = None

    def add(self, batch: torch.Tensor) -> None:
        whole = torch.cat([batch, batch.sum(1, keepdim=True)], dim=1)
        mean = whole.mean(0)
        squares = (whole - mean).square().sum((0, 2))
        length = whole.norm(dim=-1).sum(0)
        if self.mean is None:
            self.mean, self.squares, self.length = mean, squares, length
        else:
            # Chan et al.'s update of a mean and a sum of squares by those of a further batch.
            total, step = self.n + len(batch), mean - self.mean
            self.squares = self.squares + squares + step.square().sum(1) * (self.n * len(batch) / total)
            self.mean = self.mean + step * (len(batch) / total)
            self.length = self.length + length
        self.n += len(batch)

    def result(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Spread and mean length of each term, and the mean terms."""
        whole = float(self.squares[-1])
        spread = self.squares[:-1] / whole if whole > 0 else torch.zeros_like(self.squares[:-1])
        return spread.cpu().numpy(), (self.length[:-1] / self.n).cpu().numpy(), self.mean[:-1].cpu().numpy()
