"""One training loop for the bundled models: a killed run continues as if nothing had happened.

What makes the resumed run equal the uninterrupted one:

1. The data are endless and addressed by image number, so the position in the data is the step number.
2. The learning rate is a function of the step number.
3. A checkpoint is one safetensors file with the parameters, both moments of AdamW and a JSON header (step, plan);
   it is written beside the old one, flushed, and moved over it, so a kill at any moment leaves a whole checkpoint.

The models have no dropout; anything else that draws random numbers in a step finds the generator seeded by the step.
"""

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from mechvis.errors import ResultMismatch

StepLoss = Callable[[nn.Module, int], tuple[Tensor, dict[str, Tensor]]]
"""Gets the module and the step number; returns the loss to minimise and figures to show beside the progress bar."""


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """What the run is; where and on what it runs are arguments of `fit`."""

    steps: int
    """Number of optimiser steps of the schedule."""
    stop: int | None = None
    """End after this many steps, before the schedule's end; None runs all."""
    batch: int
    """Images per step."""
    learning_rate: float
    """Highest learning rate of AdamW, reached after the warm-up and lowered to zero along a cosine."""
    weight_decay: float = 0.05
    """Decoupled weight decay, on matrices only."""
    warmup: float = 0.05
    """Fraction of the steps with a linearly rising learning rate."""
    clip_norm: float = 1.0
    """Largest norm of the whole gradient."""
    seed: int = 0
    """Seed of the initial weights and of the data."""
    bf16: bool = False
    """Whether the forward pass runs under bfloat16 autocast."""

    def rate(self, step: int) -> float:
        """Learning rate of step number `step`."""
        rising = max(1, round(self.warmup * self.steps))
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, self.steps - rising)))


def fit(
    module: nn.Module,
    loss: StepLoss,
    plan: TrainingPlan,
    *,
    checkpoint: Path,
    device: str | torch.device = "cpu",
    resume: bool = True,
    checkpoint_every: int = 100,
    progress: bool = True,
    stop_after: int | None = None,
) -> int:
    """Train `module` in place.

    Args:
        module: Trained where it is needed; its parameters must be on `device`.
        loss: Called once per step under autocast if the plan says so.
        plan: Steps, rates, seed.
        checkpoint: The checkpoint file; its folder is made if need be.
        device: Where the batches are computed.
        resume: Whether to continue from `checkpoint` if it exists.
        checkpoint_every: Steps between checkpoints.
        progress: Whether to show images per second and the remaining time.
        stop_after: Stop, with a checkpoint, after this many steps of the plan; None runs to the end.

    Returns:
        The number of steps of the plan that are now done.

    Raises:
        ResultMismatch: If the checkpoint was written under another plan.

    Example:
        >>> plan = TrainingPlan(steps=10, batch=4, learning_rate=1e-3)
        >>> fit(module, loss, plan, checkpoint=Path("run/state.safetensors"))
        10
    """
    matrices = [parameter for parameter in module.parameters() if parameter.requires_grad and parameter.ndim > 1]
    others = [parameter for parameter in module.parameters() if parameter.requires_grad and parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": plan.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=plan.learning_rate, betas=(0.9, 0.98))
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    done = _restore(module, optimiser, plan, checkpoint) if resume and checkpoint.exists() else 0
    last = plan.steps if plan.stop is None else min(plan.stop, plan.steps)
    end = last if stop_after is None else min(stop_after, last)
    kind = torch.device(device).type

    module.train()
    bar = tqdm(total=last * plan.batch, initial=done * plan.batch, unit="image", disable=not progress, mininterval=5)
    with bar:
        for step in range(done, end):
            torch.manual_seed(plan.seed * 1_000_003 + step)
            for group in optimiser.param_groups:
                group["lr"] = plan.rate(step)
            with torch.autocast(kind, torch.bfloat16, enabled=plan.bf16):
                value, figures = loss(module, step)
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(matrices + others, plan.clip_norm)
            optimiser.step()
            done = step + 1
            bar.update(plan.batch)
            if done % 20 == 0:
                bar.set_postfix({name: f"{float(figure):.3f}" for name, figure in figures.items()}, refresh=False)
            if done % checkpoint_every == 0 or done == end:
                _save(module, optimiser, plan, checkpoint, done)
    module.eval()
    return done


def load_weights(module: nn.Module, checkpoint: Path) -> int:
    """Load the parameters of a checkpoint, without the optimiser's state; returns the step they were saved after."""
    with safe_open(checkpoint, "pt") as file:
        module.load_state_dict({name[6:]: file.get_tensor(name) for name in file.keys() if name.startswith("model.")})  # noqa: SIM118
        return int(json.loads(file.metadata()["state"])["step"])


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a file beside `path`, flush it to disk and move it over `path`."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(beside)
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _save(module: nn.Module, optimiser: torch.optim.Optimizer, plan: TrainingPlan, path: Path, step: int) -> None:
    tensors = {f"model.{name}": tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    for name, parameter in module.named_parameters():
        for moment, tensor in optimiser.state.get(parameter, {}).items():
            tensors[f"optimiser.{moment}.{name}"] = tensor.detach().cpu().contiguous()
    metadata = {"state": json.dumps({"step": step, "plan": asdict(plan)})}
    write_atomically(path, lambda beside: save_file(tensors, beside, metadata=metadata))


def _restore(module: nn.Module, optimiser: torch.optim.Optimizer, plan: TrainingPlan, path: Path) -> int:
    with safe_open(path, "pt") as file:
        state = json.loads(file.metadata()["state"])
        if state["plan"] != asdict(plan):
            raise ResultMismatch(
                f"{path} was written under another plan: asked for {asdict(plan)}, found {state['plan']}. "
                "Give the same settings, another folder, or resume=False."
            )
        names = set(file.keys())
        module.load_state_dict({name[6:]: file.get_tensor(name) for name in names if name.startswith("model.")})
        for name, parameter in module.named_parameters():
            moments = {moment: f"optimiser.{moment}.{name}" for moment in ("step", "exp_avg", "exp_avg_sq")}
            if moments["step"] in names:
                optimiser.state[parameter] = {
                    # AdamW keeps its step count on the CPU, the moments beside the parameter
                    moment: file.get_tensor(key).to("cpu" if moment == "step" else parameter.device)
                    for moment, key in moments.items()
                }
    return int(state["step"])
