"""One dictionary while it is trained: parameters, moments, counters, and what a step does with a batch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sae.architecture import Architecture, Loss, Step
from sae.data import Rows
from sae.dictionary import Dictionary
from sae.held import Held, hold
from sae.losses import error_of, variance
from sae.team import ALONE, Team
from sae.training.fused import optimiser
from sae.training.optimiser import renormalise_
from sae.training.settings import Training


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to train: an architecture, where it reads and writes, from which seed.

    Example:
        >>> from sae.architectures import TopK
        >>> Job(architecture=TopK(n_latents=64, k=4), reads="ln2", writes="mlp_out").writes
        'mlp_out'
    """

    architecture: Architecture
    """Settings."""
    reads: str | tuple[str, ...] | None = None
    """Sites that are read; None: all that the data have."""
    writes: str | tuple[str, ...] | None = None
    """Sites that are written; None: those that are read."""
    seed: int | None = None
    """Of the starting values; None: that of the training."""

    def to_json(self) -> dict[str, Any]:
        """For files."""
        return {
            "architecture": self.architecture.to_json(),
            "reads": self.reads,
            "writes": self.writes,
            "seed": self.seed,
        }


class Learner:
    """A dictionary in training."""

    def __init__(self, dictionary: Dictionary, settings: Training, team: Team = ALONE):
        self.dictionary, self.settings, self.team = dictionary, settings, team
        self.optimiser = optimiser(dictionary, settings)
        self.held = Held(parameters=self.optimiser.parameters, unit=frozenset(self.optimiser.unit))
        device = dictionary.scale_in.device
        mine = dictionary.architecture.width(dictionary.ends) // dictionary.shards.size
        self.silent = torch.zeros(mine, dtype=torch.long, device=device)
        """Rows since each latent last fired."""
        self.n_dead, self.tokens = 0, 0
        self.average = None
        if settings.ema is not None:
            self.average = {name: p.detach().clone() for name, p in dictionary.named_parameters()}
        self.sums = {
            name: torch.zeros((), dtype=torch.float64, device=device)
            for name in ("error", "variance", "active", "norm")
        }
        self.parts: dict[str, Tensor] = {}
        self.counted, self.steps = 0, 0
        self.broken = torch.full((), -1, dtype=torch.long, device=device)
        """The first step whose loss was not finite."""

    def step(self, number: int, batch: Rows) -> None:
        """Learn from a batch; nothing waits for the device, but every `look_every` steps."""
        d, settings = self.dictionary, self.settings
        dead = self.silent >= settings.dead_tokens
        if number % settings.look_every == 0:
            self.n_dead = int(d.shards.total(dead.sum()))
        step = Step(
            number=number,
            progress=number / settings.steps,
            sparsity=settings.sparsity_at(number),
            k_factor=settings.k_at(number),
            dead=dead,
            n_dead=self.n_dead,
            types=batch.types,
            fast=settings.fast,
            bf16=settings.precision == "bfloat16",
            team=self.team,
        )
        with torch.no_grad():
            d.architecture.before(d, step)
            x, y = d.normalised(batch.activations)
        with hold(self.held):
            loss = d.architecture.loss(d, x, y, step)
            loss.total.backward()
        sizes = self.held.finish()
        if self.team.size > 1:
            self.team.average([p.grad for p in d.parameters() if p.grad is not None])
            sizes = {}
        norm = self.optimiser.step(settings.learning_rate(d.n_latents) * settings.lr_at(number), sizes)
        with torch.no_grad():
            d.architecture.after(d, loss, step)
            self._count(step, loss, y, norm)

    def _count(self, step: Step, loss: Loss, y: Tensor, norm: Tensor) -> None:
        d = self.dictionary
        n_rows = len(y) * self.team.size
        fired = self.team.sum(loss.codes.positive()) if self.team.size > 1 else loss.codes.positive()
        self.tokens += n_rows
        self.silent += n_rows
        self.silent.masked_fill_(fired > 0, 0)
        if self.average is not None:
            for name, p in self.dictionary.named_parameters():
                self.average[name].lerp_(p, 1 - self.settings.ema)
        self.sums["error"] += self.team.sum(error_of(y, loss.y_hat, step))
        self.sums["variance"] += variance(y, step).double() * n_rows
        self.sums["active"] += d.shards.total(fired.sum())
        self.sums["norm"] += norm
        for name, value in loss.parts.items():
            value = self.team.mean(value.double())
            self.parts[name] = value if name not in self.parts else self.parts[name] + value
        self.counted += n_rows
        self.steps += 1
        bad = ~torch.isfinite(loss.total.detach()) & (self.broken < 0)
        self.broken = torch.where(bad, step.number, self.broken)

    def line(self) -> dict[str, Any]:
        """What the log says about the steps since the last line; starts counting anew."""
        rows, steps = max(1, self.counted), max(1, self.steps)
        found = {
            "fvu": float(self.sums["error"] / self.sums["variance"]),
            "l0": float(self.sums["active"]) / rows,
            "dead": self._dead_share(),
            "gradient_norm": float(self.sums["norm"]) / steps,
            **{f"loss_{name}": float(value) / steps for name, value in sorted(self.parts.items())},
        }
        for value in self.sums.values():
            value.zero_()
        self.parts, self.counted, self.steps = {}, 0, 0
        return found

    def _dead_share(self) -> float:
        shards = self.dictionary.shards
        dead = (self.silent >= self.settings.dead_tokens).sum().double()
        return float(shards.total(dead)) / (len(self.silent) * shards.size)

    def finished(self) -> Dictionary:
        """The dictionary to keep: with averaged weights, where they are averaged."""
        found = self.dictionary
        if self.average is not None:
            state = dict(found.named_buffers())
            found = Dictionary(found.architecture, found.ends, self.average, state, provenance=found.provenance)
            found.shards = self.dictionary.shards
        with torch.no_grad():
            # What is brought in place before every batch has to be after the last one too.
            found.architecture.before(found, Step(number=self.settings.steps, progress=1.0))
            if self.average is not None and found.architecture.decoder == "unit":
                for name in found.architecture.UNIT:
                    if hasattr(found, name):
                        renormalise_(getattr(found, name))
        return found

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """Everything that changes, as tensors."""
        return {
            **{f"dictionary.{name}": t for name, t in self.dictionary.state_dict().items()},
            **{f"optimiser.{name}": t for name, t in self.optimiser.tensors().items()},
            **{f"average.{name}": t for name, t in (self.average or {}).items()},
            **{f"sum.{name}": t for name, t in self.sums.items()},
            "silent": self.silent,
            "broken": self.broken,
        }

    def numbers(self) -> dict[str, Any]:
        """Everything that changes, as numbers."""
        return {
            "count": self.optimiser.count,
            "n_dead": self.n_dead,
            "tokens": self.tokens,
            "counted": self.counted,
            "steps": self.steps,
            "parts": {name: float(value) for name, value in sorted(self.parts.items())},
        }

    def mine(self) -> set[str]:
        """Tensors with a row per latent, of which every process has its own where the dictionary is shared out."""
        names = self.dictionary.mine
        return {"silent"} | {name for name in self.tensors() if name.split(".")[-1] in names}

    def load(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Back to a checkpoint."""

        def of(word: str) -> dict[str, Tensor]:
            return {name.removeprefix(f"{word}."): t for name, t in tensors.items() if name.startswith(f"{word}.")}

        self.dictionary.load_state_dict(of("dictionary"))
        self.optimiser.load(of("optimiser"), numbers["count"])
        for name, tensor in of("average").items():
            self.average[name].copy_(tensor)
        for name, tensor in of("sum").items():
            self.sums[name].copy_(tensor)
        device = self.silent.device
        self.parts = {
            name: torch.tensor(value, dtype=torch.float64, device=device) for name, value in numbers["parts"].items()
        }
        self.silent.copy_(tensors["silent"])
        self.broken = tensors["broken"].to(device)
        self.n_dead, self.tokens = numbers["n_dead"], numbers["tokens"]
        self.counted, self.steps = numbers["counted"], numbers["steps"]
