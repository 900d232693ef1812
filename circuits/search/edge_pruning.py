"""Edge pruning: learn which edges can go, all at once, by gradient descent on a gate per edge (methods.md 5.6 **C**;
Bhaskar et al. 2024). With one gate per writer it is pruning of nodes (subnetwork probing).

    gates z ~ hard concrete(log_alpha);   each reader gets  sum_u z[u, v] out_u + (1 - z[u, v]) base_u
    loss = KL(full || gated)  +  l1 (target - s)  +  l2 (target - s)^2          s = 1 - mean z, the sparsity

`log_alpha` descends on the loss (Adam), the multipliers l1 and l2 ascend (plain gradient ascent, **X**), so the
sparsity is driven to its target, which rises linearly from 0 during the warm-up. A target above 1 pushes harder than
any sparsity can satisfy (**C**). At the end a threshold is chosen by which as many edges stay as the mean of the gates
without noise says (**C**).

Queries, keys and values are readers of their own, and there is no gate between them and their head: it would say the
same twice. What is learned is a set; that it explains the behaviour is to be shown on other images (`Task.halves`).
"""

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuits.circuit import Circuit
from circuits.edges.gated import gated
from circuits.edges.graph import EdgeGraph
from circuits.search import hard_concrete
from circuits.search.held import SHARE, part, size_of
from circuits.task import Batch, Task
from mechvis import metrics
from mechvis.errors import MechvisWarning, NotFinite, OutOfRange, unknown
from mechvis.progress import track

Level = Literal["edges", "nodes"]
LEVELS = ("edges", "nodes")
_MISSED = 0.05
"""A sparsity that is further than this from its target is said."""
_OVERSHOT = "Nothing that it cut was needed, or the multipliers rose too far: compare with a smaller multiplier_lr=."
_LOGGED = 50
"""Rows of the log, at most."""


