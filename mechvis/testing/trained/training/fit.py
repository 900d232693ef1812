"""The optimiser's loop: fresh images at every step, a fixed number of steps, one seed."""

import logging
import time
from dataclasses import dataclass, field

import torch
from torch import nn

from mechvis.errors import NotFinite
from mechvis.models.load import find
from mechvis.testing.trained.placement import Placement
from mechvis.testing.trained.task import PlantedTask
from mechvis.testing.trained.training.decoys import DecoyWeights, decoy_loss, read_outs
from mechvis.testing.trained.training.loss import behaviour_loss, joint_loss

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FitPlan:
    """How a planted model, or its twin, is trained."""

    steps: int
    """Number of optimiser steps."""
    seed: int = 0
    """Seed of weights, images and interchanges."""
    planted: bool = True
    """False: behaviour only, the twin."""
    decoys: DecoyWeights | None = field(default_factory=DecoyWeights)
    """Decoy terms; None: unused heads may fall silent."""
    batch: int = 96
    """Images per step."""
    learning_rate: float = 2e-3
    """Of AdamW, after the warm-up."""
    steady: float = 0.6
    """Fraction of the steps after which the rate falls to zero along a cosine."""
    warmup: int = 50
    """Steps with a linearly rising rate."""
    silence: tuple[float, float] = (0.2, 0.5)
    """Fractions of the steps between which the weight of the silence term rises from 0 to 1: from the start on it would
    slow down the learning of the program."""
    clip_norm: float = 1.0
    """Largest norm of the whole gradient."""

    def silence_at(self, step: int) -> float:
        """Weight of the silence term at step number `step`."""
        begin, end = self.silence
        return min(1.0, max(0.0, (step / self.steps - begin) / (end - begin)))

    def rate(self, step: int) -> float:
        """Learning rate of step number `step`."""
        rising = min(1.0, (step + 1) / self.warmup)
        done = max(0.0, step / self.steps - self.steady) / (1 - self.steady)
        return self.learning_rate * rising * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * done))))


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What was logged during training."""

    steps: tuple[int, ...]
    """Steps that were logged."""
    figures: dict[str, tuple[float, ...]]
    """Name -> mean over the steps since the last entry."""
    seconds: float
    """Duration, one process."""


def fit(model: nn.Module, task: PlantedTask, placement: Placement, plan: FitPlan, *, log_every: int = 200) -> Curve:
    """Train `model` in place.

    Args:
        model: from `new_model`.
        task: images and program.
        placement: where the program is planted (the twin ignores it).
        plan: steps, rates, terms.
        log_every: steps per entry of the curve.

    Returns:
        The curve of losses.

    Raises:
        NotFinite: the loss became NaN or Inf.
    """
    parts = find(model)(model)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trainable, lr=plan.learning_rate, weight_decay=0.01)
    # The images of training must never meet those of certificates and families, which are seeded by small numbers.
    generator = torch.Generator().manual_seed(1_000_000_007 + plan.seed)
    with_decoys = plan.planted and plan.decoys is not None and bool(placement.decoys)
    fixed = read_outs(task, placement, task.draw(1, torch.Generator()), parts.d_model) if with_decoys else {}
    steps, curve, since, started = [], {}, {}, time.perf_counter()
    for step in range(plan.steps):
        for group in optimiser.param_groups:
            group["lr"] = plan.rate(step)
        scenes = task.draw(plan.batch, generator)
        if plan.planted:
            loss, trace, figures = joint_loss(parts, task, placement, scenes, generator, silence=plan.silence_at(step))
        else:
            loss, trace, figures = behaviour_loss(parts, task, scenes)
        if with_decoys:
            more, also = decoy_loss(task, placement, scenes, trace, fixed, plan.decoys)
            loss, figures = loss + more, {**figures, **also}
        if not torch.isfinite(loss):
            raise NotFinite(f"{task.name}, seed {plan.seed}: the loss is {loss.item()} at step {step}.")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trainable, plan.clip_norm)
        optimiser.step()
        for name, value in figures.items():
            since.setdefault(name, []).append(float(value))
        if (step + 1) % log_every == 0 or step + 1 == plan.steps:
            steps.append(step + 1)
            for name, values in since.items():
                curve.setdefault(name, []).append(sum(values) / len(values))
            since = {}
            words = ", ".join(f"{name} {values[-1]:.3f}" for name, values in curve.items())
            logger.info("%s: step %d, %.0f s: %s", task.name, step + 1, time.perf_counter() - started, words)
    figures = {name: tuple(round(value, 4) for value in values) for name, values in curve.items()}
    return Curve(steps=tuple(steps), figures=figures, seconds=round(time.perf_counter() - started, 1))
