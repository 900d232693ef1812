"""Who takes over when a head is gone? Exact effects of removing heads together, against the sum of removing each.

    E_u = m(clean) - m(-u)       E_uv = m(clean) - m(-u -v)       E_v|u = m(-u) - m(-u -v) = E_uv - E_u
    synergy = E_uv - E_u - E_v = E_v|u - E_v

Positive synergy: the two stand in for each other; single effects understate them. Negative: they work in one path, and
when one is gone the other has nothing left to do. A *backup* is a head whose effect appears only once another is gone:
without that, it looks like nothing (methods.md 1.4, pitfall 7). So its partners are all heads, not those that score
high. (Which heads to remove first is another matter: `first="all"` also finds pairs of which each is enough alone, so
that neither has an effect by itself.)

1. One sweep of all heads gives the single effects.
2. For each head that is removed first, one more sweep over all others with that head removed in every row (the wave
   front's `base`): as many forward passes as heads, none of them twice.
3. Every pair gets joint effect, conditional effect and synergy per image, with intervals, and the false-discovery-rate
   correction over all pairs.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuits.editing.takeover import SelfRepair, with_roles
from mechvis import engine as engines
from mechvis import metrics
from mechvis.errors import BadData, OutOfRange, unknown
from mechvis.results import Result
from mechvis.sweep_inputs import Prepared, prepare
from mechvis.units import Unit


def self_repair(
    model: Any,
    images: Any,
    *,
    first: int | Literal["all"] | Sequence[Unit] = 4,
    edit: Literal["zero", "mean", "mean_positional"] = "zero",
    metric: str | Callable = "logit_diff",
    labels: Literal["given", "predicted"] | None = None,
    reference: Any = None,
    engine: engines.Engine = "wave",
    budget: str | int | None = None,
    seed: int = 0,
    progress: bool = True,
    allow_overlap: bool = False,
) -> SelfRepair:
    """Pairs of heads: exact joint effect against the sum of single effects, and which heads are backups.

    Args:
        model: a wrapped model with a head.
        images: an `ImageSet` or pixels; best not the images that chose the heads.
        first: heads that are removed first: this many of the largest single effects, `all` (H (H - 1) / 2 pairs: finds
            those of which each is enough alone), or a list.
        edit: what takes a head's place: `zero`, `mean` or `mean_positional`.
        metric: name or function; see `mechvis.metrics`.
        labels: measure against the `given` labels or the `predicted` classes.
        reference: images for the means; default: a third of the images is set aside.
        engine: as for `mechvis.sweep`.
        budget: memory for activations.
        seed: of the bootstrap and of the images that are set aside.
        progress: show progress bars.
        allow_overlap: accept reference images that are measured too.

    Raises:
        OutOfRange: fewer than one head to remove first, or more than there are.
        BadData, UnknownName, SplitOverlap, NotFinite.

    Example:
        >>> self_repair(model, images, first=4).backups                                            # doctest: +SKIP
    """
    prepared = _prepared(model, images, edit, metric, labels, reference, engine, seed, allow_overlap)
    run = {"engine": engine, "budget": budget, "progress": progress}
    clean = _Clean(prepared)
    single = _effects(prepared, clean, (), prepared.units, run)[1]
    chosen = _first(prepared, single, first)
    rows, found = [], []
    for place, unit in enumerate(chosen):
        partners = [other for other in prepared.units if other not in chosen[: place + 1]]
        if not partners:
            continue
        own, conditional = _effects(prepared, clean, (unit,), partners, run)
        found.append(_pairs(prepared, single, own, conditional, partners))
        rows += [((unit.name,), other) for other in partners]
        # The joint effect is the same from the other side: no pair runs twice.
        if both := [index for index, other in enumerate(partners) if other in chosen]:
            found.append(_other_side(found[-1], own, both))
            rows += [((partners[index].name,), unit) for index in both]
    return _result(prepared, clean, single, rows, found, seed, f"pairs of heads ({edit})")


def after_removal(
    model: Any,
    images: Any,
    removed: Sequence[Unit],
    *,
    edit: Literal["zero", "mean", "mean_positional"] = "zero",
    metric: str | Callable = "logit_diff",
    labels: Literal["given", "predicted"] | None = None,
    reference: Any = None,
    engine: engines.Engine = "wave",
    budget: str | int | None = None,
    seed: int = 0,
    progress: bool = True,
    allow_overlap: bool = False,
) -> SelfRepair:
    """The second look after an edit: does another head take over what these heads did, all of them gone together?

    Args:
        removed: heads that are gone in every run.
        model, images, edit, metric, labels, reference, engine, budget, seed, progress, allow_overlap: as for
            :func:`self_repair`.

    Raises:
        BadData: nothing is removed, a unit is no head, or no head is left.
        OutOfRange, UnknownName, SplitOverlap, NotFinite.

    Example:
        >>> after_removal(model, images, head_units([(2, 1), (2, 3)])).backups                     # doctest: +SKIP
    """
    prepared = _prepared(model, images, edit, metric, labels, reference, engine, seed, allow_overlap)
    gone = _checked(prepared, removed)
    partners = [unit for unit in prepared.units if unit not in gone]
    if not partners:
        raise BadData("all heads are removed: no other one can take over.")
    run = {"engine": engine, "budget": budget, "progress": progress}
    clean = _Clean(prepared)
    single = _effects(prepared, clean, (), prepared.units, run)[1]
    own, conditional = _effects(prepared, clean, gone, partners, run)
    name = tuple(unit.name for unit in gone)
    found = [_pairs(prepared, single, own, conditional, partners)]
    title = f"heads after the removal of {', '.join(name)} ({edit})"
    return _result(prepared, clean, single, [(name, other) for other in partners], found, seed, title)


def _prepared(
    model: Any,
    images: Any,
    edit: str,
    metric: Any,
    labels: Any,
    reference: Any,
    engine: str,
    seed: int,
    allow_overlap: bool,
) -> Prepared:
    if edit not in ("zero", "mean", "mean_positional"):
        raise unknown("edit", edit, ("zero", "mean", "mean_positional"))
    return prepare(
        model,
        images,
        units="heads",
        edit=edit,
        metric=metric,
        labels=labels,
        reference=reference,
        source=None,
        layers=None,
        engine=engine,
        seed=seed,
        allow_overlap=allow_overlap,
    )


class _Clean:
    """Logits and classes of the unedited model: what every effect is measured against, whatever else is removed."""

    @torch.no_grad()
    def __init__(self, prepared: Prepared, batch_size: int = 64):
        model, n = prepared.model, len(prepared.images)
        logits = []
        for start in range(0, n, batch_size):
            pixels = prepared.pixels(range(start, min(start + batch_size, n)))
            pixels = model.inputs(pixels.to(model.device, model.dtype))
            logits.append(model.run(pixels, capture=model.output_site).output)
        self.logits = torch.cat(logits)
        self.target, self.contrast = metrics.classes_of(self.logits, prepared.labels)
        self.name, self.metric = prepared.metrics[0]

    def score(self, logits: Tensor, part: range) -> Tensor:
        at = slice(part.start, part.stop)
        return self.metric(logits, self.target[at], self.contrast[at], self.logits[at])

    @property
    def mean(self) -> float:
        return float(self.score(self.logits, range(len(self.logits))).double().mean())


def _effects(
    prepared: Prepared, clean: _Clean, gone: Sequence[Unit], units: Sequence[Unit], run: dict[str, Any]
) -> tuple[Float[np.ndarray, " image"], Float[np.ndarray, "unit image"]]:
    """Effect of what is gone `[image]`, and of each unit besides, given that."""

    def measure(base: Tensor, edited: Tensor, part: range) -> dict[str, Tensor]:
        before = clean.score(base[0], part)
        at = slice(part.start, part.stop)
        return {
            "effect": (before - clean.score(edited[:, 0], part)).double(),
            "clean/gone": (clean.score(clean.logits[at], part) - before).double(),
        }

    job = replace(prepared.job(units), base=tuple(gone), measure=measure)
    what = "single heads" if not gone else f"heads without {', '.join(unit.name for unit in gone)}"
    found = engines.compute(job, what=what, **run)
    return found["clean/gone"], found["effect"]


def _first(prepared: Prepared, single: Float[np.ndarray, "unit image"], first: Any) -> list[Unit]:
    if first == "all":
        return list(prepared.units)
    if isinstance(first, int) and not isinstance(first, bool):
        if not 1 <= first <= len(prepared.units):
            raise OutOfRange(f"first={first}: the model has 1 to {len(prepared.units)} heads to remove first.")
        order = np.argsort(-single.mean(1), kind="stable")[:first]
        return [prepared.units[place] for place in order]
    if isinstance(first, str):
        raise unknown("choice of heads", first, ("all",))
    return list(_checked(prepared, first))


def _checked(prepared: Prepared, heads: Sequence[Unit]) -> tuple[Unit, ...]:
    if not len(heads):
        raise BadData("no head is removed first: name at least one.")
    known = set(prepared.units)
    for unit in heads:
        if unit not in known:
            raise BadData(f"{getattr(unit, 'name', unit)!r} is no head of this model; use head_units([(layer, head)]).")
    if len(set(heads)) != len(heads):
        raise BadData("a head is listed twice.")
    return tuple(sorted(heads))


def _pairs(
    prepared: Prepared,
    single: Float[np.ndarray, "unit image"],
    own: Float[np.ndarray, " image"],
    conditional: Float[np.ndarray, "partner image"],
    partners: Sequence[Unit],
) -> dict[str, Float[np.ndarray, "partner image"]]:
    places = [prepared.units.index(unit) for unit in partners]
    alone = single[places]
    return {"synergy": conditional - alone, "conditional": conditional, "single": alone, "joint": conditional + own}


def _other_side(
    pairs: dict[str, np.ndarray], own: Float[np.ndarray, " image"], rows: list[int]
) -> dict[str, Float[np.ndarray, "unit image"]]:
    """The same pairs, with the head that was removed first as the one that is looked at."""
    conditional = pairs["joint"][rows] - pairs["single"][rows]
    alone = np.broadcast_to(own, conditional.shape)
    return {"synergy": conditional - alone, "conditional": conditional, "single": alone, "joint": pairs["joint"][rows]}


def _result(
    prepared: Prepared,
    clean: _Clean,
    single: Float[np.ndarray, "unit image"],
    rows: list[tuple[tuple[str, ...], Unit]],
    found: list[dict[str, np.ndarray]],
    seed: int,
    title: str,
) -> SelfRepair:
    if not rows:
        raise BadData("there is no pair of heads: the model has one.")
    shared: dict[str, Any] = {"images": prepared.image_table(), "seed": seed}
    singles = Result.from_values(
        "heads_sweep",
        f"Single heads ({prepared.edit})",
        [unit.row() for unit in prepared.units],
        {clean.name: single},
        provenance=prepared.provenance(),
        baseline={clean.name: clean.mean},
        **shared,
    )
    values = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
    units = [
        {"unit": f"{'+'.join(gone)} {unit.name}", "removed": " ".join(gone), "head name": unit.name, "role": ""}
        for gone, unit in rows
    ]
    pairs = Result.from_values(
        "self_repair",
        f"Self-repair: {title}, {clean.name}",
        units,
        values,
        provenance=prepared.provenance(self_repair={"metric": clean.name, "pairs": len(rows)}),
        **shared,
    )
    return SelfRepair(singles=singles, pairs=replace(pairs, table=with_roles(pairs)))
