"""captum's methods through the face: those that are right on transformers, pooled to patches, with honest claims.

`Captum(name=..., options=...)` runs any method of `mechvis.interop.captum` (which refuses those that go wrong on
transformers, each with its reason) on the explained score. The usual ones have names of their own.

How pixels become patches: attributions of pixels are added up; methods that write the same number at every pixel of a
patch (occlusion, ablation, Shapley values) are averaged. What each promises differs, so claims belong to the name:

==========================  =======  =========  =======
name                        signed   complete   random
==========================  =======  =========  =======
saliency                    no       no         no
input_x_gradient            yes      no         no
integrated_gradients        yes      yes        no
gradient_shap               yes      no         yes
noise_tunnel                yes [1]  no         yes
occlusion                   yes      no         no
feature_ablation            yes      no         no
shapley_value_sampling      yes      yes        yes
kernel_shap                 yes      no         yes
lime                        yes      no         yes
==========================  =======  =========  =======

[1] no, where it averages saliency, as SmoothGrad does.

GradientShap adds up only on average over its draws, and KernelShap up to the accuracy of its regression; neither is
called complete. (`shapley_values`, exact, takes `patches!` passes of captum and is for tiny grids.)

Noise, permutations and samples of an image come from (seed, example, method): one image at a time, so that the batch
changes nothing.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mechvis.attribution.method import Claims, Maps, Method
from mechvis.attribution.methods.layer_ig import over_patches
from mechvis.attribution.question import Question
from mechvis.errors import BadData, OutOfRange
from mechvis.interop import captum

_SIGNED = Claims(class_specific=True, signed=True)
_DRAWN = Claims(class_specific=True, signed=True, random=True)
_OUTPUTS = Claims(class_specific=True, signed=True, reads="outputs")
_DRAWN_OUTPUTS = Claims(class_specific=True, signed=True, random=True, reads="outputs")
CLAIMS = {
    "saliency": Claims(class_specific=True, signed=False),
    "input_x_gradient": _SIGNED,
    "integrated_gradients": Claims(class_specific=True, signed=True, complete=True),
    "gradient_shap": _DRAWN,
    "noise_tunnel": _DRAWN,
    "occlusion": _OUTPUTS,
    "feature_ablation": _OUTPUTS,
    "shapley_values": Claims(class_specific=True, signed=True, complete=True, reads="outputs"),
    "shapley_value_sampling": Claims(class_specific=True, signed=True, complete=True, random=True, reads="outputs"),
    "kernel_shap": _DRAWN_OUTPUTS,
    "lime": _DRAWN_OUTPUTS,
}
"""What each promises."""

_PER_FEATURE = ("occlusion", "feature_ablation", "shapley_values", "shapley_value_sampling", "kernel_shap", "lime")


class _OfName:
    """Claims of the method's name; of the class: those of its default name."""

    def __get__(self, instance: Any, owner: Any) -> Claims:
        name = owner.name if instance is None else instance.name
        if name not in CLAIMS:
            captum._method(name)  # says why it is refused, or what there is
        if instance is not None and dict(instance.options).get("of") == "saliency":
            return replace(CLAIMS[name], signed=False)
        return CLAIMS[name]


