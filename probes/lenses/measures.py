"""How a reading compares with the truth and with the model's final answer: some numbers per reading.

=================  ===================================================================================================
measure            what it is
=================  ===================================================================================================
`accuracy`         is the top class the target?
`identifiability`  1 - rank / C of the target's logit, ranks counted from 0, ties at their mean: 1 is best, 1 / C worst,
                   (C + 1) / 2C what chance gives (Vilas et al. 2023 **K**)
`probability`      softmax probability of the target
`cosine`           of the reading with the target's text (zero-shot heads only)
`kl`               KL(final || lens) in nats, summed over classes
`agreement`        is the top class the final answer's top class?
=================  ===================================================================================================

The first four need targets. Probabilities are a softmax over the logits, also for models trained with a sigmoid per
text.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from probes.lenses.read_out import cosines

MEASURES = ("accuracy", "identifiability", "probability", "cosine", "kl", "agreement")
NEED_TARGETS = ("accuracy", "identifiability", "probability", "cosine")

WORDS = {
    "accuracy": "share of readings whose top class is the target",
    "identifiability": "1 - rank / C of the target, ranks from 0: 1 best, 1 / C worst, (C + 1) / 2C by chance",
    "probability": "softmax probability of the target",
    "cosine": "cosine of the reading with the text of the target",
    "kl": "KL(final answer || reading), nats",
    "agreement": "share of readings whose top class is that of the final answer",
}


def measures(
    logits: Float[Tensor, "image *token class"],
    final: Float[Tensor, "image class"],
    targets: Int[Tensor, " image"] | None,
    head: Any = None,
) -> dict[str, Float[Tensor, "image *token"]]:
    """All measures of some readings, each with the axes of the logits but the last.

    Args:
        logits: readings; further axes (tokens) share their image's target and final answer.
        final: the model's own logits.
        targets: class index per image; None leaves out what needs them.
        head: the model's; if it is a zero-shot head, cosines are measured.
    """
    between = (1,) * (logits.ndim - 2)
    log_q = F.log_softmax(logits.double(), dim=-1)
    log_p = F.log_softmax(final.double(), dim=-1).reshape(len(final), *between, -1)
    top = logits.argmax(-1)
    found = {
        "kl": (log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0),
        "agreement": (top == final.argmax(-1).reshape(-1, *between)).double(),
    }
    if targets is None:
        return found
    index = targets.reshape(-1, *between)
    own = logits.gather(-1, index.expand(top.shape)[..., None])
    rank = (logits > own).sum(-1) + ((logits == own).sum(-1) - 1) / 2
    if hasattr(head, "prompts"):
        found["cosine"] = cosines(head, own).double()[..., 0]
    return found | {
        "accuracy": (top == index).double(),
        "identifiability": 1 - rank.double() / logits.shape[-1],
        "probability": log_q.gather(-1, index.expand(top.shape)[..., None])[..., 0].exp(),
    }


def chance(targets: Int[Tensor, " image"], n_classes: int) -> dict[str, float]:
    """What a reading that knows nothing of the image reaches: the share of the most frequent target, and mid-rank."""
    share = float(torch.bincount(targets, minlength=n_classes).max()) / len(targets)
    return {"accuracy": share, "identifiability": (n_classes + 1) / (2 * n_classes), "probability": 1 / n_classes}
