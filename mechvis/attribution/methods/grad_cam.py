"""Grad-CAM for vision transformers, in the two forms that are in use.

* `form="token"`: the stream at a block is the feature map: `w = mean_patches ds/dX`, map `relu(X w)`.
* `form="attention"`: the pattern is: `g_h = mean_patches ds/dA_h[query, patch]`, map `relu(mean_h g_h A_h[query,
  patch])`, at the rows that the output reads.

Where one looks decides everything. In a model that reads CLS nothing reads the patches after the last block: their
gradient is zero there and the map blank (the classical mistake, pytorch-grad-cam #363, #513). So the token form looks
at the *input* of the last block by default, and a gradient that is zero at all patches is an error. For the same reason
the axis is checked: gradients are averaged over patches, never over hidden units (what captum's LayerGradCam does).

A token's own gradient is at a right angle to a stream that is read through LayerNorm alone, but the mean gradient is
not, so the token form is no rounding error there; still, what it shows is mostly the other patches' doing. On the
bundled scenes-vit it finds the object no better than chance at any block (AUROC .44 to .52, 64 images), and the
attention form does (.78).

Source: methods.md 10 (a) [K], (b) [C]; signed evidence is cut off by the relu.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from einops import einsum
from torch import Tensor

from mechvis.attribution.method import Claims, Maps, Method
from mechvis.attribution.methods.patterns import POOLING, pattern_sites, read_weights
from mechvis.attribution.question import Question
from mechvis.errors import BadData, FailedCheck, unknown

Form = Literal["token", "attention"]
Place = Literal["input", "normalised", "output"]
_SITES = {"input": "hook_resid_pre", "normalised": "ln1.hook_normalized", "output": "hook_resid_post"}


@dataclass(frozen=True, kw_only=True)
class GradCam(Method):
    """Grad-CAM on tokens, or on attention.

    Example:
        >>> mechvis.attribute(model, images, GradCam(form="attention"), contrast="runner_up")     # doctest: +SKIP
    """

    NAME = "grad_cam"
    CLAIMS = Claims(class_specific=True, signed=False)
    SOURCE = "methods.md 10; Selvaraju et al. 2017, for tokens and for attention"
    form: Form = "token"
    """What is taken for a feature map: the stream's tokens, or the attention pattern."""
    layer: int | None = None
    """Block; negative: from the end; None: the last one (attention form: the last attention before the output, which
    is the pooling's own where there is one)."""
    at: Place = "input"
    """Of the token form: the stream before the block, that stream normalised, or the stream after the block."""
    relu: bool = True
    """Cut off what speaks against the target, as in the paper. (Without it nothing is claimed about signs.)"""

    def maps(self, ask: Question) -> Maps:
        """Maps of one batch.

        Raises:
            FailedCheck: nothing reads the patches there: their gradient is identically zero.
            UnknownName, OutOfRange: form, place or layer.
        """
        if self.form not in get_args(Form):
            raise unknown("form of Grad-CAM", self.form, get_args(Form))
        if self.at not in get_args(Place):
            raise unknown("place of Grad-CAM", self.at, get_args(Place))
        if self.form == "attention" and self.at != "input":
            raise BadData("at= belongs to the token form; a pattern is inside its block.")
        found = self._tokens(ask) if self.form == "token" else self._attention(ask)
        return Maps(values=found.relu() if self.relu else found)

    def _tokens(self, ask: Question) -> Tensor:
        layer = ask.layer(-1 if self.layer is None else self.layer)
        site = f"blocks.{layer}.{_SITES[self.at]}"
        _, values, gradients = ask.gradients([site])
        tokens, gradient = values[site][:, ask.n_prefix :], gradients[site][:, ask.n_prefix :]
        if not bool(gradient.any()):
            raise FailedCheck(
                f"Grad-CAM at {site}: the gradient of the score is zero at every patch, so the map would be blank. "
                "This model reads only its prefix tokens after that place; take at='input', or an earlier layer."
            )
        return einsum(tokens, gradient.mean(1), "image patch d, image d -> image patch")

    def _attention(self, ask: Question) -> Tensor:
        sites = pattern_sites(ask)
        site = sites[-1] if self.layer is None else f"blocks.{ask.layer(self.layer)}.attn.hook_pattern"
        _, values, gradients = ask.gradients([site])
        pattern, gradient = (patches_of(ask, site, found[site]) for found in (values, gradients))
        rows = query_weights(ask, site, pattern)
        weights = gradient.mean(-1)
        if not bool(einsum(rows, weights.abs(), "query, image head query -> image head").any()):
            raise FailedCheck(
                f"Grad-CAM at {site}: the gradient of the score is zero at the rows that the output reads; take "
                "another layer."
            )
        seen = einsum(rows, weights, pattern, "query, image head query, image head query patch -> image head patch")
        return seen.mean(1)


def patches_of(ask: Question, site: str, pattern: Tensor) -> Tensor:
    """The columns of a pattern that are patches."""
    no_prefix = site == POOLING and ask.parts.pooling.keys == "patch"
    return pattern if no_prefix else pattern[..., ask.n_prefix :]


def query_weights(ask: Question, site: str, pattern: Tensor) -> Tensor:
    """How much each query of a pattern counts: the output's own rows; all alike in a block before attention pooling,
    which reads every token."""
    if ask.parts.pooling is None or site == POOLING:
        return read_weights(ask)
    return pattern.new_full((pattern.shape[2],), 1 / pattern.shape[2])
