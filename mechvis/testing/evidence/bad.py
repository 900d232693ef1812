"""Explainers that are wrong in a known way, dressed as honest ones: what the gates of a card must catch.

Each claims what the method it imitates claims (it looks at the target, it draws nothing), so every gate that would hold
the honest method to that holds it too. Those that break a good map (`InputIG` with four steps, which passes) break it
in one way only.

==================  =================================================================================================
name                what is wrong
==================  =================================================================================================
fixed_noise         random numbers of a fixed seed: nothing of the model, the target or another seed moves them
centre              a Gaussian at the centre, as an explanation
norm                how far a patch is from the mean colour, as an explanation
wrong_rollout       attention rollout, told as if it were about the target
wrong_class         activation times gradient, of another class than was asked
shuffled_heads      attention of one head times the gradient of another
off_by_one_layer    activations of one block times gradients of the block before
transposed_o        what heads write, by W_O transposed
mis_split_o         what heads write, with the axes of head and d_head exchanged
negated             a good map with its sign turned
shifted_grid        a good map, one patch to the right
transposed_grid     a good map, rows for columns
batch_leak          a good map plus that of the neighbour in the batch
stale_cache         the map of the image before
constant            one number
nan                 a good map with one NaN
==================  =================================================================================================

`GOOD` are methods that gates should let pass, `LIMITED` ones with known limits.
Sources: faithfulness.md 3.3 [X], 5.2.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from mechvis.attribution.method import Claims, Maps, Method
from mechvis.attribution.methods.act_x_grad import ActTimesGrad
from mechvis.attribution.methods.controls import CentrePrior, InputNorm
from mechvis.attribution.methods.layer_ig import InputIG
from mechvis.attribution.methods.occlusion import Occlusion
from mechvis.attribution.methods.rollout import AttentionRollout
from mechvis.attribution.methods.shapley import Shapley
from mechvis.attribution.question import Question
from mechvis.keyed import generator_of

_CLAIMS = Claims(class_specific=True, signed=True)
_UNSIGNED = Claims(class_specific=True, signed=False)
_STEPS = 4
"""Steps of the good map: enough on the planted models, whose ground is the path's start."""


@dataclass(frozen=True, kw_only=True)
class _Bad(Method):
    """Wrong on purpose."""

    CLAIMS = _CLAIMS
    SOURCE = "mechvis.testing.evidence.bad"


@dataclass(frozen=True, kw_only=True)
class FixedNoise(_Bad):
    """Noise that belongs to the example and to nothing else."""

    NAME = "bad_fixed_noise"

    def maps(self, ask: Question) -> Maps:
        rows = [torch.randn(ask.n_patches, generator=generator_of(0, int(id), "noise")) for id in ask.ids]
        return Maps(values=torch.stack(rows).to(ask.pixels))


@dataclass(frozen=True, kw_only=True)
class Centre(_Bad):
    """The centre prior."""

    NAME = "bad_centre"

    def maps(self, ask: Question) -> Maps:
        return CentrePrior().maps(ask)


@dataclass(frozen=True, kw_only=True)
class Norm(_Bad):
    """The input's norm."""

    NAME = "bad_norm"

    def maps(self, ask: Question) -> Maps:
        return InputNorm().maps(ask)


@dataclass(frozen=True, kw_only=True)
class WrongRollout(_Bad):
    """Rollout, which knows no class."""

    NAME = "bad_wrong_rollout"
    CLAIMS = _UNSIGNED

    def maps(self, ask: Question) -> Maps:
        return AttentionRollout().maps(ask)


@dataclass(frozen=True, kw_only=True)
class WrongClass(_Bad):
    """A good map of the next class."""

    NAME = "bad_wrong_class"

    def maps(self, ask: Question) -> Maps:
        n_classes = ask.model.run(ask.pixels[:1]).output.shape[1]
        classes = (ask.target.classes + 1) % n_classes
        contrast = ask.target.contrast
        if contrast is not None:
            contrast = torch.where(contrast == classes, ask.target.classes, contrast)
        return _good(replace(ask, target=replace(ask.target, classes=classes, contrast=contrast)))


@dataclass(frozen=True, kw_only=True)
class ShuffledHeads(_Bad):
    """Attention of one head, gradient of the next, summed over heads and layers at the CLS query."""

    NAME = "bad_shuffled_heads"

    def maps(self, ask: Question) -> Maps:
        sites = [f"blocks.{layer}.attn.hook_pattern" for layer in range(ask.n_layers)]
        _, values, gradients = ask.gradients(sites)
        found = sum((values[site].roll(1, 1) * gradients[site])[:, :, 0].sum(1) for site in sites)
        return Maps(values=found[:, ask.n_prefix :])


@dataclass(frozen=True, kw_only=True)
class OffByOneLayer(_Bad):
    """Activations of the last block, gradients of the one before."""

    NAME = "bad_off_by_one_layer"

    def maps(self, ask: Question) -> Maps:
        sites = [f"blocks.{ask.layer(layer)}.ln1.hook_normalized" for layer in (-1, -2)]
        _, values, gradients = ask.gradients(sites)
        return Maps(values=(values[sites[0]] * gradients[sites[1]]).sum(-1)[:, ask.n_prefix :])


