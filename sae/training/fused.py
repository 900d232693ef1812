"""Adam for dictionaries in one visit to each row: the fast twin of `sae.training.optimiser`.

The plain form goes over weights, gradients and moments a dozen times, and over memory that is new each time; with
n·d in the millions that is a third of a training step. Here:

1. |g|² and g·w of every row are known when gradients come out of the sparse sums (`sae.held`), or are taken once. They
   give the norm of the projected gradient, and with it the factor for clipping, before anything is written.
2. Rows are visited in blocks that fit the cache. In one visit: the part of the gradient that points along its unit row
   is taken off, the gradient is scaled, Adam (torch's own fused kernel) steps, the row is made unit again, and if
   encoding works with a copy in bfloat16 (`sae.screen`), the copy follows.

On CUDA the visit is one Triton kernel (`mechvis.kernels.adam_rows`). Nothing waits for the device.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from mechvis.kernels.adam_rows import adam_rows
from mechvis.kernels.dispatch import choose
from sae import screen
from sae.held import Sizes
from sae.training.optimiser import Adam, renormalise_
from sae.training.settings import Training

BLOCK = 2**17
"""Numbers of a weight that are visited at a time: with gradient and moments 2 MiB in float32. Measured on a core with
1 MiB of second cache: half or twice as many took 5 to 20 % longer."""


class Fused(Adam):
    """The same steps as `Adam`, in one pass over each row."""

    @torch.no_grad()
    def step(self, lr: float, sizes: Mapping[str, Sizes] | None = None) -> Tensor:
        """See `Adam.step`. Gradients are spoilt, and set to None.

        Args:
            lr: learning rate.
            sizes: what is known of gradients already, by name.
        """
        gradients = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        sizes = {name: self._sizes(name, grad, (sizes or {}).get(name)) for name, grad in gradients.items()}
        norms = {name: self._squares(name, found).clamp_min(0).sqrt() for name, found in sizes.items()}
        norm = self.shards.norm(norms, self.mine)
        clip = self.settings.clip
        factor = None if clip is None else (clip / norm.clamp_min(1e-30)).clamp(max=1.0)
        self.count += 1
        for name, grad in gradients.items():
            self._visit(name, grad, sizes[name].along if name in self.unit else None, factor, lr)
            self.parameters[name].grad = None
        for name in self.unit:
            # A row that is not trained in this step is made unit by the plain form too.
            if name not in gradients:
                renormalise_(self.parameters[name])
        return norm

    def _sizes(self, name: str, grad: Tensor, known: Sizes | None) -> Sizes:
        if known is not None:
            return known
        if name not in self.unit:
            return Sizes(squares=grad.norm().square()[None], along=None)
        rows = self.parameters[name].detach()
        found = [
            (torch.linalg.vector_norm(grad[some], dim=1).square(), torch.linalg.vecdot(grad[some], rows[some]))
            for some in blocks(rows)
        ]
        return Sizes(squares=torch.cat([a for a, _ in found]), along=torch.cat([b for _, b in found]))

    def _squares(self, name: str, found: Sizes) -> Tensor:
        return found.squares - found.along.square() if name in self.unit else found.squares

    def _visit(self, name: str, grad: Tensor, along: Tensor | None, factor: Tensor | None, lr: float) -> None:
        p, first, second = self.parameters[name].detach(), self.first[name], self.second[name]
        (b1, b2), eps = self.settings.betas, self.settings.eps
        if p.ndim == 2 and choose("adam_rows", p, grad) == "triton":
            adam_rows(
                p, grad, first, second, lr=lr, betas=(b1, b2), eps=eps, count=self.count, along=along, factor=factor
            )
            return
        shadow = screen.known(self.parameters[name])
        if shadow is not None:
            shadow.begin()
        # The kernel divides by its scale, which it takes in float32 alone.
        inside = factor is not None and p.dtype == torch.float32
        scale = factor.reciprocal() if inside else None
        count = torch.full((), float(self.count), device=p.device)
        for some in blocks(p):
            rows, g = p[some], grad[some]
            if along is not None:
                g.addcmul_(rows, along[some][:, None], value=-1)
            if factor is not None and not inside:
                g.mul_(factor)
            torch._fused_adam_(
                [rows], [g], [first[some]], [second[some]], [], [count], grad_scale=scale, lr=lr, beta1=b1, beta2=b2,
                weight_decay=0.0, eps=eps, amsgrad=False, maximize=False,
            )  # fmt: skip
            if along is not None:
                renormalise_(rows)
            if shadow is not None:
                shadow.follow(rows, some.start)
        if shadow is not None:
            shadow.version = self.parameters[name]._version


def blocks(rows: Tensor) -> Iterator[slice]:
    """Parts of a tensor along its first axis, that fit the cache; on a GPU all of it."""
    each = rows.numel() // max(1, len(rows)) if rows.ndim else 1
    size = max(1, BLOCK // max(1, each)) if rows.device.type == "cpu" else len(rows)
    for first in range(0, len(rows), size):
        yield slice(first, min(first + size, len(rows)))


def optimiser(dictionary, settings: Training) -> Adam:
    """The fused form where it is possible, else the plain one; also the plain one with `Training(fast=False)`.

    Args:
        dictionary: whose parameters are trained.
        settings: betas, eps, clip, fast.
    """
    fits = settings.fast and hasattr(torch, "_fused_adam_")
    fits = fits and all(p.is_contiguous() and p.ndim and p.dtype in KINDS for p in dictionary.parameters())
    return (Fused if fits else Adam)(dictionary, settings)


KINDS = (torch.float32, torch.float64)
"""Types of weights that are trained."""
