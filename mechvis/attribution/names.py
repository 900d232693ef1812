"""Methods by name. A package of one's own adds some under the entry-point group `mechvis.attributions`."""

import importlib
from importlib.metadata import entry_points

from mechvis.attribution.method import Method
from mechvis.errors import unknown

METHODS: dict[str, str] = {
    "act_x_grad": "act_x_grad:ActTimesGrad",
    "raw_attention": "rollout:RawAttention",
    "rollout": "rollout:AttentionRollout",
    "gradient_rollout": "rollout:GradientRollout",
    "transition_maps": "rollout:TransitionMaps",
    "token_tm": "rollout:TokenTM",
    "grad_cam": "grad_cam:GradCam",
    "chefer": "chefer:Chefer",
    "legrad": "le_grad:LeGrad",
    "layer_ig": "layer_ig:LayerIG",
    "input_ig": "layer_ig:InputIG",
    "captum": "through_captum:Captum",
    "saliency": "through_captum:Saliency",
    "input_x_gradient": "through_captum:InputXGradient",
    "smooth_grad": "through_captum:SmoothGrad",
    "gradient_shap": "through_captum:GradientShap",
    "globenc": "glob_enc:GlobEnc",
    "iia": "iia:IIA",
    "random": "controls:RandomMap",
    "centre": "controls:CentrePrior",
    "input_norm": "controls:InputNorm",
    "occlusion": "occlusion:Occlusion",
    "rise": "rise:Rise",
    "shapley": "shapley:Shapley",
    "iba": "iba:Iba",
    "sobol": "sobol:Sobol",
    "hsic": "hsic:Hsic",
    "kernel_shap": "kernel_shap:KernelShap",
    "extremal": "extremal:ExtremalPerturbation",
    "phase_win": "phase_win:PhaseWin",
    "mhe": "mhe:Mhe",
    "h_sets": "h_sets:HSets",
}
"""Name -> file and class in `mechvis.attribution.methods`."""

ON_REQUEST: dict[str, str] = {"attn_lrp": "attn_lrp:AttnLRP"}
"""Likewise, of methods that run only after an explicit yes (a licence note), so that nothing that goes through all
methods meets them."""


def method(given: str | Method | type[Method]) -> type[Method] | Method:
    """A method's class by its name; a method (or class) as it is.

    Raises:
        UnknownName: with the nearest names.

    Example:
        >>> method("act_x_grad").CLAIMS.signed
        True
    """
    if not isinstance(given, str):
        return given
    if given in METHODS or given in ON_REQUEST:
        module, name = (METHODS | ON_REQUEST)[given].split(":")
        return getattr(importlib.import_module(f"mechvis.attribution.methods.{module}"), name)
    others = {point.name: point for point in entry_points(group="mechvis.attributions")}
    if given in others:
        return others[given].load()
    raise unknown("attribution method", given, sorted([*METHODS, *ON_REQUEST, *others]))
