"""Train a B-cos student to see what its teacher sees: ALOE, features aligned without labels (methods.md 11, **N**).

    loss = 1 - cos(final embedding)                                    of student and teacher
         + mean over depths L/3, 2L/3, L of 1 - cos(tokens)            every token on its own
         + norm_weight  x mean over units of (log s - log s at the start)^2
         + logit_weight x KL(teacher || student)                       (**X**)

The teacher is frozen; both are wrapped, so the features are captured at the same named sites of two models at once.
The third term is the penalty on differences of weight norms: rows have unit length in a B-cos unit, and `s` is what is
left of a norm. The fourth is ours: a zero-shot head reads the embedding, which is aligned, but a classifier's head has
to be learned with the student. `logit_weight=0` is ALOE as described.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mechvis.errors import BadData, NotFinite, OutOfRange
from mechvis.progress import track
from probes.bcos.family import wrap_student
from probes.bcos.student import BcosViT
from probes.bcos.units import BcosLinear


@dataclass(frozen=True, kw_only=True, eq=False)
class Aligned:
    """A trained student and its course."""

    student: BcosViT
    """In eval mode."""
    model: Any
    """The same, wrapped."""
    losses: Float[np.ndarray, "step term"]
    """Terms of the loss before their weights, per step."""
    terms: tuple[str, ...]
    """Their names."""
    ids: tuple[str, ...] = ()
    """Images it was trained on, to refuse them when it is judged."""


TERMS = ("embedding", "tokens", "norms", "logits")


def align(
    student: BcosViT,
    teacher: Any,
    images: Any,
    *,
    steps: int = 400,
    batch_size: int = 24,
    rate: float = 1e-3,
    warm_up: float = 0.1,
    norm_weight: float = 1e-2,
    logit_weight: float = 1.0,
    tau: float = 1.0,
    depths: Sequence[float] = (1 / 3, 2 / 3, 1.0),
    seed: int = 0,
    progress: bool = True,
) -> Aligned:
    """Align a student with its frozen teacher on unlabelled images.

    Args:
        student: from :func:`probes.bcos.convert`; it is trained in place.
        teacher: the wrapped model; it stays as it is.
        images: an `ImageSet`, or pixels.
        steps, batch_size: of training.
        rate: largest step of Adam; it rises over the share `warm_up` of the steps and falls to zero by a cosine.
        warm_up: see `rate`.
        norm_weight, logit_weight: of the last two terms.
        tau: temperature of the last.
        depths: shares of the depth at which tokens are aligned.
        seed: of the order of the images.
        progress: show a progress bar.

    Returns:
        Aligned: student, the same wrapped, and the terms of the loss per step.

    Raises:
        BadData: no image, or fewer than a batch.
        OutOfRange: a setting outside its range.
        NotFinite: the loss is NaN or Inf: smaller steps are needed.

    Example:
        >>> images = mechvis.data.scenes(n=2000, seed=5)                                       # doctest: +SKIP
        >>> found = align(convert(teacher, images[:64]), teacher, images)                      # doctest: +SKIP
        >>> found.losses[-1]                                                                   # doctest: +SKIP
    """
    if steps < 1 or batch_size < 1 or rate <= 0 or not 0 <= warm_up < 1 or min(norm_weight, logit_weight) < 0:
        raise OutOfRange(
            f"steps={steps}, batch_size={batch_size}, rate={rate}, warm_up={warm_up}, norm_weight={norm_weight}, "
            f"logit_weight={logit_weight}: at least one step of one image, a positive rate, warm_up in [0, 1), weights "
            "of 0 or more."
        )
    if not depths or not all(0 < depth <= 1 for depth in depths):
        raise OutOfRange(f"depths={tuple(depths)}: give shares of the depth, above 0 and at most 1.")
    if len(images) < batch_size:
        raise BadData(f"{len(images)} images are fewer than a batch of {batch_size}.")
    pixels = images.pixels_for(teacher.preprocess) if hasattr(images, "pixels_for") else images
    pixels = pixels.to(teacher.device, teacher.dtype)
    model = wrap_student(student, teacher)
    sites = depth_sites(len(student.blocks), depths)
    units = [unit for unit in student.modules() if isinstance(unit, BcosLinear)]
    first = [unit.log_scale.detach().clone() for unit in units]
    optimiser = torch.optim.Adam(student.parameters(), lr=rate)
    generator, losses = np.random.default_rng(seed), np.zeros((steps, len(TERMS)))
    order = np.concatenate([generator.permutation(len(pixels)) for _ in range(-(-steps * batch_size // len(pixels)))])
    weights = torch.tensor([1.0, 1.0, norm_weight, logit_weight])
    with track(steps, "aligning", " steps", show=progress) as bar:
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = rate * _schedule(step / steps, warm_up)
            part = pixels[torch.from_numpy(order[step * batch_size : (step + 1) * batch_size])]
            terms = losses_of(model, teacher, part, sites, units, first, tau=tau)
            loss = (terms * weights.to(terms)).sum()
            if not torch.isfinite(loss):
                raise NotFinite(f"the loss is {float(loss)} at step {step}: use a smaller rate than {rate}.")
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimiser.step()
            losses[step] = terms.detach().double().cpu().numpy()
            bar.update(1)
    optimiser.zero_grad(set_to_none=True)
    ids = tuple(getattr(images, "ids", ()))
    return Aligned(student=student, model=wrap_student(student, teacher), losses=losses, terms=TERMS, ids=ids)


def losses_of(
    model: Any,
    teacher: Any,
    pixels: Tensor,
    sites: Sequence[str],
    units: Sequence[BcosLinear],
    first: Sequence[Tensor],
    *,
    tau: float = 1.0,
) -> Float[Tensor, " term"]:
    """The terms of the loss on a batch, with their graph: `embedding`, `tokens`, `norms`, `logits`."""
    wanted = [*sites, "hook_pooled"]
    told = teacher.run(pixels, capture=wanted)
    ours = model.run(pixels, capture=wanted, grad=True, check_finite=False)
    tokens = [1 - F.cosine_similarity(ours.cache[site], told.cache[site], dim=-1).mean() for site in sites]
    embedding = 1 - F.cosine_similarity(ours.cache["hook_pooled"], told.cache["hook_pooled"], dim=-1).mean()
    norms = torch.stack([(unit.log_scale - start).square().mean() for unit, start in zip(units, first, strict=True)])
    said, wanted_ = (ours.logits / tau).log_softmax(-1), (told.logits / tau).softmax(-1)
    logits = F.kl_div(said, wanted_, reduction="batchmean")
    return torch.stack([embedding, torch.stack(tokens).mean(), norms.mean(), logits])


def depth_sites(n_layers: int, depths: Sequence[float] = (1 / 3, 2 / 3, 1.0)) -> list[str]:
    """Where tokens are aligned: the stream after the block at each share of the depth, every site once.

    Example:
        >>> depth_sites(12)
        ['blocks.3.hook_resid_post', 'blocks.7.hook_resid_post', 'blocks.11.hook_resid_post']
    """
    after = sorted({max(1, round(depth * n_layers)) for depth in depths})
    return [f"blocks.{layer - 1}.hook_resid_post" for layer in after]


def _schedule(done: float, warm_up: float) -> float:
    if done < warm_up:
        return (done + 1e-3) / warm_up
    return 0.5 * (1 + float(np.cos(np.pi * (done - warm_up) / (1 - warm_up))))
