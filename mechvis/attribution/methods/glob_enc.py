"""GlobEnc: what each token receives from each other, as vectors, and the norms of these multiplied over blocks.

1. In a block token i receives from token j `T_{i<-j} = sum_h A_h[i, j] (v_j^h W_O^h) + 1[i = j] x_i`: attention, the
   values that it carries and the stream that passes by, together;
2. `N[i, j] = |T_{i<-j} - mean_d T_{i<-j}| / sd_i`, with `sd_i` of the stream after attention: the part of each token
   in what the next norm sees;
3. rows are made to add up to one, and the matrices are multiplied from the output's row backwards.

Source: methods2.md 18.1 [C]. The original is for post-norm BERT; the port to pre-norm ViTs [X] is ours: nothing is
divided inside the block but the scale of `resid_mid`, LayerScale is folded into W_O, registers are sources like any
token. Products of norms grow with depth, so rows are normalised (`rownorm`, the original does without). What the MLP
mixes inside a token is left out, as in the original. It does not look at the target.
"""

from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from mechvis.attribution.method import Claims, Maps, Method
from mechvis.attribution.methods.patterns import Weights, pattern_sites, split
from mechvis.attribution.methods.rollout import as_maps, linear_writes, rolled
from mechvis.attribution.question import Question


@dataclass(frozen=True, kw_only=True)
class GlobEnc(Method):
    """GlobEnc, ported to pre-norm vision transformers.

    Example:
        >>> mechvis.attribute(model, images, GlobEnc())                                        # doctest: +SKIP
    """

    NAME = "globenc"
    CLAIMS = Claims(class_specific=False, signed=False, reads="attention")
    SOURCE = "methods2.md 18.1 [C], port [X]; Modarressi et al. 2022"
    rownorm: bool = True
    """Rows add up to one; without it products of norms grow with depth."""

    def maps(self, ask: Question) -> Maps:
        """Maps of one batch.

        Raises:
            RefusedMethod: the block's write is not linear in the values (a norm after attention).
        """
        linear_writes(ask, self.NAME)
        sites = pattern_sites(ask)
        kinds = ("attn.hook_v", "hook_resid_pre", "hook_resid_mid")
        more = [f"blocks.{layer}.{kind}" for layer in range(ask.n_layers) for kind in kinds]
        _, cache = ask.captured([*sites, *more])
        matrices = []
        for layer in range(ask.n_layers):
            values, stream, middle = (cache[f"blocks.{layer}.{kind}"] for kind in kinds)
            carried = einsum(values, ask.model.blocks[layer].attn.W_O.detach(), "i k h e, h e d -> i h k d")
            found = received(cache[sites[layer]], carried, stream) / middle.std(-1, correction=0)[..., None]
            matrices.append(found / found.sum(-1, keepdim=True) if self.rownorm else found)
        pooled = [] if ask.parts.pooling is None else [cache[sites[-1]].mean(1)]
        return as_maps(ask, rolled(*split(ask, [*matrices, *pooled], lambda given: given)))


def received(
    pattern: Float[Tensor, "image head query key"],
    carried: Float[Tensor, "image head key d_model"],
    stream: Float[Tensor, "image token d_model"],
    *,
    centre: bool = True,
) -> Weights:
    """Norm of what each query receives from each key: `|sum_h A_h[i, j] c_j^h + 1[i = j] x_i|`.

    Args:
        pattern: attention of each head.
        carried: `v_j W_O` of each head and key.
        stream: what passes by.
        centre: take off each vector's mean over d_model first, as the next norm does.

    Example:
        >>> pattern = torch.tensor([[[[0.5, 0.3, 0.2]] * 3]])
        >>> carried = torch.tensor([[[[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]]]])
        >>> stream = torch.tensor([[[1.0, 1.0]] * 3])
        >>> received(pattern, carried, stream, centre=False)[0, 0].tolist()
        [1.8027756214141846, 0.6000000238418579, 0.6000000238418579]
    """
    if centre:
        carried = carried - carried.mean(-1, keepdim=True)
        stream = stream - stream.mean(-1, keepdim=True)
    # One query at a time: all vectors together are [image query key d_model].
    rows = []
    for query in range(pattern.shape[2]):
        vectors = einsum(pattern[:, :, query], carried, "image head key, image head key d -> image key d")
        vectors = vectors.index_add(1, torch.tensor([query], device=vectors.device), stream[:, query : query + 1])
        rows.append(vectors.norm(dim=-1))
    return torch.stack(rows, 1)
