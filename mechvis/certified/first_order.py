"""A cheap estimate of a sweep's effects: gradient times difference, one forward and one backward pass per image.

    effect of a unit  ~  sum over tokens and features of  d metric / d activation  x  (activation - what replaces it)

This is attribution patching (Nanda 2023; Syed et al. 2023), for any edit and every kind of unit. On a confident model
it can be far from the effect, sign included, so it decides nothing here: it serves as a control variate, which lowers
the variance as far as it is correlated with the effects and biases nothing.
"""

from pathlib import Path

import numpy as np
import torch
from einops import reduce
from jaxtyping import Bool, Float
from torch import Tensor

from mechvis.errors import BadData
from mechvis.parallel.ledger import Ledger, Piece, cut
from mechvis.parallel.share import shared
from mechvis.parallel.world import world
from mechvis.progress import track
from mechvis.sweep_inputs import Prepared
from mechvis.units import Unit

BATCH = 32
"""Images per backward pass."""

PER_HEAD = ("heads", "result", "pool_heads")
WHOLE = ("attn_out", "mlp_out")


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
        folder: keep finished pieces here, and continue from them; processes that are given the same folder share them.
        plan: what identifies the job there.
        progress: show a progress bar.

    Returns:
        `[unit image]` float32, in the metric's unit; 0 where a group of patches has no patch.

    Raises:
        BadData: the metric has no gradient (accuracy), or units of a kind that is not known here.
    """
    prepared.model._check_mode()
    n_units, found = len(prepared.units), np.empty((len(prepared.units), len(order)), dtype=np.float32)
    ledger = None if folder is None else Ledger(folder, plan or {})
    step = BATCH if ledger is None else ledger.agree(BATCH, n_units)[0]
    show = progress and (ledger is None or world().leads)
    with track(len(order), "gradients", " images", show=show) as bar:

        def compute(piece: Piece) -> dict[str, np.ndarray]:
            return {"estimate": _estimate(prepared, order[piece.images.start : piece.images.stop])}

        def keep(piece: Piece, arrays: dict[str, np.ndarray]) -> None:
            found[:, piece.images.start : piece.images.stop] = arrays["estimate"]
            bar.update(len(piece.images))

        pieces = cut(len(order), n_units, step, n_units)
        if ledger is not None:
            shared(ledger, pieces, compute, keep)
        else:
            for piece in pieces:
                keep(piece, compute(piece))
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
    groups = prepared.groups
    members = None if groups is None or not groups.per_image else groups.members[torch.as_tensor(part)]
    rows = [_of_unit(unit, estimates[unit.site], members) for unit in prepared.units]
    return torch.stack(rows).float().cpu().numpy()


def _of_unit(
    unit: Unit, estimate: Float[Tensor, "image token ..."], members: Bool[Tensor, "image group token"] | None
) -> Float[Tensor, " image"]:
    """One unit's share of the sum; `members`: tokens of groups of patches, where they differ from image to image."""
    if unit.kind in PER_HEAD:
        estimate = estimate[:, :, unit.index]
    elif unit.kind == "neurons":
        estimate = estimate[..., unit.index]
    elif unit.kind == "tokens":
        estimate = estimate[:, unit.index]
    elif unit.kind == "patches" and unit.tokens is not None:
        estimate = estimate[:, list(unit.tokens)]
    elif unit.kind == "patches" and members is not None:
        per_token = reduce(estimate, "image token ... -> image token", "sum")
        estimate = per_token * members[:, unit.index].to(per_token.device)
    elif unit.kind not in WHOLE:
        known = (*PER_HEAD, *WHOLE, "neurons", "tokens", "patches")
        raise BadData(f"control=True knows the units {', '.join(known)}, not {unit.kind}. Leave it out.")
    return reduce(estimate, "image ... -> image", "sum")
