"""Rules of other libraries that nothing here trains, so that their files can be used: a pursuit, and TopK with signs.

`FixedPursuit` is matching pursuit as SAELens and overcomplete have it, where they differ from `MatchingPursuit`:
SAELens stops a row when a step adds no new atom (`stop_on_repeat`), and looks at the residual's length only after a
step; overcomplete takes an atom that points away with a negative number (`signed`). `SignedTopK` keeps the k largest
entries with their sign, by value (saev) or by magnitude (AbsTopK of SAELens, 2510.00404).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from mechvis.errors import BadData, RefusedMethod, unknown
from mechvis.kernels.support import Support
from mechvis.kernels.topk import topk
from sae.architecture import Architecture, Loss, Step
from sae.normaliser import Kind

if TYPE_CHECKING:
    from sae.dictionary import Dictionary


class _Fixed:
    """Cannot be trained."""

    def loss(self, d: "Dictionary", x: Tensor, y: Tensor, step: Step) -> Loss:
        """There is none.

        Raises:
            RefusedMethod: always.
        """
        raise RefusedMethod(f"{self.NAME!r} is a rule of another library's files: it is used, not trained here.")


@dataclass(frozen=True, kw_only=True)
class FixedPursuit(_Fixed, Architecture):
    """Matching pursuit as other libraries have it; for files only.

    Example:
        >>> FixedPursuit(n_latents=16, k=4).stop_on_repeat
        True
    """

    NAME: ClassVar[str] = "fixed_pursuit"

    normalise: Kind = "none"
    """How activations are scaled."""
    k: int = 32
    """Steps at most."""
    residual_threshold: float = 0.0
    """A row whose residual is shorter after a step takes no more; 0: no such rule."""
    stop_on_repeat: bool = True
    """A row takes no more after a step that added no new atom."""
    signed: bool = False
    """Take the best atom also where it points away, with a negative number."""

    def check(self) -> None:
        """Refuse what cannot be."""
        if self.k < 1 or not 0 <= self.residual_threshold < float("inf"):
            raise BadData(f"k={self.k}, residual_threshold={self.residual_threshold} cannot be.")
        if self.skip:
            raise RefusedMethod("a pursuit writes what it reads, so nothing may go past it.")

    def encode(self, d: "Dictionary", x: Tensor) -> Tensor:
        """Atoms one at a time."""
        residual = x - d.b_dec
        codes = x.new_zeros(len(x), len(d.W_dec))
        support, done = codes != 0, torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for _ in range(self.k):
            products = residual @ d.W_dec.T
            if not self.signed:
                products = products.relu()
            best = products.argmax(1, keepdim=True)
            taken = products.gather(1, best).masked_fill(done[:, None], 0.0)
            codes = codes.scatter_add(1, best, taken)
            residual = residual - taken * d.W_dec[best[:, 0]]
            if self.stop_on_repeat:
                done = done | ((codes != 0) == support).all(1)
                support = codes != 0
            if self.residual_threshold > 0:
                done = done | (residual.norm(dim=1) < self.residual_threshold)
            if done.all():
                break
        return codes


@dataclass(frozen=True, kw_only=True)
class SignedTopK(_Fixed, Architecture):
    """The k largest entries of a row with their sign; for files only.

    Example:
        >>> SignedTopK(n_latents=16, k=4).by
        'magnitude'
    """

    NAME: ClassVar[str] = "signed_topk"

    normalise: Kind = "none"
    """How activations are scaled."""
    k: int = 32
    """Entries per row."""
    by: Literal["magnitude", "value"] = "magnitude"
    """What is largest: |z|, or z."""

    def check(self) -> None:
        """Refuse what cannot be."""
        if not 1 <= self.k <= self.n_latents:
            raise BadData(f"k={self.k} of {self.n_latents} latents: k is between 1 and their number.")
        if self.decoder != "unit":
            raise BadData(
                f"decoder={self.decoder!r}: entries are ranked as they are, whatever the norms of rows: 'unit'."
            )
        if self.by not in ("magnitude", "value"):
            raise unknown("rank", self.by, ("magnitude", "value"))

    def encode(self, d: "Dictionary", x: Tensor) -> Tensor:
        """The k largest, as they are."""
        pre = d.encoder(x, fast=False).pre
        scores = pre.detach()
        _, latents = topk(scores.abs() if self.by == "magnitude" else scores, self.k)
        return torch.where(Support.from_rows(latents, self.n_latents).mask(), pre, 0.0)
