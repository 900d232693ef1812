"""captum on a wrapped model: its attribution methods by name, with the ones that go wrong on transformers refused.

:func:`attribute` runs a method of captum on a face (see `mechvis.face`):

1. the method must be on the list of those known to be right on vision transformers; the others are refused, each with
   its reason (measured with captum 0.9 on Hugging Face's ViT);
2. example ids travel with the pixels, so that edits inside the face meet the right images however captum repeats them;
3. what comes out is checked: shape, finite, not all zero, and complete for methods that promise it.

captum is an optional extra (`pip install mechvis[captum]`) and is imported when used.
"""

import contextlib
import inspect
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import BadData, FailedCheck, MissingPackage, NotFinite, RefusedMethod, ShapeMismatch, unknown
from mechvis.face import Face


@dataclass(frozen=True, kw_only=True)
class Method:
    """What has to be known of a method of captum to run it."""

    cls: str
    """Its class in `captum.attr`."""
    gradient: bool = False
    """Wants pixels that require a gradient."""
    by_feature: bool = False
    """Takes a feature mask; patches by default."""
    complete: bool = False
    """Attributions add up to the output minus that of the baseline."""
    alone: bool = False
    """Draws noise, or fits a model, for each image: run one image at a time from the same seed, so that what an image
    gets does not depend on the batch it is in."""


METHODS = {
    "saliency": Method(cls="Saliency", gradient=True),
    "input_x_gradient": Method(cls="InputXGradient", gradient=True),
    "integrated_gradients": Method(cls="IntegratedGradients", complete=True),
    "gradient_shap": Method(cls="GradientShap", alone=True),
    "noise_tunnel": Method(cls="NoiseTunnel", alone=True),
    "occlusion": Method(cls="Occlusion"),
    "feature_ablation": Method(cls="FeatureAblation", by_feature=True),
    "shapley_values": Method(cls="ShapleyValues", by_feature=True, complete=True),
    "shapley_value_sampling": Method(cls="ShapleyValueSampling", by_feature=True, complete=True),
    "kernel_shap": Method(cls="KernelShap", by_feature=True, alone=True),
    "lime": Method(cls="Lime", by_feature=True, alone=True),
}
"""Methods that are right on vision transformers."""

_NO_RULE = (
    "it rewrites the backward pass of modules and has no rule for GELU, softmax and LayerNorm; on a ViT it silently "
    "equals Input x Gradient, with a convergence error of the size of the output. Use integrated_gradients"
)
_NO_RELU = "it changes the gradient of ReLU, which a ViT does not have: it is bitwise the plain gradient. Use saliency"
_INSIDE = (
    "it looks at a module inside the model, and a face has none. For a site: run = model.run(pixels, capture=[site], "
    "grad=True), then torch.autograd.grad(run.logits[:, c].sum(), run.cache[site])"
)

REFUSED = {
    "deep_lift": _NO_RULE,
    "deep_lift_shap": _NO_RULE,
    "lrp": "it has no rule for LayerNorm. Use integrated_gradients",
    "guided_backprop": _NO_RELU,
    "deconvolution": _NO_RELU,
    "guided_grad_cam": "it is guided backprop times Grad-CAM, and wrong in both: no ReLU, and the wrong axis",
    "layer_grad_cam": "it averages gradients over a token's hidden units, in the place of the image's plane",
    "feature_permutation": "it exchanges values between images: what one gets depends on the others in the batch",
}
"""Methods that are wrong on vision transformers without saying so, with the reason."""

INNER = ("saliency", "input_x_gradient", "integrated_gradients")
"""Methods that noise_tunnel may wrap."""


