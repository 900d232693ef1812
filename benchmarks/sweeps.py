"""Rows of sweeps: heads (zero and mean), position x layer patching, neurons; in float32, and screened in bfloat16.

Each forward of a peer costs the same whichever cell it edits, so peers do some cells and their time is scaled to all of
them; mechvis does all. Peers get what they put in (means, the other images' activations) before the clock starts; ours
computes the other images' activations within it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

import mechvis
from benchmarks import bounds, models, peers
from benchmarks.models import Place
from benchmarks.peers import Cell, Values
from benchmarks.race import Contender, Disagreement, Goal, Task
from mechvis.units import Unit

OURS = "mechvis.sweep"
SCREENED = "mechvis.sweep, screened in bf16"
TRUTH = "loop of bare forwards with a hook"
TOLERANCE = {"fp32": 1e-4, "tf32": 2e-2, "bf16": 1e-1}
"""How far the edited logits may be apart, relative to the largest."""
ROWS = {"cpu": 64, "cuda": 1024}
"""Rows that batching peers put into one forward."""


def task(
    name: str,
    place: Place,
    *,
    kind: str = "heads",
    edit: str = "zero",
    images: int = 1,
    cells: Sequence[Cell] | None = None,
    some: str = "",
    peers_run: int = 12,
    rounds: int = 2,
    warm_up: bool = True,
    screened: int | None = None,
    goals: tuple[Goal, ...] = (),
    memory: bool = False,
) -> Task:
    """A sweep.

    Args:
        name: the model.
        place: where.
        kind: `heads`, `tokens` (position x layer) or `neurons`.
        edit: `zero`, `mean`, or `patch` (for tokens).
        images: of the sweep.
        cells: which; default: all.
        some: how to say that these are not all.
        peers_run: cells that each peer runs.
        rounds: timings.
        warm_up: everyone once before.
        screened: a further contender of ours screens in bf16 and measures so many units again.
        goals: what must be shown.
        memory: measure the peak memory of ours and of the loop.
    """
    s = models.shape(name)
    every = [(layer, index) for layer in range(s.layers) for index in range(_width(s, kind))]
    asked = every if cells is None else sorted(cells)
    spread = [
        asked[i] for i in np.unique(np.linspace(0, len(asked) - 1, min(peers_run, len(asked))).round().astype(int))
    ]
    together = _of_one_layer(asked, peers_run)

    def work() -> peers.Sweep:
        x = models.pixels(name, place, images)
        with torch.no_grad():
            metric = peers.predicted(models.bare(name, place)(x).logits)
        d_head = s.width // s.heads
        return peers.Sweep(
            kind=kind, pixels=x, new=_new(name, place, kind, edit, images), metric=metric, d_head=d_head,
            rows=ROWS[place.device],
        )  # fmt: skip

    def ours(screen: int | None = None) -> Callable[[], Any]:
        model, x = models.hooked(name, place), models.pixels(name, place, images)
        units = kind if cells is None else [Unit(layer, kind, index) for layer, index in asked]
        more: dict[str, Any] = {} if screen is None else {"screen": "bf16", "recheck": screen}
        if edit == "mean":
            more["reference"] = _means(name, place)
        elif edit == "patch":
            more["source"] = models.pixels(name, place, images, seed=1)
        more |= {"edit": edit, "metric": "logit", "progress": False}
        return lambda: mechvis.sweep(model, x, units=units, **more)

    def first_unit() -> Any:
        more = {"source": models.pixels(name, place, images, seed=1)} if edit == "patch" else {}
        more |= {"reference": _means(name, place)} if edit == "mean" else {}
        model, x = models.hooked(name, place), models.pixels(name, place, images)
        return mechvis.sweep(model, x, units=[Unit(s.layers - 1, kind, 0)], edit=edit, progress=False, **more)

    def peer(function: Callable, wrap: Callable, chosen: Sequence[Cell]) -> Contender:
        def build() -> Callable[[], Values]:
            wrapped, sweep = wrap(name, place), work()
            return lambda: function(wrapped, sweep, chosen)

        return Contender(build=build, share=len(chosen) / len(asked))

    contenders = {OURS: Contender(build=ours, peer=False, warm=first_unit)}
    if screened is not None:
        contenders[SCREENED] = Contender(build=lambda: ours(min(screened, len(asked))), peer=False)
    contenders[TRUTH] = peer(peers.bare_loop, models.bare, spread)
    contenders["bare forwards, cells of a layer as rows"] = peer(peers.bare_rows, models.bare, together)
    if kind != "neurons":
        contenders["transformer_lens patching sweep"] = peer(peers.patching_helper, models.bridge, spread)
    contenders["transformer_lens run_with_hooks"] = peer(peers.hooks_loop, models.bridge, spread)
    contenders["nnsight, a trace per cell"] = peer(peers.nnsight_traces, models.nnsight, spread)
    contenders["nnsight, cells of a layer as rows"] = peer(peers.nnsight_rows, models.nnsight, together)
    if models.has_prisma():
        contenders["ViT-Prisma run_with_hooks"] = peer(peers.hooks_loop, models.prisma, spread)

    notes = []
    if len(spread) < len(asked):
        notes.append(
            f"Peers ran {len(spread)} evenly spread cells (as rows of a batch: {len(together)} of one layer), scaled: "
            "each costs one full forward."
        )
    words = {"heads": f"{edit} each of {len(asked)} heads", "neurons": f"{edit} each of {len(asked)} neurons",
             "tokens": f"patch each of {len(asked)} cells of position x layer"}[kind]  # fmt: skip
    return Task(
        key=f"sweeps/{name}/{kind}-{edit}-{len(asked)}x{images}{place.label.replace(', ', '-')}",
        title=f"{name}: {words}{some}, {images} image{'s' if images > 1 else ''}{place.label}",
        contenders=contenders,
        rounds=rounds,
        warm_up=warm_up,
        digest=lambda who, answer: _digest(who, answer, asked),
        check=lambda kept: _check(kept, place.precision),
        least=lambda kept: _least(s, kind, asked, images, place.item, kept),
        shape=name,
        precision=place.precision,
        goals=goals,
        memory=(OURS, TRUTH) if memory else (),
        notes=tuple(notes),
    )


def _width(s: bounds.Shape, kind: str) -> int:
    return {"heads": s.heads, "tokens": s.tokens, "neurons": s.hidden}[kind]


def _of_one_layer(cells: Sequence[Cell], most: int) -> list[Cell]:
    """Cells of the middle one of the layers that have the most, so that they fill batches."""
    layers = [layer for layer, _ in cells]
    full = [layer for layer in sorted(set(layers)) if layers.count(layer) == max(map(layers.count, set(layers)))]
    return [cell for cell in cells if cell[0] == full[len(full) // 2]][:most]


def _means(name: str, place: Place) -> Any:
    """Reference means of every head, over 8 other images."""
    return mechvis.means(models.hooked(name, place), models.pixels(name, place, 8, seed=2), "blocks.*.attn.hook_z")


def _new(name: str, place: Place, kind: str, edit: str, images: int) -> dict[int, torch.Tensor] | None:
    """What peers put in, by layer."""
    s = models.shape(name)
    if edit == "zero":
        return None
    if edit == "mean":
        found = _means(name, place)
        means = {layer: found[f"blocks.{layer}.attn.hook_z"] for layer in range(s.layers)}
        return {layer: m.mean(0, keepdim=True).expand(images, *m.shape) for layer, m in means.items()}
    run = models.hooked(name, place).run(models.pixels(name, place, images, seed=1), capture="blocks.*.hook_resid_pre")
    return {layer: run.cache[f"blocks.{layer}.hook_resid_pre"] for layer in range(s.layers)}


def _least(
    s: bounds.Shape, kind: str, asked: Sequence[Cell], images: int, item: int, kept: dict[str, Any]
) -> dict[str, bounds.Least]:
    """The bound of ours, and of the screening: all rows in bf16, the chosen ones again in float32."""
    layers = [layer for layer, _ in asked]
    found = {OURS: bounds.sweep(s, kind, layers, images, item=item)}
    if SCREENED in kept:
        again = [layer for layer, _ in kept[SCREENED]["values"]]
        found[SCREENED] = bounds.sweep(s, kind, layers, images, recheck=again)
    return found


def _digest(who: str, answer: Any, asked: Sequence[Cell]) -> dict[str, Any]:
    """The logit of each cell; of a screening those that were measured again, and the screened effect of all."""
    if who not in (OURS, SCREENED):
        return {"values": dict(zip(answer, torch.stack(list(answer.values())).tolist(), strict=True))}
    left = answer.baseline["logit"] - answer.values["logit"].mean(1)
    found = dict(zip(asked, left.tolist(), strict=True))
    if who == OURS:
        return {"values": found}
    table = answer.rows("logit")
    again = [cell for cell, found_in in zip(asked, table["precision"], strict=True) if found_in == "float32"]
    return {
        "values": {cell: found[cell] for cell in again},
        "screened": dict(zip(asked, table["screened_effect"], strict=True)),
        "baseline": answer.baseline["logit"],
        "statement": answer.provenance["screen"]["statement"],
    }


def _check(kept: dict[str, Any], precision: str) -> list[str]:
    """Everyone's edited logits beside ours, and how well a screening keeps the order."""
    own = kept[OURS]["values"]
    size = max(1.0, max(abs(value) for value in own.values()))
    apart = {
        who: max((abs(value - own[cell]) for cell, value in found["values"].items()), default=0.0)
        for who, found in kept.items()
    }
    worst = max(apart, key=apart.__getitem__)
    if not apart[worst] <= TOLERANCE[precision] * size:
        raise Disagreement(f"{worst} and {OURS} differ by {apart[worst]:.1e} logits.")
    words = [f"All agree to {apart[worst]:.0e} logits."]
    if SCREENED in kept:
        words.append(_order(kept))
    return words


def _order(kept: dict[str, Any]) -> str:
    found, own = kept[SCREENED], kept[OURS]["values"]
    rough = np.array([abs(found["screened"][cell]) for cell in own])
    fine = np.array([abs(found["baseline"] - value) for value in own.values()])
    ranks = [values.argsort().argsort() for values in (rough, fine)]
    spearman = float(np.corrcoef(*ranks)[0, 1]) if len(own) > 1 else float("nan")
    k = len(found["values"])
    tops = [set(np.argsort(-values, kind="stable")[:k].tolist()) for values in (rough, fine)]
    return (
        f"Screening beside the float32 sweep: rank correlation {spearman:.3f} over all {len(own)} units, "
        f"{len(tops[0] & tops[1])} of the first {k} are the first {k} in float32 too. In its own words: "
        f"{found['statement']}."
    )