def edge_pruning(
    task: Task,
    target_sparsity: float = 0.95,
    *,
    level: Level = "edges",
    steps: int = 400,
    lr: float = 0.1,
    multiplier_lr: float = 0.2,
    warmup: float = 0.5,
    metric: str | Callable | None = "kl",
    batch_size: int | None = None,
    draws: int = 1,
    start: float = 2.0,
    temperature: float = hard_concrete.TEMPERATURE,
    stretch: tuple[float, float] = hard_concrete.STRETCH,
    prune: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> Circuit:
    """The circuit that is left when gates on all edges are trained to be closed.

    Args:
        task: images and ablation (:func:`circuits.task`).
        target_sparsity: share of edges (or of heads and MLPs) to cut; above 1 pushes harder.
        level: `edges`, or `nodes`: one gate per head and MLP; the embedding stays.
        steps: of the training.
        lr: of the gates' log-odds (Adam).
        multiplier_lr: of the two multipliers (plain gradient ascent). Too large, and more is cut than was asked for.
        warmup: share of the steps in which the target rises to its value.
        metric: what must not fall: `kl`, another name from `mechvis.metrics.METRICS`, a function, or None for the
            task's own.
        batch_size: images per step; default: as many as fit the memory, at most 32.
        draws: samples of all gates per step.
        start: log-odds of every gate at the beginning.
        temperature, stretch: of the hard-concrete distribution.
        prune: drop edges on no path from the embedding to the read-out at the end (the number before is in the
            provenance).
        seed: of the gates' noise and of the batches.
        progress: show a progress bar.

    Returns:
        Circuit: its scores are the learned openness of the gates, `sigmoid(log_alpha)`. `provenance["edge_pruning"]`
        has the settings, what was reached, and the log of the training.

    Raises:
        OutOfRange: a setting outside its range.
        NotFinite: the training diverged; names the step.
        UnknownName: an unknown level or metric.

    Warns:
        MechvisWarning: the sparsity that was reached is far from the target.

    Example:
        >>> circuits.edge_pruning(task, 0.95, steps=800)                                           # doctest: +SKIP
    """
    settings = Training(
        target_sparsity=target_sparsity,
        level=level,
        steps=steps,
        lr=lr,
        multiplier_lr=multiplier_lr,
        warmup=warmup,
        batch_size=min(32, images_that_fit(task, draws)) if batch_size is None else batch_size,
        draws=draws,
        start=start,
        temperature=temperature,
        stretch=stretch,
        seed=seed,
    )
    name, function = (task.metric_name, task.metric) if metric is None else metrics.get(metric)
    started = time.perf_counter()
    log_alpha, log = train(task, settings, function, progress=progress)
    gates = hard_concrete.settled(log_alpha, stretch=stretch)
    open_gates = hard_concrete.discrete(log_alpha, gates).cpu().numpy()
    graph = task.graph
    openness = torch.sigmoid(log_alpha.double()).cpu().numpy()
    scores = np.full(graph.shape, np.nan)
    if level == "edges":
        writers, readers = graph.places.T
        kept = np.zeros(graph.shape, dtype=bool)
        kept[writers, readers], scores[writers, readers] = open_gates, openness
    else:
        kept = graph.inner_edges(np.array(graph.writers[1:])[open_gates])
        scores[0], scores[1:] = 1.0, openness[:, None]
    reached = 1 - float(open_gates.mean())
    if target_sparsity <= 1 and abs(reached - target_sparsity) > _MISSED:
        warnings.warn(
            f"edge pruning was to cut {target_sparsity:.1%} of the {level} and cut {reached:.1%} in {steps} steps. "
            + ("Take more steps, or a larger lr= or multiplier_lr=." if reached < target_sparsity else _OVERSHOT),
            MechvisWarning,
            stacklevel=2,
        )
    facts = task.provenance(
        edge_pruning={
            **settings.as_dict(),
            "metric": name,
            "sparsity": reached,
            "soft_sparsity": 1 - float(gates.mean()),
            "edges": int(kept.sum()),
            "pruned": prune,
            "seconds": round(time.perf_counter() - started, 3),
            "log": log,
        }
    )
    circuit = Circuit(
        graph=graph,
        kept=kept,
        scores=scores,
        title=f"edge pruning, {level}, target {target_sparsity:g}",
        model=facts["model"],
        provenance=facts,
    )
    return circuit.pruned() if prune else circuit


@dataclass(frozen=True, kw_only=True)
class Training:
    """How gates are trained; see :func:`edge_pruning` for the fields.

    Raises:
        OutOfRange: a setting outside its range.
        UnknownName: an unknown level.
    """

    target_sparsity: float
    level: str
    steps: int
    lr: float
    multiplier_lr: float
    warmup: float
    batch_size: int
    draws: int
    start: float
    temperature: float
    stretch: tuple[float, float]
    seed: int

    def __post_init__(self):
        if self.level not in LEVELS:
            raise unknown("level of pruning", self.level, LEVELS)
        low, high = self.stretch
        for what, value, fits, wanted in (
            ("target_sparsity", self.target_sparsity, self.target_sparsity > 0, "above 0"),
            ("steps", self.steps, self.steps >= 1, "at least 1"),
            ("lr", self.lr, 0 < self.lr < math.inf, "positive"),
            ("multiplier_lr", self.multiplier_lr, 0 <= self.multiplier_lr < math.inf, "not negative"),
            ("warmup", self.warmup, 0 <= self.warmup <= 1, "a share of the steps, 0 to 1"),
            ("batch_size", self.batch_size, self.batch_size >= 1, "at least 1"),
            ("draws", self.draws, self.draws >= 1, "at least 1"),
            ("start", self.start, math.isfinite(self.start), "finite"),
            ("temperature", self.temperature, 0 < self.temperature < math.inf, "positive"),
            ("stretch", self.stretch, low <= 0 and high >= 1, "around [0, 1], such as (-0.1, 1.1)"),
        ):
            if not fits:
                raise OutOfRange(f"{what}={value!r}: it must be {wanted}.")

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}

    def target(self, step: int) -> float:
        """The sparsity to reach at a step."""
        return self.target_sparsity * min(1.0, (step + 1) / max(1.0, self.warmup * self.steps))


