"""What a head selection must beat: random heads, direct effect, and Locate-Then-Correct (methods.md 1.6).

* *Random heads*: the same number of heads, drawn without looking at scores; at least 20 draws. The chosen set itself
  is not drawn: in a small model it would turn up among the controls by chance.
* *Direct effect*: heads ordered by how much their write, read directly by the head, raises the best other class over
  the label on wrongly classified images (one forward pass, no ablation).
* *Locate-Then-Correct*: on each image, the head with the largest direct effect on the contrast of what the model
  answered (label against best other class; reversed where the model errs [X]) is "the salient one"; heads that are
  salient more often where the model errs than where it is right, on bias-conflicting images, are spurious, and are
  mean-ablated.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

from mechvis.data.images import ImageSet
from mechvis.errors import BadData, OutOfRange
from mechvis.metrics import classes_of
from mechvis.models.transformers import linear_weight
from mechvis.norms import is_rms
from mechvis.units import Unit, head_units


def random_heads(model: Any, k: int, draws: int, *, seed: int, without: Sequence[Unit] = ()) -> list[list[Unit]]:
    """`draws` random sets of `k` heads, all different if there are that many sets; else the same one is drawn again.

    Args:
        model: a wrapped model.
        k: heads per set.
        draws: number of sets.
        seed: fixes them.
        without: a set that is not drawn (single heads of it are).

    Raises:
        OutOfRange: more heads asked for than there are, or the excluded set is the only one.
    """
    every = all_heads(model)
    if not 0 <= k <= len(every):
        raise OutOfRange(f"{k} random heads asked for, the model has {len(every)}.")
    excluded = sorted(without)
    if k == len(excluded) and k in (0, len(every)):
        raise OutOfRange(f"there is only one set of {k} of {len(every)} heads, so nothing to compare it with.")
    generator = np.random.default_rng(seed)
    repeat = math.comb(len(every), k) - (k == len(excluded)) < draws
    found: list[list[Unit]] = []
    while len(found) < draws:
        drawn = sorted(every[i] for i in generator.choice(len(every), k, replace=False))
        if not (excluded and drawn == excluded) and (repeat or drawn not in found):
            found.append(drawn)
    return found


@torch.no_grad()
def direct_effects(
    model: Any, images: ImageSet, *, batch_size: int = 64
) -> tuple[Float[Tensor, "image head_of_all"], Float[Tensor, "image class"]]:
    """Direct effect of every head on (label logit - contrast logit), in logits, and the clean logits.

    The contrast is the best other class of the clean run. The final LayerNorm (for zero-shot heads also the length of
    the embedding) is held at its clean value, so the parts sum to the logit difference; what is not a head (embedding,
    MLPs, biases) is left out.

    Raises:
        BadData: the read-out is not one token through a LayerNorm and a linear head.
    """
    directions = _class_directions(model)
    labels, found, logits = images.label_tensor, [], []
    n_layers = len(model.parts.blocks)
    sites = [f"blocks.{layer}.attn.hook_z" for layer in range(n_layers)]
    token, norm = model.parts.reads[0], model.parts.ln_final
    zero_shot = hasattr(model.parts.head, "prompts")
    extra = ["ln_final.hook_scale", *(["hook_embedding"] if zero_shot else [])]
    for start in range(0, len(images), batch_size):
        own = labels[start : start + batch_size].to(model.device)
        run = model.run(images[start : start + batch_size], capture=[*sites, *extra])
        target, contrast = classes_of(run.logits, own)
        direction = directions[target] - directions[contrast]
        if hasattr(norm, "eps") and not is_rms(norm):
            direction = direction - direction.mean(-1, keepdim=True)  # LayerNorm subtracts the mean of what it reads
        scale = run.cache["ln_final.hook_scale"]
        direction = direction / scale[:, token if model.parts.norm == "tokens" else 0]
        if zero_shot:
            length = run.cache["hook_embedding"].norm(dim=-1, keepdim=True)
            direction = direction * (model.parts.head.scale / length)
        per_layer = []
        for site, block in zip(sites, model.parts.blocks, strict=True):
            z = run.cache[site][:, token]
            write = einsum(z, block.attn.out_weight(), "image head e, head e d -> image head d")
            write = write if block.scale1 is None else block.scale1(write)
            per_layer.append(einsum(write, direction, "image head d, image d -> image head"))
        found.append(torch.cat(per_layer, dim=1).double())
        logits.append(run.logits)
    return torch.cat(found), torch.cat(logits)


def _class_directions(model: Any) -> Float[Tensor, "class d_model"]:
    reads, head = model.parts.reads, model.parts.head
    if not (isinstance(reads, tuple) and len(reads) == 1):
        seen = f"{len(reads)} tokens" if isinstance(reads, tuple) else "all tokens"
        raise BadData(f"direct effects need a read-out from one token (CLS); {model.parts.family} reads {seen}.")
    if not all(block.linear_writes for block in model.parts.blocks):
        raise BadData(f"direct effects need a stream that heads add up to; {model.parts.family} norms after attention.")
    if model.parts.project is None and hasattr(head, "weight"):
        weight = linear_weight(head)
    elif hasattr(model.parts.project, "weight") and hasattr(head, "prompts"):
        weight = head.prompts @ linear_weight(model.parts.project)
    else:
        raise BadData("direct effects need a linear head, or a projection with a zero-shot head.")
    gain = getattr(model.parts.ln_final, "weight", None)
    return weight if gain is None else weight * gain


def all_heads(model: Any) -> list[Unit]:
    """Every head, in the order of :func:`direct_effects`."""
    return head_units(
        (layer, head) for layer, block in enumerate(model.parts.blocks) for head in range(block.attn.n_heads)
    )


def by_direct_effect(model: Any, images: ImageSet) -> list[Unit]:
    """Heads ordered by how strongly their direct effect speaks against the label on wrongly classified images (on all
    images, if none is wrong)."""
    effects, logits = direct_effects(model, images)
    wrong = logits.argmax(-1).cpu() != images.label_tensor
    against = -(effects[wrong] if wrong.any() else effects).mean(0)
    every = all_heads(model)
    return [every[i] for i in against.argsort(descending=True, stable=True).tolist()]


def locate_then_correct(model: Any, images: ImageSet, conflicting: np.ndarray | None = None) -> list[Unit]:
    """Spurious heads by Locate-Then-Correct, most spurious first (possibly none).

    Args:
        model: a wrapped model with a linear or zero-shot head.
        images: labelled selection images.
        conflicting: which are bias-conflicting, bool `[image]`; all by default.

    Returns:
        Heads with `w_h - c_h > 1 / (number of heads with any count)`, where `c_h` and `w_h` are the shares of correctly
        and wrongly classified conflicting images on which the head's direct effect is the largest.
    """
    effects, logits = direct_effects(model, images)
    used = torch.ones(len(images), dtype=torch.bool) if conflicting is None else torch.as_tensor(conflicting)
    right = (logits.argmax(-1).cpu() == images.label_tensor)[used]
    every = all_heads(model)
    return [every[i] for i in spurious(effects.cpu()[used], right)]


def spurious(effects: Float[Tensor, "image head_of_all"], right: Bool[Tensor, " image"]) -> list[int]:
    """Heads that are salient on wrong images more often than on right ones by more than chance; most spurious first.

    Example:
        >>> effects = torch.tensor([[2.0, 1.0], [2.0, 1.0], [1.0, -3.0], [1.0, -3.0]])
        >>> spurious(effects, torch.tensor([True, True, False, False]))
        [1]
    """
    # The salient head is the one that speaks loudest for what the model answered.
    salient = torch.where(right[:, None], effects, -effects).argmax(1)
    n = effects.shape[1]

    def share(chosen: Tensor) -> Tensor:
        return torch.bincount(salient[chosen], minlength=n).double() / max(int(chosen.sum()), 1)

    difference = share(~right) - share(right)
    counted = int((torch.bincount(salient, minlength=n) > 0).sum())
    order = difference.argsort(descending=True, stable=True).tolist()
    return [i for i in order if difference[i] > 1 / max(counted, 1)]


def conflicting_images(images: ImageSet, names: Sequence[str] = ("conflicting", "conflict")) -> np.ndarray | None:
    """Which images are bias-conflicting, by their group's name; None where groups do not say."""
    if images.groups is None:
        return None
    found = np.isin(np.asarray(images.groups).astype(str), list(names))
    return found if found.any() else None
