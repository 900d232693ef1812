"""Non-negative codes for given directions: what NMF, semi-NMF and a random dictionary encode with.

f = argmin ½ ‖x - b - f W‖² over f ≥ 0, solved for many rows at once by accelerated projected gradient (FISTA with
restarts, Beck and Teboulle 2009; O'Donoghue and Candès 2015): only matrix products. Where directions nearly coincide
(condition 500) the squared error is some per cent above the least after 1000 steps, elsewhere it is the least: the
tests hold both to scipy's exact solver. With k, a row has at most k active latents, chosen

* from the full solution, the k largest (`choose="solve"`), or
* by projection, the k largest (x - b)·w (`choose="project"`), as a TopK dictionary does,

and the codes of those k are solved again, so that they are the best there are for these directions. Encoding is not
differentiated through.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechvis.errors import BadData, unknown
from mechvis.kernels.topk import topk
from sae.baselines.fitted import Fitted

if TYPE_CHECKING:
    from sae.dictionary import Dictionary

CHUNK = 2**24
"""Numbers of the largest intermediate tensor."""
SETTLED = 1e-9
"""Change of the codes, relative to the largest, at which the solver stops."""


@dataclass(frozen=True, kw_only=True)
class NonNegative(Fitted):
    """The best non-negative codes.

    Example:
        >>> NonNegative(n_latents=16, k=4).choose
        'solve'
    """

    NAME: ClassVar[str] = "non_negative"

    k: int | None = None
    """Active latents per row at most; None: no limit."""
    choose: Literal["solve", "project"] = "solve"
    """How the k are chosen."""
    steps: int = 1000
    """Steps of the solver."""

    def check(self) -> None:
        """Refuse what cannot be."""
        if self.k is not None and not 1 <= self.k <= self.n_latents:
            raise BadData(f"k={self.k} of {self.n_latents} latents: k is between 1 and their number.")
        if self.choose not in ("solve", "project"):
            raise unknown("way to choose", self.choose, ("solve", "project"))
        if self.choose == "project" and self.k is None:
            raise BadData("choose='project' needs k: how many latents a row may have.")
        if self.steps < 1:
            raise BadData(f"steps={self.steps}: at least 1.")

    @torch.no_grad()
    def encode(self, d: "Dictionary", x: Tensor) -> Tensor:
        """See the module."""
        found = [self._encode(d, part) for part in (x - d.b_dec).split(max(1, CHUNK // self.n_latents))]
        return torch.cat(found) if found else x.new_zeros(0, self.n_latents)

    def _encode(self, d: "Dictionary", x: Tensor) -> Tensor:
        if self.choose == "project":
            codes = x @ d.W_dec.T
        else:
            codes = solved(x @ d.W_dec.T, d.W_dec @ d.W_dec.T, self.steps)
        if self.k is None:
            return codes
        values, latents = topk(codes, self.k)
        return torch.zeros_like(codes).scatter(1, latents, self._again(d, x, latents) * (values > 0))

    def _again(self, d: "Dictionary", x: Tensor, latents: Int[Tensor, "row k"]) -> Float[Tensor, "row k"]:
        """Codes of the chosen latents alone."""
        size = max(1, CHUNK // (latents.shape[1] * x.shape[1]))
        found = []
        for rows, chosen in zip(x.split(size), latents.split(size), strict=True):
            W = d.W_dec[chosen]
            found.append(solved((W @ rows[:, :, None])[:, :, 0], W @ W.transpose(1, 2), self.steps))
        return torch.cat(found)


def solved(
    target: Float[Tensor, "row latent"],
    gram: Float[Tensor, "latent latent"] | Float[Tensor, "row latent latent"],
    steps: int,
) -> Float[Tensor, "row latent"]:
    """Non-negative least squares for every row: argmin ½ f G f' - f·c over f ≥ 0.

    Args:
        target: c = W x, per row.
        gram: G = W W', one for all rows or one for each.
        steps: of the solver.
    """
    # A step that never overshoots is one over the largest eigenvalue, which the largest absolute row sum bounds.
    bound = torch.linalg.eigvalsh(gram)[-1] * 1.0001 if gram.ndim == 2 else gram.abs().sum(-1).amax(-1)[:, None]
    speed = 1 / bound.clamp_min(torch.finfo(gram.dtype).tiny)

    def slope(f: Tensor) -> Tensor:
        product = f @ gram if gram.ndim == 2 else (gram @ f[:, :, None])[:, :, 0]
        return product - target

    now = ahead = (target * speed).relu()
    momentum = torch.ones(len(target), 1, dtype=target.dtype, device=target.device)
    for step in range(steps):
        following = (ahead - speed * slope(ahead)).relu()
        # A row whose momentum points uphill starts anew.
        uphill = ((ahead - following) * (following - now)).sum(1, keepdim=True) > 0
        momentum = torch.where(uphill, 1.0, momentum)
        grown = (1 + (1 + 4 * momentum.square()).sqrt()) / 2
        push = torch.where(uphill, 0.0, (momentum - 1) / grown)
        settled = step % 20 == 19 and bool((following - now).abs().max() <= SETTLED * following.abs().max())
        now, ahead, momentum = following, following + push * (following - now), grown
        if settled:
            break
    return now
