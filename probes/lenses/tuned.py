"""A tuned lens: one affine map per layer, from that layer's basis into the final one.

    lens_l(x) = head(LN_final(x + x D_l + b_l)),   A_l = I + D_l

It is kept as a record: the held-out KL per layer beside the logit lens' is its table, `D_l` (or its two low-rank
factors) and `b_l` its arrays, so it saves, loads and reports as every other finding does. It knows the model it was
trained on and refuses others.
"""

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mechvis.errors import ResultMismatch, ShapeMismatch, SplitOverlap, unknown
from mechvis.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mechvis.report.blocks import Block


class TunedLens(Record):
    """Affine maps per site, from :func:`probes.lenses.tuned_lens`.

    The table has `site`, `layer`, `n`, `tuned_kl` and `logit_kl` with intervals on held-out images, `saved` (their
    paired difference, logit - tuned) and `size` (norm of D relative to the identity's).

    Example:
        >>> lens = TunedLens.load("runs/tuned")                                                # doctest: +SKIP
        >>> lens.translate("blocks.1.hook_resid_post", stream).shape                           # doctest: +SKIP
    """

    KIND: ClassVar[str] = "tuned_lens"

    @property
    def sites(self) -> tuple[str, ...]:
        """Sites with a map, in the order in which they fire."""
        return tuple(self.facts["sites"])

    def map_of(self, site: str) -> tuple[np.ndarray, np.ndarray]:
        """`D` `[d_model d_model]` and `b` `[d_model]` of one site.

        Raises:
            UnknownName: no map for this site.
        """
        if site not in self.sites:
            raise unknown("site of this lens", site, self.sites)
        place = self.sites.index(site)
        if "change" in self.arrays:
            change = self.arrays["change"][place]
        else:
            change = self.arrays["u"][place] @ self.arrays["v"][place].T
        return change, self.arrays["bias"][place]

    def translate(self, site: str, x: Tensor) -> Tensor:
        """Vectors `[... d_model]` of a site in the final basis.

        Raises:
            UnknownName: no map for this site.
            ShapeMismatch: vectors of another width.
        """
        change, bias = (torch.from_numpy(np.ascontiguousarray(part)) for part in self.map_of(site))
        if x.shape[-1] != len(bias):
            raise ShapeMismatch(f"this lens maps vectors of width {len(bias)}, got {list(x.shape)}.")
        # In the type of the maps or of the vectors, whichever is finer; back in that of the vectors.
        work = torch.promote_types(x.dtype, change.dtype)
        wide = x.to(work)
        return (wide + wide @ change.to(wide) + bias.to(wide)).to(x.dtype)

    def check(self, model: Any) -> None:
        """Refuse another model than the one it was trained on (other weights, or other texts of a zero-shot head).

        Raises:
            ResultMismatch: says which it was.
        """
        if self.facts["model"] != model.fingerprint:
            raise ResultMismatch(
                f"this lens was trained on another model ({self.facts['name']}, {self.facts['model']}) than "
                f"{model.title or model.parts.family} ({model.fingerprint}): its maps mean nothing here. Train one."
            )

    def refuse_seen(self, digests: np.ndarray) -> None:
        """Refuse images that it was trained on, by the digests of their pixels.

        Raises:
            SplitOverlap: says how many.
        """
        seen = int(np.isin(digests, self.arrays["seen"]).sum())
        if seen:
            raise SplitOverlap(
                f"{seen} of {len(digests)} images were used to train this lens, on which it looks better than it is. "
                "Read other images, or pass allow_overlap=True."
            )

    def plot(self) -> "Figure":
        """Held-out KL over layers, tuned beside logit lens."""
        from mechvis.plots.curve import Line, curve

        table = self.table
        ends = {name: {end: table[f"{name}_kl{end}"].to_numpy() for end in ("", "_low", "_high")} for name in _NAMES}
        layers = table["layer"].to_numpy()
        lines = [
            Line(name=f"{name} lens", x=layers, y=values[""], low=values["_low"], high=values["_high"])
            for name, values in ends.items()
        ]
        return curve(lines, title=self.title, x_label="after layer", y_label="KL to the final answer (nats)")

    def figures(self) -> "list[Block]":
        """Held-out KL over layers."""
        from mechvis.report.blocks import Figure

        return [Figure(self.plot(), caption="On images that were not trained on.")]


_NAMES = ("logit", "tuned")