def attribute(
    face: Any,
    images: Any,
    method: str | type = "integrated_gradients",
    *,
    target: int | str | Sequence[int | str] | Tensor | None = None,
    of: str = "integrated_gradients",
    example_id: Tensor | None = None,
    seed: int = 0,
    tolerance: float = 0.01,
    **options: Any,
) -> Float[Tensor, "image channel height width"]:
    """Attributions of pixels to one output of a face, by a method of captum.

    Args:
        face: `model.face(...)`.
        images: pixels `[image channel height width]`, or an `ImageSet`.
        method: a name of `METHODS`, or the captum class itself.
        target: column of the face's output by index or name, or one per image; may be left out if there is one column.
        of: for `noise_tunnel`: the method whose attributions are averaged over noise.
        example_id: which example of the face's edits each image is; by default the first, the second, ...
        seed: of methods that draw random numbers; the process's own random state is left as it was.
        tolerance: of the completeness check, relative to the largest difference to the baseline in the batch.
        options: of the method in captum, e.g. `baselines`, `n_steps`, `feature_mask`, `perturbations_per_eval`. By
            default features and windows are patches.

    Returns:
        Attributions on the device of the pixels, without a graph. `face.to_patches` makes them a map of patches.

    Raises:
        RefusedMethod: the method is wrong on transformers; says why.
        UnknownName: no such method, or column.
        FailedCheck: all zero, or not complete.
        NotFinite: NaN or Inf.
        MissingPackage: captum is not installed.

    Example:
        >>> face = model.face("circle")                                                 # doctest: +SKIP
        >>> maps = attribute(face, pixels, "integrated_gradients", n_steps=64)          # doctest: +SKIP
        >>> face.to_patches(maps).shape                                                 # doctest: +SKIP
        torch.Size([8, 8, 8])
    """
    name, how = _method(method)
    if not isinstance(face, Face):
        raise BadData(f"attribute takes a face, got {type(face).__name__}: model.face(...).")
    pixels = face.model.inputs(images).detach()
    ids = torch.arange(len(pixels), device=pixels.device) if example_id is None else example_id
    columns = _columns(face, pixels, ids, target)
    engine = _engine(how, face, of)
    options = _with_defaults(name, how, face, pixels, _known(name, engine, options))
    with_graph = how.gradient or (name == "noise_tunnel" and METHODS[of].gradient)
    parts = []
    for rows in _rows(len(pixels), how):
        given = pixels[rows].clone().requires_grad_(with_graph)
        own = {key: _own(key, value, rows, len(pixels), name) for key, value in options.items()}
        column = columns if isinstance(columns, int) else columns[rows]
        with _seeded(seed):
            parts.append(engine.attribute(given, target=column, additional_forward_args=(ids[rows],), **own).detach())
    found = torch.cat(parts)
    _check(name, found, pixels)
    if how.complete:
        _check_complete(name, how, found, face, pixels, ids, columns, options, tolerance)
    return found


def _method(method: str | type) -> tuple[str, Method]:
    by_class = {how.cls: name for name, how in METHODS.items()}
    name = by_class.get(method.__name__, _snake(method.__name__)) if isinstance(method, type) else method
    if name in METHODS:
        return name, METHODS[name]
    if name in REFUSED:
        raise RefusedMethod(f"{name} is refused for vision transformers: {REFUSED[name]}.")
    if name.startswith(("layer_", "neuron_")) or name == "internal_influence":
        raise RefusedMethod(f"{name} is refused on a face: {_INSIDE}.")
    raise unknown("method", name, METHODS)


def _snake(name: str) -> str:
    if name.isupper():
        return name.lower()
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")


def _engine(how: Method, face: Face, of: str) -> Any:
    try:
        import captum.attr
    except ImportError as error:
        raise MissingPackage("captum is not installed: pip install 'mechvis[captum]'.") from error
    if how.cls != "NoiseTunnel":
        return getattr(captum.attr, how.cls)(face)
    if of not in INNER:
        raise unknown("method for noise_tunnel to wrap (of=)", of, INNER)
    return captum.attr.NoiseTunnel(getattr(captum.attr, METHODS[of].cls)(face))