@dataclass(frozen=True, kw_only=True)
class Captum(Method):
    """A method of captum on the explained score.

    Example:
        >>> mechvis.attribute(model, images, Captum(name="occlusion"))                          # doctest: +SKIP
        >>> Captum(name="integrated_gradients", options=(("n_steps", 64),))                     # doctest: +SKIP
    """

    NAME = "captum"
    CLAIMS = _OfName()
    SOURCE = "captum, through mechvis.interop.captum; faithfulness.md 1.2"
    name: str = "integrated_gradients"
    """A method of `mechvis.interop.captum.METHODS`."""
    options: tuple[tuple[str, Any], ...] = ()
    """Options of the method in captum, as pairs: `(("n_steps", 64),)`."""

    def maps(self, ask: Question) -> Maps:
        """Maps of one batch.

        Raises:
            RefusedMethod: captum's method is wrong on transformers; says why.
            UnknownName: no such method or option.
            FailedCheck: zero everywhere, or not complete though promised.
            MissingPackage: captum is not installed.
        """
        claims = self.CLAIMS
        given = self._options()
        if not claims.random:
            found = self._asked(ask, slice(None), ask.seed, given)
        else:
            rows = []
            for image in range(len(ask.pixels)):
                seed = ask.generator(image, f"captum {self.name}").initial_seed() % 2**32
                rows.append(self._asked(ask, slice(image, image + 1), seed, given))
            found = torch.cat(rows)
        total = None
        if claims.complete:
            start = torch.as_tensor(given.get("baselines", 0.0)).to(ask.pixels).expand_as(ask.pixels)
            total = ask.scores() - ask.scores(start)
        return Maps(values=over_patches(ask, found, "mean" if self.name in _PER_FEATURE else "sum"), total=total)

    def _options(self) -> dict[str, Any]:
        try:
            return {str(name): tuple(value) if isinstance(value, list) else value for name, value in self.options}
        except (TypeError, ValueError) as error:
            raise BadData(f"options= are pairs of name and value, got {self.options!r}.") from error

    def _asked(self, ask: Question, rows: slice, seed: int, options: dict[str, Any]) -> Tensor:
        pixels, target = ask.pixels[rows], ask.target[rows]
        n = len(pixels)
        if target.contrast is not None:
            face, column = ask.model.face("logit_diff", target=target.classes, contrast=target.contrast), None
        elif target.form == "logit":
            face, column = ask.model.face(None), target.classes
        else:
            reading = torch.softmax if target.form == "prob" else torch.log_softmax
            face, column = ask.model.face(lambda logits: reading(logits, -1)), target.classes
        ids = torch.arange(n, device=pixels.device)
        with _Counted(face, ask):
            return captum.attribute(face, pixels, self.name, target=column, example_id=ids, seed=seed, **options)


class _Counted:
    """Counts the rows that go through a face while captum works."""

    def __init__(self, face: Any, ask: Question):
        self.face, self.ask = face, ask

    def __enter__(self) -> None:
        def count(module: Any, given: Any) -> None:
            self.ask.cost.forwards += len(given[0])
            self.ask.cost.backwards += len(given[0]) if torch.is_grad_enabled() and given[0].requires_grad else 0

        self.hook = self.face.register_forward_pre_hook(count)

    def __exit__(self, *error: Any) -> None:
        self.hook.remove()


@dataclass(frozen=True, kw_only=True)
class Saliency(Captum):
    """Size of the gradient of each pixel, summed over a patch.

    Example:
        >>> mechvis.attribute(model, images, Saliency())                                        # doctest: +SKIP
    """

    NAME = "saliency"
    name: str = "saliency"


@dataclass(frozen=True, kw_only=True)
class InputXGradient(Captum):
    """Pixel times gradient, summed over a patch: the first-order change if the patch went to the mean colour."""

    NAME = "input_x_gradient"
    name: str = "input_x_gradient"


@dataclass(frozen=True, kw_only=True)
class SmoothGrad(Captum):
    """Size of the gradient of each pixel, averaged over noisy copies of the image, summed over a patch."""

    NAME = "smooth_grad"
    CLAIMS = replace(_DRAWN, signed=False)
    name: str = "noise_tunnel"
    samples: int = 16
    """Noisy copies."""
    noise: float = 0.2
    """Standard deviation of the noise, in units of preprocessed pixels."""

    def _options(self) -> dict[str, Any]:
        if self.samples < 1 or not self.noise > 0:
            raise OutOfRange(f"samples={self.samples}, noise={self.noise}: give at least one sample and some noise.")
        own = {"nt_samples": self.samples, "stdevs": self.noise, "nt_type": "smoothgrad", "of": "saliency"}
        return own | super()._options()


@dataclass(frozen=True, kw_only=True)
class GradientShap(Captum):
    """Gradients at random points between the image and the mean colour, times the difference."""

    NAME = "gradient_shap"
    name: str = "gradient_shap"
    samples: int = 16
    """Points."""

    def _options(self) -> dict[str, Any]:
        if self.samples < 1:
            raise OutOfRange(f"samples={self.samples}: give at least one.")
        return {"n_samples": self.samples} | super()._options()
