"""Fit the classifier of `scenes-vit`: honest logistic regression on scenes in which background and shape agree.

Nothing plants the shortcut. The backbone is frozen; its CLS features of scenes whose background agrees with the shape
95 % of the time get an ordinary ridge-regularised multinomial logistic regression onto the shapes. Since the background
predicts the label nearly as well as the shape does and has the wider margin, the regularised fit uses both.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F
from transformers import ViTForImageClassification, ViTModel

from mechvis.data.scenes import SHAPES, render, sample_factors
from mechvis.models.training.backbone import to_pixels


@dataclass(frozen=True, kw_only=True)
class ClassifierPlan:
    """How the classifier is fitted."""

    correlation: float = 0.95
    """Probability that the background is the shape's partner."""
    images: int = 3000
    """Number of scenes."""
    ridge: float = 0.01
    """Weight of the squared weights (for standardised features) beside the mean cross-entropy in nats."""
    seed: int = 300
    """Data set number of the scenes."""


@torch.no_grad()
def cls_features(
    vit: ViTModel, images: UInt8[np.ndarray, "image height width channel"], *, batch: int = 128
) -> Float[Tensor, "image d_model"]:
    """CLS token after the final layernorm, float32 on the CPU."""
    parts = to_pixels(images).split(batch)
    return torch.cat([vit(pixel_values=part.to(vit.device)).last_hidden_state[:, 0].cpu() for part in parts])


def fit_logistic(
    features: Float[Tensor, "image d_model"], labels: Int64[Tensor, "image"], *, classes: int, ridge: float
) -> tuple[Float[Tensor, "class d_model"], Float[Tensor, "class"]]:
    """Ridge-regularised multinomial logistic regression by L-BFGS in float64, on standardised features.

    Returns:
        Weight and bias for the features as they are (the standardisation is folded in), float32.

    Example:
        >>> weight, bias = fit_logistic(torch.eye(3), torch.arange(3), classes=3, ridge=1e-3)
        >>> weight.shape, bias.shape
        (torch.Size([3, 3]), torch.Size([3]))
    """
    x = features.double()
    mean, deviation = x.mean(0), x.std(0).clamp_min(1e-8)
    x = (x - mean) / deviation
    weight = torch.zeros(classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=300, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimiser.zero_grad()
        value = F.cross_entropy(F.linear(x, weight, bias), labels) + ridge * weight.pow(2).sum()
        value.backward()
        return value

    optimiser.step(objective)
    folded = weight.detach() / deviation
    return folded.float(), (bias.detach() - folded @ mean).float()


def build_classifier(vit: ViTModel, plan: ClassifierPlan) -> ViTForImageClassification:
    """The frozen backbone with a classifier fitted as planned, in eval mode on the CPU.

    Example:
        >>> model = build_classifier(vit, ClassifierPlan())
        >>> model.config.id2label[0]
        'circle'
    """
    factors = sample_factors(plan.images, seed=plan.seed, correlation=plan.correlation, training=True)
    features = cls_features(vit, render(factors)[0])
    weight, bias = fit_logistic(features, torch.from_numpy(factors.shape), classes=len(SHAPES), ridge=plan.ridge)
    config = type(vit.config).from_dict(vit.config.to_dict())
    config.id2label = dict(enumerate(SHAPES))
    config.label2id = {name: number for number, name in enumerate(SHAPES)}
    model = ViTForImageClassification(config)
    model.vit.load_state_dict(vit.state_dict())
    with torch.no_grad():
        model.classifier.weight.copy_(weight)
        model.classifier.bias.copy_(bias)
    return model.eval()