@dataclass(frozen=True, kw_only=True)
class _ByWrites(_Bad):
    """What the last block's heads write to CLS from each patch, along the score's gradient."""

    def maps(self, ask: Question) -> Maps:
        layer = ask.layer(-1)
        pattern, v, out = (f"blocks.{layer}.{name}" for name in ("attn.hook_pattern", "attn.hook_v", "hook_attn_out"))
        _, values, gradients = ask.gradients([pattern, v, out])
        weight = self.weight(ask.parts.blocks[layer].attn.out_weight().detach())
        wanted = einsum(gradients[out][:, 0], weight, "image d_model, head d_head d_model -> image head d_head")
        found = einsum(
            values[pattern][:, :, 0], values[v], wanted,
            "image head key, image key head d_head, image head d_head -> image key",
        )  # fmt: skip
        return Maps(values=found[:, ask.n_prefix :])

    @abstractmethod
    def weight(self, weight: Float[Tensor, "head d_head d_model"]) -> Float[Tensor, "head d_head d_model"]:
        """W_O as the method takes it."""


@dataclass(frozen=True, kw_only=True)
class TransposedO(_ByWrites):
    """W_O transposed."""

    NAME = "bad_transposed_o"

    def weight(self, weight: Tensor) -> Tensor:
        flat = rearrange(weight, "head d_head d_model -> (head d_head) d_model")
        return rearrange(flat.T, "(head d_head) d_model -> head d_head d_model", head=len(weight))


@dataclass(frozen=True, kw_only=True)
class MisSplitO(_ByWrites):
    """W_O cut into heads along the wrong axis."""

    NAME = "bad_mis_split_o"

    def weight(self, weight: Tensor) -> Tensor:
        flat = rearrange(weight, "head d_head d_model -> (head d_head) d_model")
        return rearrange(flat, "(d_head head) d_model -> head d_head d_model", head=len(weight))


@dataclass(frozen=True, kw_only=True)
class DirectWrites(_ByWrites):
    """W_O as it is: the honest twin of the two above."""

    NAME = "good_direct_writes"

    def weight(self, weight: Tensor) -> Tensor:
        return weight


@dataclass(frozen=True, kw_only=True)
class _Broken(_Bad):
    """A good map, broken in one way."""

    BREAK: ClassVar[Callable[[Float[Tensor, "image down across"]], Float[Tensor, "image down across"]]]

    def maps(self, ask: Question) -> Maps:
        grid = rearrange(_good(ask).values, "image (down across) -> image down across", down=ask.grid[0])
        return Maps(values=type(self).BREAK(grid).flatten(1))


@dataclass(frozen=True, kw_only=True)
class Negated(_Broken):
    """The sign turned."""

    NAME = "bad_negated"
    BREAK = torch.neg


@dataclass(frozen=True, kw_only=True)
class ShiftedGrid(_Broken):
    """One patch to the right."""

    NAME = "bad_shifted_grid"
    BREAK = staticmethod(lambda grid: grid.roll(1, 2))


@dataclass(frozen=True, kw_only=True)
class TransposedGrid(_Broken):
    """Rows for columns."""

    NAME = "bad_transposed_grid"
    BREAK = staticmethod(lambda grid: rearrange(grid, "image down across -> image (across down)").view_as(grid))


@dataclass(frozen=True, kw_only=True)
class BatchLeak(_Broken):
    """A tenth of the neighbour's map is mixed in."""

    NAME = "bad_batch_leak"
    BREAK = staticmethod(lambda grid: grid + 0.1 * grid.roll(1, 0))


@dataclass(frozen=True, kw_only=True)
class StaleCache(_Broken):
    """The map of the image before."""

    NAME = "bad_stale_cache"
    BREAK = staticmethod(lambda grid: grid.roll(1, 0))


@dataclass(frozen=True, kw_only=True)
class Constant(_Broken):
    """One number."""

    NAME = "bad_constant"
    BREAK = torch.ones_like


@dataclass(frozen=True, kw_only=True)
class OneNaN(_Broken):
    """A NaN in the last patch of every map."""

    NAME = "bad_nan"
    BREAK = staticmethod(lambda grid: torch.cat([grid.flatten(1)[:, :-1], grid.new_full((len(grid), 1), torch.nan)], 1))


BAD: dict[str, type[Method]] = {
    kind.NAME.removeprefix("bad_"): kind
    for kind in (
        FixedNoise, Centre, Norm, WrongRollout, WrongClass, ShuffledHeads, OffByOneLayer, TransposedO, MisSplitO,
        Negated, ShiftedGrid, TransposedGrid, BatchLeak, StaleCache, Constant, OneNaN,
    )
}  # fmt: skip
"""Known-bad explainers by name."""

GOOD: dict[str, Method] = {"input_ig": InputIG(steps=16), "shapley": Shapley()}
"""Exact methods, which gates should let pass, by name."""

LIMITED: dict[str, Method] = {
    "occlusion": Occlusion(operator="mean", window=2),
    "act_x_grad": ActTimesGrad(),
    "direct_writes": DirectWrites(),
}
"""Honest methods with known limits: hiding one thing at a time, and first-order ones (the twins of `off_by_one_layer`,
`transposed_o` and `mis_split_o`)."""


def _good(ask: Question) -> Maps:
    """The map that is broken."""
    return InputIG(steps=_STEPS).maps(ask)
