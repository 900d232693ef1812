"""Spatial coherence: do patches that a latent fires on lie together? Moran's I of patch maps (ViSAEBench M1).

    I = (P / W) · Σ_{p,q} w_pq z_p z_q / Σ_p z_p²,      z = map - its mean, w_pq = 1 for neighbours

over the P patches of an image; neighbours share a side (rook), or a corner too (queen). 1: smooth, 0: scattered,
-1: a chequerboard. Where patches are permuted, the mean is -1/(P-1) exactly, and it is measured as well: the same maps
with patches shuffled give the values that chance gives, and a latent counts as coherent above their 95 % quantile.
Maps without variation (a latent silent on the whole image) say nothing and are left out.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import BadData, ShapeMismatch, unknown


@dataclass(frozen=True, kw_only=True, eq=False)
class Spatial:
    """Spatial coherence of latents."""

    moran: Float[np.ndarray, " latent"]
    """Mean over images of Moran's I; NaN where no image has a map that varies."""
    shuffled: Float[np.ndarray, " latent"]
    """The same with patches shuffled."""
    limit: Float[np.ndarray, " latent"]
    """95 % quantile of the mean with patches shuffled, by its spread over images."""
    images: np.ndarray
    """Images with a map that varies, per latent."""

    @property
    def coherent(self) -> float:
        """Share of the latents with a map that lie above what shuffled patches give; NaN without any."""
        known = self.images > 0
        return float((self.moran[known] > self.limit[known]).mean()) if known.any() else float("nan")


def moran(maps: Float[Tensor, "*row height width"], neighbours: str = "rook") -> Float[Tensor, "*row"]:
    """Moran's I of each map, float64; NaN where a map does not vary.

    Args:
        maps: one value per patch.
        neighbours: rook (a side in common) or queen (a side or a corner).

    Raises:
        ShapeMismatch: maps of fewer than two patches.
        UnknownName: other neighbours.

    Example:
        >>> float(moran(torch.tensor([[1.0, 1.0, 0.0, 0.0]] * 4)))
        0.6666666666666666
    """
    if neighbours not in ("rook", "queen"):
        raise unknown("neighbours", neighbours, ("rook", "queen"))
    if maps.ndim < 2 or maps.shape[-1] * maps.shape[-2] < 2:
        raise ShapeMismatch(f"maps are [... height width] with at least two patches; got {list(maps.shape)}.")
    z = maps.detach().double()
    z = z - z.mean((-2, -1), keepdim=True)
    h, w = z.shape[-2:]
    pairs = (z[..., 1:, :] * z[..., :-1, :]).sum((-2, -1)) + (z[..., 1:] * z[..., :-1]).sum((-2, -1))
    count = (h - 1) * w + h * (w - 1)
    if neighbours == "queen":
        pairs = pairs + (z[..., 1:, 1:] * z[..., :-1, :-1]).sum((-2, -1))
        pairs = pairs + (z[..., 1:, :-1] * z[..., :-1, 1:]).sum((-2, -1))
        count += 2 * (h - 1) * (w - 1)
    squares = z.square().sum((-2, -1))
    varies = squares > 1e-12 * maps.detach().double().square().sum((-2, -1)).clamp_min(1e-300)
    return torch.where(varies, h * w / count * pairs / torch.where(varies, squares, 1.0), torch.nan)


class Sums:
    """Spatial coherence while batches stream by."""

    def __init__(self, *, neighbours: str = "rook", seed: int = 0):
        """Args:
        neighbours: rook or queen.
        seed: of the shuffles.
        """
        self._neighbours = neighbours
        self._generator = torch.Generator().manual_seed(seed)
        self._sums: dict[str, np.ndarray] = {}

    def add(self, codes: Float[Tensor, "image patch latent"], grid: tuple[int, int]) -> None:
        """Count a batch.

        Args:
            codes: of the patches, row-major.
            grid: patches down and across.

        Raises:
            ShapeMismatch: another number of patches.
        """
        h, w = grid
        if codes.ndim != 3 or codes.shape[1] != h * w:
            raise ShapeMismatch(f"codes [image patch latent] of {h} x {w} patches; got {list(codes.shape)}.")
        maps = codes.detach().transpose(1, 2)
        order = torch.stack([torch.randperm(h * w, generator=self._generator) for _ in range(len(maps))]).to(
            maps.device
        )
        shuffled = maps.gather(2, order[:, None].expand_as(maps))
        # In pieces of images: float64 maps of all latents at once would be the largest thing in memory.
        size = max(1, 2**22 // (maps.shape[1] * h * w))
        for name, values in (("moran", maps), ("shuffled", shuffled)):
            found = torch.cat([moran(part.unflatten(2, (h, w)), self._neighbours) for part in values.split(size)])
            known = ~torch.isnan(found)
            found = torch.where(known, found, 0.0)
            for key, value in (
                (name, found.sum(0)), (f"{name}_squares", found.square().sum(0)), (f"{name}_n", known.sum(0))
            ):  # fmt: skip
                self._sums[key] = self._sums.get(key, 0) + value.double().cpu().numpy()

    def found(self) -> Spatial:
        """The scores.

        Raises:
            BadData: nothing was counted.
        """
        if not self._sums:
            raise BadData("no patch maps were counted.")
        s = self._sums
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = {name: s[name] / s[f"{name}_n"] for name in ("moran", "shuffled")}
            n = s["shuffled_n"]
            variance = np.maximum(s["shuffled_squares"] / n - mean["shuffled"] ** 2, 0) * n / np.maximum(n - 1, 1)
            limit = mean["shuffled"] + 1.645 * np.sqrt(variance / n)
        # With one image there is no spread: nothing is told from chance.
        limit = np.where(n > 1, limit, np.inf)
        return Spatial(
            moran=mean["moran"], shuffled=mean["shuffled"], limit=limit, images=s["moran_n"].astype(np.int64)
        )
