"""Rows of the forward pass with nothing hooked."""

from typing import Any

import torch
from torch import Tensor

from benchmarks import bounds, models
from benchmarks.models import Place
from benchmarks.race import Contender, Disagreement, Goal, Task

TOLERANCE = {"fp32": 1e-4, "tf32": 2e-2, "bf16": 1e-1}
"""How far logits may be apart, relative to the largest: contenders round in different orders."""


def task(name: str, place: Place, batch: int, rounds: int) -> Task:
    """The forward of a batch: ours, the bare model, and the peers' wrapped models."""

    def pixels() -> Tensor:
        return models.pixels(name, place, batch)

    def plain(made: Any) -> Any:
        x = pixels()
        return lambda: made(x)

    def traced(wrapped: Any) -> Any:
        x = pixels()

        def run() -> Tensor:
            with wrapped.trace(x):
                logits = wrapped.output.logits.save()
            return logits  # noqa: RET504  a trace is left before its values are there

        return run

    contenders = {
        "mechvis": Contender(build=lambda: plain(models.hooked(name, place)), peer=False),
        "bare model": Contender(build=lambda: plain(models.bare(name, place)), peer=False),
        "transformer_lens bridge": Contender(build=lambda: plain(models.bridge(name, place))),
        "nnsight, an empty trace": Contender(build=lambda: traced(models.nnsight(name, place))),
    }
    if models.has_prisma():
        contenders["ViT-Prisma"] = Contender(build=lambda: plain(models.prisma(name, place)))
    return Task(
        key=f"forward/{name}/batch-{batch}{place.label.replace(', ', '-')}",
        title=f"{name}: forward with nothing hooked, batch {batch}{place.label}",
        contenders=contenders,
        rounds=rounds,
        digest=lambda who, answer: logits_of(answer).float().cpu(),
        check=lambda kept: [agree(kept, "bare model", place.precision)],
        least=lambda kept: {"mechvis": bounds.plain(models.shape(name), batch, item=place.item)},
        shape=name,
        precision=place.precision,
        goals=(Goal(limit=1.05, against="bare model"), Goal(limit=1.0)),
    )


def logits_of(answer: Any) -> Tensor:
    """Logits from a model's answer."""
    return answer if isinstance(answer, Tensor) else answer.logits


def agree(kept: dict[str, Tensor], truth: str, precision: str) -> str:
    """How far everyone's numbers are from the truth, relative to its largest; the words for it.

    Raises:
        Disagreement: too far.
    """
    true = kept[truth]
    size = float(true.abs().max().clamp(min=1e-30))
    apart = {who: float((found - true).abs().max()) / size for who, found in kept.items()}
    worst = max(apart, key=apart.__getitem__)
    if not apart[worst] <= TOLERANCE[precision]:
        raise Disagreement(f"{worst} differs from {truth} by {apart[worst]:.1e} of the largest value.")
    if not torch.isfinite(true).all():
        raise Disagreement(f"{truth} answers NaN or Inf.")
    return f"All agree to {apart[worst]:.0e} of the largest logit."
