"""A cheap estimate of a sweep's effects: gradient times difference, one forward and one backward pass per image.

    effect of a unit  ~  sum over tokens and features of  d metric / d activation  x  (activation - what replaces it)

This is attribution patching (Nanda 2023; Syed et al. 2023), for any edit. On a confident model it can be far from the
effect, sign included, so it decides nothing here: it serves as a control variate, which lowers the variance as far as
it is correlated with the effects and biases nothing.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mechvis.errors import BadData
from mechvis.parallel.ledger import Ledger, Piece
from mechvis.progress import track
from mechvis.sweep_inputs import Prepared
from mechvis.units import KINDS

BATCH = 32
"""Images per backward pass."""


def first_order(
    prepared: Prepared,
    order: np.ndarray,
    *,
    folder: Path | None = None,
    plan: dict | None = None,
    progress: bool = True,
) -> np.ndarray:
    """Estimated effects on the first metric.

    Args:
        prepared: the sweep.
        order: positions of images `[image]`.
        folder: keep finished pieces here, and continue from them.
        plan: what identifies the job there.
        progress: show a progress bar.

    Returns:
        `[unit image]` float32, in the metric's unit.

    Raises:
        BadData: the metric has no gradient (accuracy), or units of a kind that is not known here.
    """
    if strange := [unit.kind for unit in prepared.units if unit.kind not in KINDS]:
        raise BadData(f"control=True knows the units {', '.join(KINDS)}, not {strange[0]}. Leave it out.")
    prepared.model._check_mode()
    ledger = None if folder is None else Ledger(folder, plan or {})
    step = BATCH if ledger is None else ledger.agree(BATCH, len(prepared.units))[0]
    found = np.empty((len(prepared.units), len(order)), dtype=np.float32)
    with track(len(order), "gradients", " images", show=progress) as bar:
        for start in range(0, len(order), step):
            part = order[start : start + step]
            piece = Piece(range(start, start + len(part)), range(len(prepared.units)))
            kept = None if ledger is None else ledger.read(piece)
            if kept is None:
                kept = {"estimate": _estimate(prepared, part)}
                if ledger is not None:
                    ledger.write(piece, kept)
            found[:, start : start + len(part)] = kept["estimate"]
            bar.update(len(part))
    return found


def _estimate(prepared: Prepared, part: np.ndarray) -> np.ndarray:
    model = prepared.model
    sites = sorted({unit.site for unit in prepared.units})
    pixels = prepared.pixels(part).to(model.device, model.dtype)
    replacement = prepared.replacement(prepared.units, part)
    run = model.run(pixels, capture=sites, grad=True)
    logits, name = run.output, prepared.metrics[0][0]
    clean = logits.detach()
    with torch.enable_grad():
        metric = prepared.metrics[0][1](logits, *prepared.classes(clean, part), clean)
    if not metric.requires_grad:
        raise BadData(f"control=True needs a metric with a gradient, and {name!r} has none. logit_diff has one.")
    values = [run.cache[site] for site in sites]
    gradients = torch.autograd.grad(metric.sum(), values, allow_unused=True)
    estimates: dict[str, Tensor] = {}
    for site, value, gradient in zip(sites, values, gradients, strict=True):
        new = replacement(site)
        change = value.detach() if new is None else value.detach() - new
        estimates[site] = torch.zeros_like(change) if gradient is None else change * gradient
    rows = [_of_unit(estimates[unit.site], unit.kind, unit.index) for unit in prepared.units]
    return torch.stack(rows).float().cpu().numpy()


def _of_unit(estimate: Tensor, kind: str, index: int | None) -> Tensor:
    """Sum of one unit's share `[image]` of `[image token ...]`."""
    if kind == "tokens":
        estimate = estimate[:, index]
    elif kind == "neurons":
        estimate = estimate[..., index]
    elif index is not None:
        estimate = estimate[:, :, index]
    return estimate.flatten(1).sum(1)
