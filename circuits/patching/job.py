"""One direction of activation patching as a job of the sweep engine.

A sweep with `edit="patch"` already runs one half of the pairs with activations of the other half put in (`base` and
`source`). Three things are different here:

1. target and contrast are the classes of the pair, not the label and the runner-up of the base run;
2. metrics that compare with the clean run (`kl`, `js`) compare with the clean half in both directions;
3. units may be parts of heads, which enter the wave front as the z that they make.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from circuits.pairs.classes import PairClasses
from circuits.pairs.pairs import Pairs
from circuits.patching.inside_head import PatchedInside, short_way
from circuits.patching.units import HeadPart
from mechvis.engine import Job
from mechvis.sweep_inputs import Part, Prepared, prepare
from mechvis.units import Unit
from mechvis.wave import Replacement

Direction = Literal["noise", "denoise"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Patching(Prepared):
    """A prepared sweep that measures against the classes of pairs."""

    known: PairClasses
    """Classes and logits of the pairs."""
    direction: Direction
    """Which half runs, and which is put in."""
    part: str = ""
    """Part of a head that is patched, or empty."""
    listed: Sequence[Unit]
    """The units as they were asked for, in the order of `units`."""

    @property
    def word(self) -> str:
        """Name of its folder of finished pieces."""
        return f"{self.direction}-{self.part}" if self.part else self.direction

    def engine(self, asked: str) -> str:
        """The engine that can run it: parts of heads that are no heads to the wave front go the plain way."""
        return "plain" if any(isinstance(unit, HeadPart) for unit in self.units) else asked

    @property
    def absent(self) -> np.ndarray:
        """Where a group of patches has no patch `[unit image]`."""
        if self.groups is None or not self.groups.per_image:
            return np.zeros((len(self.units), len(self.images)), bool)
        return ~self.groups.members.any(2).numpy()[:, [unit.index for unit in self.units]].T

    def job(
        self, units: Sequence[Unit] | None = None, order: np.ndarray | None = None, plan: dict[str, Any] | None = None
    ) -> Job:
        """What the engine is to compute: M(base) - M(patched) per unit and pair, and M(base)."""
        job = super().job(units, order, plan)

        def measure(base: Tensor, patched: Tensor, part: range) -> dict[str, Tensor]:
            rows = torch.as_tensor(np.arange(part.start, part.stop) if order is None else order[part.start : part.stop])
            own = (self.known.target, self.known.contrast, self.known.clean)
            target, contrast, clean = (values[rows.to(values.device)] for values in own)
            found = {}
            for name, function in self.metrics:
                before = function(base[0], target, contrast, clean)
                found[f"clean/{name}"] = before
                found[name] = before - function(patched[:, 0], target, contrast, clean)
            return found

        # For a part of a head: z, and the three projections that it is made of.
        return replace(job, measure=measure, bytes_per_image=job.bytes_per_image * (4 if self.part else 1))

    def _values(self, units: Sequence[Unit], part: Part) -> Replacement:
        if not self.part or any(isinstance(unit, HeadPart) for unit in units):
            return super()._values(units, part)
        base, other = (read(part).to(self.model.device, self.model.dtype) for read in (self.pixels, self.source))
        return PatchedInside(self.model, self.part, sorted({unit.layer for unit in units}), base, other)


def patching(
    model: Any,
    pairs: Pairs,
    known: PairClasses,
    direction: Direction,
    *,
    units: str | Sequence[Unit],
    part: str,
    groups: Any,
    metric: str | Callable | Sequence[str | Callable],
    targets: Any,
    layers: Any,
    engine: str,
    seed: int,
) -> Patching:
    """Settle one direction: `noise` runs the clean half with corrupt activations put in, `denoise` the reverse.

    Raises:
        What `mechvis.sweep` raises about its arguments.
    """
    noise = direction == "noise"
    base, source = (pairs.clean, pairs.corrupt) if noise else (pairs.corrupt, pairs.clean)
    inside = [unit for unit in units if isinstance(unit, HeadPart)]
    ready = prepare(
        model,
        base,
        units=[unit.head for unit in inside] if inside else units,
        groups=groups,
        edit="patch",
        metric=metric,
        targets=targets,
        labels=None,
        reference=None,
        source=source,
        layers=layers if units == "patches" else None,
        engine=engine,
        seed=seed,
        allow_overlap=False,
    )
    given = {field.name: getattr(ready, field.name) for field in fields(Prepared)}
    if inside and (engine == "plain" or not short_way(model, sorted({unit.layer for unit in inside}))):
        given["units"] = inside
    listed = inside or ready.units
    classes = torch.stack([known.target, known.contrast]).cpu().numpy()
    given["settings"] = {
        **ready.settings,
        "units": [f"{unit.kind} {unit.name}" for unit in listed],
        "labels": "pairs" if targets is None else "targets",
        "direction": direction,
        "pairs": pairs.fingerprint,
        "pair_classes": hashlib.sha256(classes.tobytes()).hexdigest()[:16],
    }
    return Patching(known=known, direction=direction, part=part, listed=listed, **given)
