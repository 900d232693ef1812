"""Causal control in the model: latents exchanged between images and their counterfactuals, the model as read-out.

As `sae.evaluation.control`, on pairs of images that differ in one factor. The same latents are exchanged at all tokens
of an image, and what the model then says is compared with what it says with the whole counterfactual activation in
place.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mechvis.errors import BadData
from sae.evaluation.control import KS, Control, record, require_autoencoder
from sae.evaluation.exchange import Way, exchanges, weights
from sae.evaluation.intervals import columns, mean
from sae.evaluation.place import place_of
from sae.evaluation.recovered import clean_pass, replaced
from sae.evaluation.written import strengths


@torch.no_grad()
def control_in_model(
    dictionary: Any,
    model: Any,
    pairs: Any,
    *,
    ks: Sequence[int] = KS,
    ways: Sequence[Way] = ("greedy", "random"),
    head: int | None = None,
    tokens: str | Sequence[int] = "all",
    batch_size: int = 64,
    seed: int = 0,
) -> Control:
    """Exchange latents between images and their counterfactuals, inside the model.

    The reference is the run of the clean image with the counterfactual activation in place of the whole selection:
    what replacing everything there does. Latents are exchanged at all tokens of an image at once.

    Args:
        dictionary: an autoencoder of one site.
        model: a wrapped model with a head.
        pairs: `mechvis.data.scene_pairs(...)`: images that differ in one factor.
        ks: how many latents of an image are exchanged at most.
        ways: greedy, random.
        head: the only head, where a row is one.
        tokens: which tokens.
        batch_size: pairs per run.
        seed: of random choices and resamples.

    Returns:
        success: the prediction is that of the reference; kept: it is, on pairs whose reference did not change it.

    Raises:
        BadData: a crosscoder or transcoder, a model without a head.
        UnknownSite, ShapeMismatch: the dictionary is about something that this model does not have.
    """
    require_autoencoder(dictionary)
    if model.parts.head is None:
        raise BadData("this model has no head, so there is no prediction to control; for CLIP take clip.classifier.")
    (site, width), *_ = dictionary.ends.reads.items()
    place = place_of(model, site, width, head=head, tokens=tokens)
    directions, generator = dictionary.directions.double(), torch.Generator().manual_seed(seed)
    sums: dict[tuple[str, int | None], list[list[np.ndarray]]] = {}
    for start in range(0, len(pairs.clean), batch_size):
        part = slice(start, start + batch_size)
        one, other = (clean_pass(model, images[part], [place.site]) for images in (pairs.clean, pairs.corrupt))
        h, h_new = (place.take(run.activations[place.site]) for run in (one, other))
        codes, new = strengths(dictionary, h), strengths(dictionary, h_new)
        change, target = new - codes, (h_new - h).double()
        reference = _logits(replaced(model, one, {place.site: place.put(one.activations[place.site], h_new)}))
        untouched = one.logits.double()
        share = torch.from_numpy(weights(dictionary, h.flatten(0, 1))).unflatten(0, h.shape[:2])
        variants: list[tuple[str, int | None, Tensor | None]] = [("nothing", 0, None)]
        for way in ways:
            found = exchanges(change, target, directions, ks, way, generator=generator)
            variants += [(way, k, chosen) for k, chosen in found.items()]
        variants.append(("everything", None, torch.ones(codes.shape[0], codes.shape[2], dtype=torch.bool)))
        for way, k, chosen in variants:
            moved = h.double() if chosen is None else h.double() + (change * chosen.to(h.device)[:, None]) @ directions
            logits = untouched
            if chosen is not None:
                logits = _logits(replaced(model, one, {place.site: place.put(one.activations[place.site], moved)}))
            size = torch.zeros(len(h)) if chosen is None else (share * chosen.cpu()[:, None]).sum(2).mean(1)
            far = (h_new - moved).double().square().sum((1, 2)) / target.square().sum((1, 2)).clamp_min(1e-300)
            hit = (logits.argmax(1) == reference.argmax(1)).double()
            moves = (untouched.argmax(1) != reference.argmax(1)).double()
            numbers = (hit, moves, _kl(reference, logits), _kl(reference, untouched), size, far)
            sums.setdefault((way, k), []).append([t.double().cpu().numpy() for t in numbers])
    table = []
    for (way, k), parts in sums.items():
        hit, moves, left, at_first, size, far = (np.concatenate(column) for column in zip(*parts, strict=True))
        for name, which in ((f"{pairs.change} (prediction moves)", moves > 0), (f"{pairs.change} (stays)", moves == 0)):
            if not which.any():
                continue
            table.append(
                {"attribute": name, "way": way, "k": k,
                 **columns("success", mean(hit[which], seed=seed)), "magnitude": float(size[which].mean()),
                 "distance": float(far[which].mean()),
                 "recovered": float(1 - left[which].sum() / max(at_first[which].sum(), 1e-300)), "n": int(which.sum())}
            )  # fmt: skip
    return record(table, f"Control of {pairs.change} in {model.name}", seed, model=model, images=pairs.clean)


def _logits(outputs: tuple[Tensor, Tensor]) -> Tensor:
    return outputs[0].double()


def _kl(reference: Tensor, found: Tensor) -> Tensor:
    p, q = reference.log_softmax(1), found.log_softmax(1)
    return (p.exp() * (p - q)).sum(1).clamp_min(0)
