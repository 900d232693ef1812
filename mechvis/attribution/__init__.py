"""Which patches does a score come from: attribution methods on the model's own sites, aware of the token grid.

* `attribute(model, images, method, target=...)`: maps `[image down across]` by any method, checked: an `Attribution`.
* methods are values with settings (`GradCam(layer=2)`), one a file in `methods/`, listed by name in `METHODS`.
* `Method`, `Maps`, `Claims`, `Question`: what one needs to write one's own.

A map is a claim. `found.card(data)` (`mechvis.cards`) measures how far it can be believed.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "attribute": "mechvis.attribution.attribute",
        "Attribution": "mechvis.attribution.attribution",
        "METHODS": "mechvis.attribution.names",
        "method": "mechvis.attribution.names",
        "Method": "mechvis.attribution.method",
        "Maps": "mechvis.attribution.method",
        "Claims": "mechvis.attribution.method",
        "Question": "mechvis.attribution.question",
        "image_text_attribution": "mechvis.attribution.image_text",
        "ImageTextAttribution": "mechvis.attribution.image_text",
        "ActTimesGrad": "mechvis.attribution.methods.act_x_grad",
        "RawAttention": "mechvis.attribution.methods.rollout",
        "AttentionRollout": "mechvis.attribution.methods.rollout",
        "GradientRollout": "mechvis.attribution.methods.rollout",
        "TransitionMaps": "mechvis.attribution.methods.rollout",
        "TokenTM": "mechvis.attribution.methods.rollout",
        "GradCam": "mechvis.attribution.methods.grad_cam",
        "Chefer": "mechvis.attribution.methods.chefer",
        "LeGrad": "mechvis.attribution.methods.le_grad",
        "LayerIG": "mechvis.attribution.methods.layer_ig",
        "InputIG": "mechvis.attribution.methods.layer_ig",
        "AttnLRP": "mechvis.attribution.methods.attn_lrp",
        "Captum": "mechvis.attribution.methods.through_captum",
        "Saliency": "mechvis.attribution.methods.through_captum",
        "InputXGradient": "mechvis.attribution.methods.through_captum",
        "SmoothGrad": "mechvis.attribution.methods.through_captum",
        "GradientShap": "mechvis.attribution.methods.through_captum",
        "GlobEnc": "mechvis.attribution.methods.glob_enc",
        "IIA": "mechvis.attribution.methods.iia",
        "RandomMap": "mechvis.attribution.methods.controls",
        "CentrePrior": "mechvis.attribution.methods.controls",
        "InputNorm": "mechvis.attribution.methods.controls",
        "Occlusion": "mechvis.attribution.methods.occlusion",
        "Rise": "mechvis.attribution.methods.rise",
        "Shapley": "mechvis.attribution.methods.shapley",
        "Iba": "mechvis.attribution.methods.iba",
        "Superpixels": "mechvis.attribution.cells",
        "Sobol": "mechvis.attribution.methods.sobol",
        "Hsic": "mechvis.attribution.methods.hsic",
        "KernelShap": "mechvis.attribution.methods.kernel_shap",
        "ExtremalPerturbation": "mechvis.attribution.methods.extremal",
        "PhaseWin": "mechvis.attribution.methods.phase_win",
        "Mhe": "mechvis.attribution.methods.mhe",
        "HSets": "mechvis.attribution.methods.h_sets",
        "pnn": "mechvis.attribution.methods.mhe",
        "InteractionSets": "mechvis.attribution.interaction_sets",
        "interaction_sets": "mechvis.attribution.interaction_sets",
        "BottleneckProfile": "mechvis.attribution.bottleneck_profile",
        "bottleneck_profile": "mechvis.attribution.bottleneck_profile",
        "PatchSwaps": "mechvis.attribution.swaps",
        "patch_swaps": "mechvis.attribution.swaps",
        "HeadGame": "mechvis.attribution.head_game",
        "HeadShapley": "mechvis.attribution.head_game",
        "head_shapley": "mechvis.attribution.head_game",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from mechvis.attribution.attribute import attribute
    from mechvis.attribution.attribution import Attribution
    from mechvis.attribution.bottleneck_profile import BottleneckProfile, bottleneck_profile
    from mechvis.attribution.cells import Superpixels
    from mechvis.attribution.head_game import HeadGame, HeadShapley, head_shapley
    from mechvis.attribution.image_text import ImageTextAttribution, image_text_attribution
    from mechvis.attribution.interaction_sets import InteractionSets, interaction_sets
    from mechvis.attribution.method import Claims, Maps, Method
    from mechvis.attribution.methods.act_x_grad import ActTimesGrad
    from mechvis.attribution.methods.attn_lrp import AttnLRP
    from mechvis.attribution.methods.chefer import Chefer
    from mechvis.attribution.methods.controls import CentrePrior, InputNorm, RandomMap
    from mechvis.attribution.methods.extremal import ExtremalPerturbation
    from mechvis.attribution.methods.glob_enc import GlobEnc
    from mechvis.attribution.methods.grad_cam import GradCam
    from mechvis.attribution.methods.h_sets import HSets
    from mechvis.attribution.methods.hsic import Hsic
    from mechvis.attribution.methods.iba import Iba
    from mechvis.attribution.methods.iia import IIA
    from mechvis.attribution.methods.kernel_shap import KernelShap
    from mechvis.attribution.methods.layer_ig import InputIG, LayerIG
    from mechvis.attribution.methods.le_grad import LeGrad
    from mechvis.attribution.methods.mhe import Mhe, pnn
    from mechvis.attribution.methods.occlusion import Occlusion
    from mechvis.attribution.methods.phase_win import PhaseWin
    from mechvis.attribution.methods.rise import Rise
    from mechvis.attribution.methods.rollout import (
        AttentionRollout,
        GradientRollout,
        RawAttention,
        TokenTM,
        TransitionMaps,
    )
    from mechvis.attribution.methods.shapley import Shapley
    from mechvis.attribution.methods.sobol import Sobol
    from mechvis.attribution.methods.through_captum import (
        Captum,
        GradientShap,
        InputXGradient,
        Saliency,
        SmoothGrad,
    )
    from mechvis.attribution.names import METHODS, method
    from mechvis.attribution.question import Question
    from mechvis.attribution.swaps import PatchSwaps, patch_swaps