def _known(name: str, engine: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Options that the method has; a misspelt one must not vanish in captum's own keyword arguments."""
    for reserved in ("additional_forward_args", "return_convergence_delta", "inputs"):
        if reserved in options:
            raise BadData(f"{reserved}= is set by attribute itself; example ids are example_id=.")
    methods = [engine, engine.attribution_method] if name == "noise_tunnel" else [engine]
    valid = {key for method in methods for key in inspect.signature(method.attribute).parameters} - {"self", "kwargs"}
    for option in options:
        if option not in valid:
            raise unknown(f"option of {name}", option, sorted(valid - {"inputs", "additional_forward_args", "target"}))
    return options


def _rows(n: int, how: Method) -> list[slice]:
    return [slice(i, i + 1) for i in range(n)] if how.alone else [slice(0, n)]


def _own(key: str, value: Any, rows: slice, n: int, name: str) -> Any:
    """An option's rows for these images, where it has one per image. (`gradient_shap` draws from its baselines.)"""
    of_images = key == "feature_mask" or (key == "baselines" and name != "gradient_shap")
    return value[rows] if of_images and isinstance(value, Tensor) and len(value) == n > 1 else value


def _columns(face: Face, pixels: Tensor, ids: Tensor, target: Any) -> Any:
    """What captum takes for a target: a column index, or one per image."""
    with torch.no_grad():
        n = face(pixels[:1], ids[:1]).shape[1]
    if target is None:
        if n > 1:
            named = f" ({', '.join(face.columns[:5])} ...)" if face.columns else ""
            raise BadData(f"the face has {n} columns{named}; say which one with target=, or make a face of one.")
        return 0
    several = isinstance(target, (list, tuple, Tensor)) and not (isinstance(target, Tensor) and target.ndim == 0)
    chosen = [face.column(one) for one in (target if several else [target])]
    index = face.model.class_index(torch.tensor([int(one) for one in chosen]), n)
    if not several:
        return int(index[0])
    if len(index) != len(pixels):
        raise ShapeMismatch(f"target names {len(index)} columns for {len(pixels)} images.")
    return index


def _with_defaults(name: str, how: Method, face: Face, pixels: Tensor, options: dict[str, Any]) -> dict[str, Any]:
    """Patches for features and windows; zero (the mean colour) for a baseline where captum has none."""
    defaults: dict[str, Any] = {}
    if how.by_feature:
        defaults["feature_mask"] = face.patch_mask
    if name == "occlusion":
        window = (pixels.shape[1], *face.patch_size)
        defaults = {"sliding_window_shapes": window, "strides": options.get("sliding_window_shapes", window)}
    if name == "gradient_shap":
        defaults["baselines"] = torch.zeros_like(pixels[:1])
    return defaults | options


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """captum draws from the global generators of torch, numpy and Python; give them back as they were."""
    state, python = np.random.get_state(), random.getstate()  # noqa: NPY002
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            random.seed(seed)
            yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
        random.setstate(python)


def _check(name: str, found: Tensor, pixels: Tensor) -> None:
    if found.shape != pixels.shape:
        raise ShapeMismatch(f"{name} returned {list(found.shape)} for pixels {list(pixels.shape)}.")
    if not torch.isfinite(found).all():
        rows = (~torch.isfinite(found)).flatten(1).any(1).nonzero().flatten().tolist()
        raise NotFinite(f"{name} returned NaN or Inf for image(s) {rows[:5]}.")
    empty = (found == 0).flatten(1).all(1).nonzero().flatten().tolist()
    if empty:
        raise FailedCheck(
            f"{name} is zero everywhere for image(s) {empty[:5]}: nothing was attributed. An output that does not "
            "depend on the pixels (an edit that cuts them off?), or too strong a regularisation (LIME's default)?"
        )


def _check_complete(
    name: str,
    how: Method,
    found: Tensor,
    face: Face,
    pixels: Tensor,
    ids: Tensor,
    columns: Any,
    options: dict[str, Any],
    tolerance: float,
) -> None:
    baseline = options.get("baselines")
    baseline = 0 if baseline is None else baseline[0] if isinstance(baseline, tuple) else baseline
    start = baseline.expand_as(pixels) if isinstance(baseline, Tensor) else torch.full_like(pixels, float(baseline))
    index = torch.as_tensor(columns, device=pixels.device).expand(len(pixels))[:, None]
    with torch.no_grad():
        end = face(pixels, ids)
        due = (end - face(start, ids)).gather(1, index)[:, 0]
    total = _per_feature(found, options["feature_mask"]) if how.by_feature else found.flatten(1)
    gap, scale = float((total.sum(1) - due).abs().max()), float(due.abs().max())
    if gap > tolerance * scale + 100 * torch.finfo(end.dtype).eps * float(end.abs().max()):
        raise FailedCheck(
            f"{name} promises attributions that add up to the output minus that of the baseline; the largest gap is "
            f"{gap:.2e}, {gap / max(scale, 1e-30):.1%} of the largest difference ({scale:.2e}); allowed "
            f"{tolerance:.1%}. Take more steps (n_steps=), or raise tolerance=."
        )


def _per_feature(found: Tensor, mask: Tensor) -> Tensor:
    """One number per feature: feature-wise methods write it at every pixel of the feature."""
    features = mask.expand_as(found).flatten(1)
    n = int(features.max()) + 1
    totals = found.new_zeros(len(found), n).scatter_add(1, features, found.flatten(1))
    return totals / found.new_zeros(len(found), n).scatter_add(1, features, torch.ones_like(found).flatten(1)).clamp(
        min=1
    )
