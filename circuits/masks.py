"""Object masks for CIGMA: given ones, or ones that the model itself finds (methods.md 1.1 step 1, 1.2 step 2).

An optimised mask is the smallest smooth region that keeps the model's prediction:

    M = argmin  lam_JS JS(q, p(keep(M))) + lam_1 mean|M| + lam_TV TV(M),   keep(M) = U(M) I + (1 - U(M)) B

on a 32 x 32 grid, Adam, 250 steps, then binarised to its top 35 % of cells. The norms are means over cells (the notes
do not say; sums would tie the weights to the grid size) [X].

It is *the model's* foreground: where the model relies on the context, the optimised mask is the context, and then BIG
measures the object. So every mask is checked (`JS(q, p(keep(S))) < 0.05`, failures are counted), and compared with
given masks where both exist.

Two things are ours [X]: where the optimised mask is flat (cells that ended at exactly 0 or 1), the cells nearest to the
rest of the mask fill up the share, not the first ones of the image; and the mask is optimised in single precision at
least, whatever the model's type.
"""

import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.information import Fill, blur, fill_of
from mechvis.axes import Mask, Pixels
from mechvis.data.images import ImageSet
from mechvis.errors import FailedMasks, OutOfRange, ShapeMismatch
from mechvis.files import checksum
from mechvis.metrics import jensen_shannon
from mechvis.parallel.ledger import Ledger, cut
from mechvis.progress import track

SELF_CHECK = 0.05
"""Largest JS (nats) between the prediction and the prediction on the masked image for a mask that counts."""


@dataclass(frozen=True, kw_only=True)
class MaskSettings:
    """How masks are optimised; the defaults are the paper's, but for the units of the norms."""

    grid: int = 32
    """Cells per side."""
    steps: int = 250
    """Adam steps."""
    learning_rate: float = 0.05
    """Adam's step size."""
    weight_js: float = 1.0
    """Weight of the prediction term."""
    weight_size: float = 0.01
    """Weight of mean |M|."""
    weight_smooth: float = 0.1
    """Weight of the mean total variation."""
    keep: float = 0.35
    """Share of cells kept by the binarisation."""
    tau: float = 1.0
    """Softmax temperature."""

    def __post_init__(self):
        if self.grid < 1 or self.steps < 1 or not 0 < self.keep < 1 or self.tau <= 0 or self.learning_rate <= 0:
            raise OutOfRange(f"grid and steps are at least 1, 0 < keep < 1, tau and learning_rate above 0; got {self}.")


@dataclass(frozen=True)
class Masks:
    """Binary masks with their self-check."""

    masks: Mask
    """True on the (model-defined) object, `[image height width]`."""
    divergence: np.ndarray
    """JS between the prediction and that on the masked image, nats, `[image]`."""
    source: str
    """`given` or `optimised`."""

    @property
    def failed(self) -> np.ndarray:
        """Which optimised masks fail the self-check, bool `[image]`."""
        return self.divergence >= SELF_CHECK if self.source == "optimised" else np.zeros(len(self.divergence), bool)


