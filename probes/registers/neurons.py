"""Register neurons: MLP units that are loud exactly where patches become long (**C**; methods.md 12).

Up to the layer where long patches were seen, the mean absolute activation (`mlp.hook_post`) of every unit at the long
patches. The released code keeps the 10 largest of the first blocks (blocks 0 to 5 of 12, 0 to 17 of 24: 50 there).

A unit may be loud everywhere and have nothing to do with it. So its mean over the other patches stands beside, and
`rank_by="excess"` (**X**) ranks by the difference.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool

from mechvis.data.images import ImageSet
from mechvis.errors import BadData, OutOfRange, ShapeMismatch, unknown
from mechvis.progress import track
from mechvis.provenance import provenance
from mechvis.record import Record
from mechvis.stats import bootstrap

RankBy = Literal["activation", "excess"]
RANKS = ("activation", "excess")


class RegisterNeurons(Record):
    """The neurons that write long tokens, best first; see :func:`register_neurons`."""

    KIND = "register_neurons"

    def by_layer(self, n: int | None = None) -> dict[int, list[int]]:
        """The first `n` neurons as layer -> units, for :func:`probes.registers.with_registers`.

        Raises:
            OutOfRange: more than were kept, or none.
        """
        n = self.table.height if n is None else n
        if not 1 <= n <= self.table.height:
            raise OutOfRange(f"n={n}: {self.table.height} neurons were kept.")
        found: dict[int, list[int]] = {}
        for row in self.table.head(n).iter_rows(named=True):
            found.setdefault(row["layer"], []).append(row["neuron"])
        return found


def register_neurons(
    model: Any,
    images: Any,
    outliers: Bool[np.ndarray, "image patch"],
    *,
    upto: int | None = None,
    n: int = 10,
    rank_by: RankBy = "activation",
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = True,
) -> RegisterNeurons:
    """Rank MLP units by their mean absolute activation at long patches.

    Args:
        model: a wrapped image tower.
        images: the images in which the long patches were found (100 to 500, **C**).
        outliers: which patches are long, from :meth:`TokenNorms.outliers`.
        upto: last block whose neurons are looked at; default: the first half of the blocks (**C**: 5 of 0..11).
        n: neurons to keep (10 for CLIP B/16, 50 for DINOv2-L, **C**).
        rank_by: `activation` (**C**), or `excess` over the other patches (**X**).
        batch_size: images per forward.
        seed: of the bootstrap.
        progress: show a progress bar.

    Returns:
        RegisterNeurons: `layer neuron activation low high elsewhere excess n`, best first.

    Raises:
        ShapeMismatch: not one row of patches per image.
        BadData: no long patch.
        OutOfRange: no such block, or no neuron to keep.
        UnknownName: no such ranking.

    Example:
        >>> found = register_neurons(model, images, norms.outliers())                              # doctest: +SKIP
        >>> found.by_layer()                                                                       # doctest: +SKIP
        {5: [124, 90], 3: [1012]}
    """
    if rank_by not in RANKS:
        raise unknown("ranking", rank_by, RANKS)
    parts, prefix = model.parts, len(model.parts.prefix)
    mask = np.asarray(outliers)
    if mask.dtype != bool or mask.shape != (len(images), parts.n_tokens - prefix):
        raise ShapeMismatch(
            f"outliers must be bool [image patch] = [{len(images)} {parts.n_tokens - prefix}], got {mask.dtype} "
            f"{list(mask.shape)}."
        )
    if not mask.any():
        raise BadData("no patch is marked as long: there is nothing to look for.")
    upto = (len(parts.blocks) - 1) // 2 if upto is None else upto
    if not 0 <= upto < len(parts.blocks) or n < 1:
        raise OutOfRange(
            f"upto={upto}, n={n}: blocks are 0 to {len(parts.blocks) - 1}, and at least one neuron is kept."
        )
    sites = [f"blocks.{layer}.mlp.hook_post" for layer in range(upto + 1)]
    at, elsewhere = _means(model, images, mask, sites, batch_size, progress)
    return _ranked(model, images, sites, at, elsewhere, n, rank_by, upto, seed)


def _means(
    model: Any, images: Any, mask: np.ndarray, sites: Sequence[str], batch_size: int, progress: bool
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Mean absolute activation per image at long and at other patches, `[image neuron]`; NaN where there is none."""
    prefix = len(model.parts.prefix)
    at: dict[str, list[np.ndarray]] = {site: [] for site in sites}
    elsewhere: dict[str, list[np.ndarray]] = {site: [] for site in sites}
    with track(len(images), "register neurons", " images", show=progress) as bar:
        for start in range(0, len(images), batch_size):
            some = images[start : start + batch_size]
            cache = model.run(some, capture=list(sites), stop_when_captured=True).cache
            marked = torch.from_numpy(mask[start : start + batch_size]).to(model.device)
            for site in sites:
                loud = cache[site][:, prefix:].abs().double()
                for found, where in ((at, marked), (elsewhere, ~marked)):
                    count = where.sum(1, keepdim=True)
                    mean = (loud * where[..., None]).sum(1) / count.clamp(min=1)
                    found[site].append(torch.where(count > 0, mean, torch.nan).cpu().numpy())
            bar.update(len(some))
    return tuple({site: np.concatenate(each) for site, each in found.items()} for found in (at, elsewhere))


def _ranked(
    model: Any,
    images: Any,
    sites: Sequence[str],
    at: dict[str, np.ndarray],
    elsewhere: dict[str, np.ndarray],
    n: int,
    rank_by: RankBy,
    upto: int,
    seed: int,
) -> RegisterNeurons:
    layers = np.concatenate([np.full(at[site].shape[1], layer) for layer, site in enumerate(sites)])
    units = np.concatenate([np.arange(at[site].shape[1]) for site in sites])
    loud, quiet = (np.concatenate([found[site] for site in sites], axis=1) for found in (at, elsewhere))
    mean = np.nanmean(loud, 0)
    others = np.nanmean(quiet, 0) if np.isfinite(quiet).any() else np.zeros_like(mean)
    score = mean if rank_by == "activation" else mean - others
    order = np.argsort(-score, kind="stable")[:n]
    one = bootstrap(loud[:, order].T, seed=seed)
    table = pl.DataFrame(
        {
            "layer": layers[order],
            "neuron": units[order],
            "activation": mean[order],
            "low": one.low,
            "high": one.high,
            "elsewhere": others[order],
            "excess": (mean - others)[order],
            "n": one.n,
        }
    )
    loudest = table.filter(pl.col("excess") < 0.5 * pl.col("activation")).height
    caveats = ["A neuron that is loud at long patches need not write them: run the test-time registers to see."]
    if loudest:
        caveats.insert(0, f"{loudest} of these {table.height} are nearly as loud elsewhere: try rank_by='excess'.")
    return RegisterNeurons(
        title=f"Register neurons of {getattr(model, 'name', '') or 'a model'}, blocks 0 to {upto}",
        tables={"neurons": table},
        facts={"upto": upto, "rank_by": rank_by, "neurons_seen": len(units)},
        words={
            "activation": "mean absolute activation at long patches (mean over images), with its 95 % interval",
            "elsewhere": "the same at the other patches",
            "excess": "activation minus elsewhere",
            "n": "images with a long patch",
        },
        caveats=tuple(caveats),
        provenance=provenance(model=model, images=images if isinstance(images, ImageSet) else None, seed=seed),
    )
