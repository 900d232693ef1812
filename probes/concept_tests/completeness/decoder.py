"""The decoder g of a completeness test: from concept scores back to a representation that the model can read.

g is trained through the frozen tail, all locations alike: cross-entropy of `tail(g(scores))` with the wanted answers,
Adam on random batches of images. It is strong on purpose (a hidden layer of 500): completeness asks whether the scores
hold enough, not whether they lie ready. How strong is shown by what it makes of random concepts, and by the linear g
beside it.
"""

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mechvis.errors import FailedCheck, OutOfRange, unknown
from probes.concept_tests.completeness.located import Located


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """How g is built and trained."""

    kind: Literal["mlp", "linear"] = "mlp"
    """Two layers with ReLU (**C**), or one matrix with bias (the control)."""
    hidden: int = 500
    """Width of the hidden layer (**C**)."""
    steps: int = 300
    """Training steps of a decoder that starts from nothing (X)."""
    warm_steps: int = 100
    """Training steps of one that starts from the decoder of all concepts (X)."""
    batch: int = 64
    """Images per step (X)."""
    rate: float = 5e-3
    """Step size of Adam (X)."""

    def __post_init__(self):
        if self.kind not in ("mlp", "linear"):
            raise unknown("kind of decoder", self.kind, ("mlp", "linear"))
        for name in ("hidden", "steps", "warm_steps", "batch"):
            if getattr(self, name) < 1:
                raise OutOfRange(f"{name}={getattr(self, name)}: at least 1.")
        if not self.rate > 0:
            raise OutOfRange(f"rate={self.rate}: above 0.")

    def build(self, concepts: int, width: int, like: Tensor, seed: int) -> nn.Module:
        """An untrained g with its own random numbers; the global ones stay as they are."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.kind == "linear":
                made: nn.Module = nn.Linear(concepts, width)
            else:
                made = nn.Sequential(nn.Linear(concepts, self.hidden), nn.ReLU(), nn.Linear(self.hidden, width))
        return made.to(like.device, like.dtype)


def fit_decoder(
    scores: Float[Tensor, "image location concept"],
    data: Located,
    wanted: Int[Tensor, " image"],
    settings: Decoder,
    *,
    seed: int,
    start: nn.Module | None = None,
) -> nn.Module:
    """Train g on concept scores of training images.

    Args:
        scores: of the images of `data`.
        data: tail and width.
        wanted: the answers to reproduce.
        settings: of the decoder.
        seed: of its first weights and of the batches.
        start: a decoder to start from (copied), for fewer steps.

    Raises:
        FailedCheck: the loss is no longer finite.
    """
    warm = start is not None
    g = copy.deepcopy(start) if warm else settings.build(scores.shape[2], data.z.shape[2], data.z, seed)
    parameters = list(g.requires_grad_(True).parameters())
    optimiser = torch.optim.Adam(parameters, lr=settings.rate)
    drawn = torch.Generator().manual_seed(seed)
    for step in range(settings.warm_steps if warm else settings.steps):
        rows = torch.randint(0, len(scores), (min(settings.batch, len(scores)),), generator=drawn)
        with torch.enable_grad():
            loss = nn.functional.cross_entropy(data.tail(g(scores[rows]), rows), wanted[rows])
            # Only of g: the weights of the model get no gradients.
            gradients = torch.autograd.grad(loss, parameters)
        if not torch.isfinite(loss):
            raise FailedCheck(f"the decoder's loss is {float(loss)} at step {step}; lower rate={settings.rate}.")
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimiser.step()
    return g.requires_grad_(False)