def optimise_masks(
    model: Any,
    images: Pixels | ImageSet,
    *,
    settings: MaskSettings | None = None,
    fill: Fill = "mean",
    batch_size: int = 32,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Masks:
    """The smallest smooth region per image that keeps the model's prediction, binarised.

    Args:
        model: a wrapped model with a head.
        images: an image set (read batch by batch), or normalised pixels.
        settings: weights and steps.
        fill: what the rest of the image becomes.
        batch_size: images per optimisation batch (images do not influence each other).
        folder: keep finished batches here, and continue from them.
        progress: show a progress bar.

    Returns:
        Masks: with the self-check per image; failures are warned about and counted, not dropped.
    """
    settings = settings or MaskSettings()
    plan = None if folder is None else _plan(model, images, settings, fill)
    ledger = None if folder is None else Ledger(folder, plan or {})
    batch_size = batch_size if ledger is None else ledger.agree(batch_size, 1)[0]
    found, divergence = [], []
    with track(len(images), "optimising masks", " images", show=progress) as bar:
        for piece in cut(len(images), 1, batch_size, 1):
            done = None if ledger is None else ledger.read(piece)
            if done is None:
                done = _optimise(model, images[piece.images.start : piece.images.stop], settings, fill)
                if ledger is not None:
                    ledger.write(piece, done)
            found.append(torch.from_numpy(done["masks"]))
            divergence.append(done["divergence"])
            bar.update(len(piece.images))
    masks = Masks(torch.cat(found), np.concatenate(divergence), "optimised")
    if masks.failed.any():
        warnings.warn(
            f"{int(masks.failed.sum())} of {len(images)} optimised masks do not keep the prediction "
            f"(JS >= {SELF_CHECK}); they are counted in the report. Given masks are safer.",
            FailedMasks,
            stacklevel=2,
        )
    return masks


def _plan(model: Any, images: Pixels | ImageSet, settings: MaskSettings, fill: Fill) -> dict[str, Any]:
    data = images.fingerprint if isinstance(images, ImageSet) else checksum(images.cpu().float().numpy().tobytes())[:16]
    pixels = model.preprocess.fingerprint if isinstance(images, ImageSet) else ""
    return {
        "masks": "optimised",
        "model": model.fingerprint,
        "data": data,
        "pixels": pixels,
        "fill": fill,
        **asdict(settings),
    }


def _optimise(model: Any, images: Pixels | ImageSet, settings: MaskSettings, fill: Fill) -> dict[str, np.ndarray]:
    pixels = images.pixels_for(model.preprocess) if isinstance(images, ImageSet) else images
    pixels = model.inputs(pixels.to(model.device, model.dtype))
    exact = torch.promote_types(model.dtype, torch.float32)
    # Only forward values and input gradients are needed: the weights keep their flags, and get no gradient.
    # The caller may have switched gradients off.
    with torch.inference_mode(False), torch.enable_grad():
        wide = pixels.to(exact, copy=True)
        binary = _binarise(_soft_masks(model, wide, fill_of(wide, fill), settings), settings.keep)
    masks = F.interpolate(binary[:, None].to(exact), size=pixels.shape[-2:], mode="nearest")[:, 0] > 0.5
    divergence = self_check(model, pixels, masks, fill=fill, tau=settings.tau)
    return {"masks": masks.cpu().numpy(), "divergence": divergence}


def _soft_masks(model: Any, pixels: Pixels, blank: Pixels, settings: MaskSettings) -> Float[Tensor, "image grid grid"]:
    def answer(x: Pixels) -> Tensor:
        return (model(x.to(model.dtype)).double() / settings.tau).softmax(-1)

    with torch.no_grad():
        goal = answer(pixels)
    mask = torch.full((len(pixels), settings.grid, settings.grid), 0.5, dtype=pixels.dtype, device=pixels.device)
    mask.requires_grad_(True)
    optimiser = torch.optim.Adam([mask], lr=settings.learning_rate)
    for _ in range(settings.steps):
        wide = F.interpolate(mask[:, None], size=pixels.shape[-2:], mode="bilinear", align_corners=False)
        kept = answer(wide * pixels + (1 - wide) * blank)
        variation = (mask[:, 1:] - mask[:, :-1]).abs().mean((1, 2)) + (mask[:, :, 1:] - mask[:, :, :-1]).abs().mean(
            (1, 2)
        )
        loss = (
            settings.weight_js * jensen_shannon(goal, kept)
            + settings.weight_size * mask.abs().mean((1, 2))
            + settings.weight_smooth * variation
        )
        # A sum over images: each image's mask has its own loss, whatever else is in the batch.
        (mask.grad,) = torch.autograd.grad(loss.sum(), [mask])
        optimiser.step()
        with torch.no_grad():
            mask.clamp_(0, 1)
    return mask.detach()


def _binarise(soft: Float[Tensor, "image grid grid"], keep: float) -> Bool[Tensor, "image grid grid"]:
    """The top share of cells; of equal cells those with the most mask around them, so that the size is exact."""
    flat = soft.flatten(1)
    nearby = blur(soft[:, None], sigma=max(1.0, soft.shape[-1] / 8)).flatten(1) if soft.shape[-1] > 1 else flat
    # Sort by the second key, then stably by the first.
    order = nearby.sort(dim=1, descending=True, stable=True).indices
    order = order.gather(1, flat.gather(1, order).sort(dim=1, descending=True, stable=True).indices)
    order = order[:, : max(1, round(keep * flat.shape[1]))]
    return torch.zeros_like(flat, dtype=torch.bool).scatter_(1, order, True).reshape(soft.shape)


@torch.no_grad()
def self_check(model: Any, pixels: Pixels, masks: Mask, *, fill: Fill = "mean", tau: float = 1.0) -> np.ndarray:
    """JS between the prediction on the image and on its masked part, in nats `[image]`."""
    blank = fill_of(pixels.to(torch.promote_types(pixels.dtype, torch.float32)), fill).to(pixels.dtype)
    kept = torch.where(masks[:, None].to(pixels.device), pixels, blank)
    q, p = ((model(x).double() / tau).softmax(-1) for x in (pixels, kept))
    return jensen_shannon(q, p).cpu().numpy()


def intersection_over_union(first: Mask, second: Mask) -> np.ndarray:
    """IoU per image `[image]`; two empty masks agree perfectly."""
    if first.shape != second.shape:
        raise ShapeMismatch(f"masks of shapes {list(first.shape)} and {list(second.shape)} cannot be compared.")
    both = (first & second).flatten(1).sum(1).double()
    either = (first | second).flatten(1).sum(1).double()
    return torch.where(either > 0, both / either.clamp(min=1), torch.ones_like(both)).cpu().numpy()


def read_masks(images: ImageSet, preprocess: Any, *, batch_size: int = 256) -> Mask:
    """Given masks at the model's resolution, on the CPU; the files are read a few at a time."""
    parts = [
        images[start : start + batch_size].masks_for(preprocess).cpu() for start in range(0, len(images), batch_size)
    ]
    return torch.cat(parts)