def train(
    task: Task, settings: Training, metric: Callable, *, progress: bool = False
) -> tuple[Float[Tensor, " gate"], list[dict[str, float]]]:
    """Train the gates.

    Args:
        task: images and ablation.
        settings: how.
        metric: what must not fall.
        progress: show a progress bar.

    Returns:
        The log-odds of each gate (per edge in the order of `EdgeGraph.places`; per head and MLP in the order of
        `EdgeGraph.writers` without the embedding), and the log.

    Raises:
        NotFinite: loss or gradient is NaN or Inf.
    """
    model, layout = task.model, _Layout.of(task.graph, settings.level)
    dtype = torch.promote_types(model.dtype, torch.float32)
    log_alpha = torch.full((layout.n_gates,), settings.start, dtype=dtype, device=model.device, requires_grad=True)
    multipliers = torch.zeros(2, dtype=dtype, device=model.device, requires_grad=True)
    down = torch.optim.Adam([log_alpha], lr=settings.lr)
    # Plain ascent: Adam's steps do not shrink with what is missing, and wind the multipliers up during the warm-up.
    up = torch.optim.SGD([multipliers], lr=settings.multiplier_lr, maximize=True)
    generator = torch.Generator().manual_seed(settings.seed)
    images = _Images(task, settings.batch_size, settings.seed)
    every, log = max(1, settings.steps // _LOGGED), []
    with track(settings.steps, f"edge pruning ({settings.level})", " steps", show=progress) as bar:
        for step in range(settings.steps):
            batch, target = images.draw(), settings.target(step)
            with torch.enable_grad():
                drawn = hard_concrete.noise((settings.draws, layout.n_gates), generator, log_alpha)
                z = hard_concrete.sampled(log_alpha, drawn, temperature=settings.temperature, stretch=settings.stretch)
                output = gated(model, batch.clean, batch.base, layout.gates(z.to(model.dtype)), wires=task.wires)
                drop = (
                    metric(batch.logits.double(), *batch.classes, batch.logits.double())
                    - metric(output.double(), *batch.classes, batch.logits.double())
                ).mean()
                sparsity = 1 - z.mean()
                short = target - sparsity
                loss = drop + multipliers[0] * short + multipliers[1] * short.square()
                gradients = torch.autograd.grad(loss, [log_alpha, multipliers])
            first, second = multipliers.tolist()
            row = {
                "step": step,
                "drop": drop.item(),
                "sparsity": sparsity.item(),
                "target": target,
                "multiplier": first,
                "squared_multiplier": second,
            }
            if not (math.isfinite(loss.item()) and all(bool(torch.isfinite(g).all()) for g in gradients)):
                raise NotFinite(
                    f"edge pruning diverged at step {step}: the loss is {loss.item():.4g} (drop {row['drop']:.4g}, "
                    f"sparsity {row['sparsity']:.4g}, target {target:.4g}, multipliers {row['multiplier']:.4g} and "
                    f"{row['squared_multiplier']:.4g}). Use a smaller lr= or multiplier_lr=."
                )
            log_alpha.grad, multipliers.grad = gradients
            down.step(), up.step()
            if step % every == 0 or step == settings.steps - 1:
                log.append(row)
            bar.update(1)
    return log_alpha.detach(), log


@dataclass(frozen=True, eq=False)
class _Layout:
    """Where gates belong."""

    graph: EdgeGraph
    n_gates: int
    places: Tensor
    """(writer, reader) of each gate `[gate 2]`; empty for nodes."""

    @classmethod
    def of(cls, graph: EdgeGraph, level: str) -> "_Layout":
        if level == "nodes":
            return cls(graph, len(graph.writers) - 1, torch.empty(0, 2, dtype=torch.int64))
        return cls(graph, graph.n_edges, torch.from_numpy(graph.places.copy()))

    def gates(self, z: Float[Tensor, "draw gate"]) -> Float[Tensor, "draw writer reader"]:
        """Gates as the model takes them."""
        n_writers, n_readers = self.graph.shape
        if not len(self.places):
            embed = z.new_ones(len(z), 1)
            return torch.cat([embed, z], 1)[:, :, None].expand(-1, -1, n_readers)
        index = (self.places[:, 0] * n_readers + self.places[:, 1]).to(z.device)
        whole = z.new_ones(len(z), n_writers * n_readers)
        return whole.index_copy(1, index, z).unflatten(1, self.graph.shape)


class _Images:
    """Batches of a task's images in a random order that a seed fixes; runs are kept where they fit the memory."""

    def __init__(self, task: Task, size: int, seed: int):
        self.task, self.size = task, min(size, len(task))
        self.random = np.random.default_rng(seed)
        self.left: list[int] = []
        one = size_of(task.batch(range(1)))
        self.all = task.batch(range(len(task))) if one * len(task) <= SHARE * task.budget else None

    def draw(self) -> Batch:
        """The next batch; all images come once before one comes again."""
        if self.size == len(self.task):
            rows = list(range(self.size))
        else:
            while len(self.left) < self.size:
                self.left += self.random.permutation(len(self.task)).tolist()
            rows, self.left = self.left[: self.size], self.left[self.size :]
        if self.all is None:
            return self.task[rows].batch(range(len(rows)))
        return part(self.all, rows)


def images_that_fit(task: Task, draws: int = 1) -> int:
    """Images per step of training that fit the task's memory: all writers' differences and all forks are kept for the
    backward pass."""
    parts, graph = task.model.parts, task.graph
    n_writers, n_readers = graph.shape
    widest = max(block.d_mlp for block in parts.blocks)
    # Per reader its fork, the normalised fork and what the norm keeps; per layer streams, attention and the MLP.
    values = parts.d_model * (2 * n_writers + 4 * n_readers + 16 * graph.n_layers) + 4 * widest * graph.n_layers
    element = torch.finfo(task.model.dtype).bits // 8
    return max(1, min(len(task), task.budget // (values * parts.n_tokens * element * max(1, draws))))
