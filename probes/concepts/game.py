"""What every importance method asks: the model's answer when a concept is there in part, fully, or not at all.

A tail gives one number per row from the concepts' codes. A game puts a mask on the concepts, `[row concept]` in [0, 1]:

    value(m) = tail( u0 + m * (u - u0) )

where `u0` is the baseline (zero amount of everything by default). A concept is masked in all its places (patches) at
once, so that methods for single rows and for patches are the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch

Tail = Callable[[Tensor, Tensor], Tensor]
"""(codes `[row place concept]`, which image each row is of `[row]`) -> one number per row, differentiable."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Game:
    """Codes of images, a tail, and a baseline."""

    tail: Tail
    """What reads the codes."""
    codes: Float[Tensor, "image place concept"]
    """How much of each concept is where."""
    baseline: Float[Tensor, "#image #place concept"]
    """What a removed concept becomes."""
    batch_size: int = 256
    """Rows per call of the tail."""

    @property
    def n_images(self) -> int:
        """How many images."""
        return len(self.codes)

    @property
    def n_concepts(self) -> int:
        """How many concepts."""
        return self.codes.shape[-1]

    @torch.no_grad()
    def values(self, masks: Float[Tensor, "row concept"], images: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
        """Answers for masked images; many masks, in batches."""
        parts = [
            self._answer(masks[start : start + self.batch_size], images[start : start + self.batch_size]).cpu()
            for start in range(0, len(masks), self.batch_size)
        ]
        return torch.cat(parts)

    def on_every_image(self, masks: Float[Tensor, "mask concept"]) -> Float[np.ndarray, "image mask"]:
        """Answers of all images to the same masks."""
        images = torch.arange(self.n_images).repeat_interleave(len(masks))
        return self.values(masks.repeat(self.n_images, 1), images).double().numpy().reshape(self.n_images, len(masks))

    def slopes(self, masks: Float[Tensor, "row concept"], images: Int[Tensor, " row"]) -> Float[Tensor, "row concept"]:
        """Derivatives of the answers by the masks."""
        parts = []
        for start in range(0, len(masks), self.batch_size):
            mask = masks[start : start + self.batch_size].clone().requires_grad_(True)
            answer = self._answer(mask, images[start : start + self.batch_size])
            parts.append(torch.autograd.grad(_needs_graph(answer).sum(), mask)[0])
        return torch.cat(parts)

    def code_slopes(self) -> Float[Tensor, "image concept"]:
        """Derivatives of the whole answers by the codes, summed over the places: what a bit of each concept adds."""
        parts = []
        for start in range(0, self.n_images, self.batch_size):
            part = torch.arange(start, min(start + self.batch_size, self.n_images))
            codes = self.codes[part].clone().requires_grad_(True)
            answer = _checked(self.tail(codes, part), len(part))
            parts.append(torch.autograd.grad(_needs_graph(answer).sum(), codes)[0].sum(1))
        return torch.cat(parts)

    def _answer(self, masks: Tensor, images: Tensor) -> Tensor:
        codes = self.codes[images]
        zero = self.baseline.expand(self.codes.shape)[images]
        return _checked(self.tail(zero + masks[:, None].to(codes) * (codes - zero), images), len(masks))


def game_of(
    tail: Tail | Callable[[Tensor], Tensor],
    codes: Any,
    *,
    baseline: Any = None,
    batch_size: int = 256,
    takes_images: bool = True,
) -> Game:
    """A checked game.

    Args:
        tail: see :data:`Tail`; with `takes_images=False` a function of the codes alone, of the shape they came in.
        codes: `[image concept]` or `[image place concept]`, array or tensor.
        baseline: zeros by default; one number per concept, or as the codes.
        batch_size: rows per call of the tail.
        takes_images: does the tail want to know which image a row is of?

    Raises:
        ShapeMismatch: codes or baseline of another shape.
        NotFinite: NaN or Inf in the codes.
        OutOfRange: a batch of none.
    """
    given = torch.as_tensor(np.asarray(codes) if not isinstance(codes, Tensor) else codes).detach()
    if given.ndim not in (2, 3) or 0 in given.shape:
        raise ShapeMismatch(f"codes [image concept] or [image place concept] are wanted, got {list(given.shape)}.")
    if batch_size < 1:
        raise OutOfRange(f"batch_size={batch_size}: at least 1.")
    flat = given.ndim == 2
    whole = given[:, None] if flat else given
    if not torch.isfinite(whole).all():
        raise NotFinite("the codes hold NaN or Inf.")
    if baseline is None:
        zero = torch.zeros_like(whole[:1, :1])
    else:
        zero = torch.as_tensor(baseline).detach().to(whole)
        zero = zero[None, None] if zero.ndim == 1 else zero[:, None] if flat and zero.ndim == 2 else zero
        try:
            zero.expand(whole.shape)
        except RuntimeError as error:
            raise ShapeMismatch(f"the baseline {list(zero.shape)} does not fit codes {list(given.shape)}.") from error
    if takes_images:
        called = tail
    elif flat:

        def called(codes: Tensor, images: Tensor) -> Tensor:
            return tail(codes[:, 0])

    else:

        def called(codes: Tensor, images: Tensor) -> Tensor:
            return tail(codes)

    return Game(tail=called, codes=whole, baseline=zero, batch_size=batch_size)


def _checked(answer: Tensor, rows: int) -> Tensor:
    if not isinstance(answer, Tensor) or answer.shape != (rows,):
        seen = list(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise ShapeMismatch(f"the tail must give one number per row, [{rows}], got {seen}.")
    if not torch.isfinite(answer).all():
        raise NotFinite("the tail gives NaN or Inf for some codes.")
    return answer


def _needs_graph(answer: Tensor) -> Tensor:
    if not answer.requires_grad:
        raise BadData(
            "the tail's answer has no gradient: it must be made of torch operations on the codes. Methods without "
            "gradients are occlusion, sobol and shapley."
        )
    return answer
