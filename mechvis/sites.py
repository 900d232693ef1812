"""The hook points of a model as a tree of modules under transformer_lens' names, and the weights that belong to them.

Nothing is computed here. The modules hold hook points only, never the user's own modules.

Weights that write to the stream (W_O, b_O, W_out, b_out) are given as they act on it: with LayerScale, where a family
has one. So `z @ W_O` summed over heads plus `b_O` is `hook_attn_out` in every family, as transformer_lens expects.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from mechvis.models.parts import AttentionParts, BlockParts, PoolingParts


class Sites(nn.Module):
    """A namespace of hook points."""

    def __init__(self, *names: str):
        super().__init__()
        for name in names:
            setattr(self, name, HookPoint())


def _scaled(scale: Callable[[Tensor], Tensor] | None, weight: Tensor | None) -> Tensor | None:
    """A weight after LayerScale; on a copy, since a family's LayerScale may work in place."""
    return weight if scale is None or weight is None else scale(weight.clone())


class AttentionSites(Sites):
    """Hook points of one attention layer, with its weights under transformer_lens' names."""

    def __init__(self, parts: AttentionParts, scale: Callable[[Tensor], Tensor] | None = None):
        super().__init__("hook_q", "hook_k", "hook_v", "hook_attn_scores", "hook_pattern", "hook_z", "hook_result")
        if parts.rotate is not None:
            self.hook_rot_q, self.hook_rot_k = HookPoint(), HookPoint()
        if parts.after is not None:
            self.hook_mix = HookPoint()
        self.__dict__.update(_parts=parts, _scale=scale)

    @property
    def scaled(self) -> bool:
        """Do these weights, and `hook_result`, have LayerScale in them? Not where the block's write is not linear."""
        return self._scale is not None

    @property
    def W_Q(self) -> Tensor:
        """`[head d_model d_head]`."""
        return self._parts.in_weights()[0]

    @property
    def W_K(self) -> Tensor:
        """`[head d_model d_head]`."""
        return self._parts.in_weights()[1]

    @property
    def W_V(self) -> Tensor:
        """`[head d_model d_head]`."""
        return self._parts.in_weights()[2]

    @property
    def W_O(self) -> Tensor:
        """`[head d_head d_model]`, LayerScale included."""
        return _scaled(self._scale, self._parts.out_weight())

    @property
    def b_Q(self) -> Tensor | None:
        """`[head d_head]`."""
        return self._parts.in_biases()[0]

    @property
    def b_K(self) -> Tensor | None:
        """`[head d_head]`."""
        return self._parts.in_biases()[1]

    @property
    def b_V(self) -> Tensor | None:
        """`[head d_head]`."""
        return self._parts.in_biases()[2]

    @property
    def b_O(self) -> Tensor | None:
        """`[d_model]`, LayerScale included."""
        return _scaled(self._scale, self._parts.out_bias())

    @property
    def OV(self) -> Any:
        """W_V W_O per head, as a transformer_lens `FactoredMatrix`."""
        from transformer_lens import FactoredMatrix

        return FactoredMatrix(self.W_V, self.W_O)

    @property
    def QK(self) -> Any:
        """W_Q W_K^T per head, as a transformer_lens `FactoredMatrix`."""
        from transformer_lens import FactoredMatrix

        return FactoredMatrix(self.W_Q, self.W_K.transpose(-2, -1))


class MlpSites(Sites):
    """Hook points of one MLP, with its weights under transformer_lens' names."""

    def __init__(self, parts: BlockParts):
        super().__init__("hook_pre", "hook_post")
        if parts.gated:
            self.hook_pre_linear = HookPoint()
        if parts.mlp_norm is not None:
            self.hook_mid = HookPoint()
        self.__dict__.update(_parts=parts, _scale=parts.scale2 if parts.linear_writes else None)

    @property
    def W_out(self) -> Tensor:
        """`[d_mlp d_model]`, LayerScale included."""
        return _scaled(self._scale, self._parts.mlp_out_weight())

    @property
    def b_out(self) -> Tensor | None:
        """`[d_model]`, LayerScale included."""
        return _scaled(self._scale, self._parts.mlp_out_bias())


class BlockSites(Sites):
    """Hook points of one block."""

    hook_out_is_single_residual_stream = True
    """What transformer_lens' logit lens asks of a block."""

    def __init__(self, parts: BlockParts):
        super().__init__("hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_mlp_out", "hook_resid_post")
        self.ln1 = Sites("hook_scale", "hook_normalized")
        self.attn = AttentionSites(parts.attn, parts.scale1 if parts.linear_writes else None)
        self.ln2 = Sites("hook_scale", "hook_normalized")
        self.mlp = MlpSites(parts)
        self.__dict__["points"] = [module for module in self.modules() if isinstance(module, HookPoint)]


class PoolingSites(Sites):
    """Hook points of attention pooling."""

    def __init__(self, parts: PoolingParts):
        super().__init__("hook_attn_out")
        self.attn = AttentionSites(parts.attn)
        if parts.mlp is not None:
            self.ln2 = Sites("hook_scale", "hook_normalized")
            self.mlp = MlpSites(parts.mlp)
            self.hook_mlp_out = HookPoint()
