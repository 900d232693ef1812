"""`same-different`: do the object on the left and the one on the right share their colour?

Program: left, right -> Eq -> label. It is an exclusive or: no input alone restores an answer, so every marginal
*denoising* effect of an input is nil, and only noising finds them.

Planted (benchmark plan A.2, A.6 P4, **X**): the left colour in a head of layer 0 at the register token, handed to a
head of layer 1 at CLS (two hops); the right colour in another head of layer 1 at CLS; Eq in the MLP of layer 1. Free:
one head of layer 0 and its MLP, at the patches. The classifier of DINOv2 also reads the mean of the patches: that half
of its weights is zero and stays zero. Where we differ from the prototype: decoys, and certified edges (paths are
resampled too).
"""

import random

import torch
from torch import Tensor

from mechvis.axes import Labels, Mask, Pixels
from mechvis.testing.trained import drawing
from mechvis.testing.trained.placement import Placement
from mechvis.testing.trained.scenes import Scenes, Variables, other_value
from mechvis.testing.trained.task import PlantedTask

SIZES = {"left": 4, "right": 4}


def program(variables: Variables) -> Labels:
    """1 if both objects have one colour."""
    return (variables["left"] == variables["right"]).long()


def draw(n: int, generator: torch.Generator) -> Scenes:
    """Left colour uniform; the right one equal in half of the images, else another. Shapes, places, sizes, brightness
    and noise are jittered."""

    def uniform(low: float, high: float) -> Tensor:
        return drawing.uniform(n, low, high, generator)

    left = torch.randint(4, (n,), generator=generator)
    equal = torch.rand(n, generator=generator) < 0.5
    return Scenes(
        sizes=SIZES,
        variables={"left": left, "right": torch.where(equal, left, other_value(left, 4, generator))},
        nuisance={
            "down": torch.stack([uniform(9.0, 22.0), uniform(9.0, 22.0)], dim=1),
            "across": torch.stack([uniform(6.5, 9.0), uniform(22.0, 24.5)], dim=1),
            "radius": torch.stack([uniform(4.5, 6.0), uniform(4.5, 6.0)], dim=1),
            "light": torch.stack([uniform(0.85, 1.1), uniform(0.85, 1.1)], dim=1),
            "crosses": torch.randint(2, (n, 2), generator=generator).bool(),
            "ground": uniform(0.3, 0.6),
            "noise": 0.03 * torch.randn((n, drawing.SIZE, drawing.SIZE), generator=generator),
        },
    )


def _mask(scenes: Scenes, side: int) -> Mask:
    at = {name: values[:, side] for name, values in scenes.nuisance.items() if values.shape[1:] == (2,)}
    disc = drawing.disc(at["down"], at["across"], at["radius"])
    cross = drawing.cross(at["down"], at["across"], 1.1 * at["radius"], at["radius"] / 2.2)
    return torch.where(at["crosses"][:, None, None], cross, disc)


def mask(scenes: Scenes) -> Mask:
    """True on both objects."""
    return _mask(scenes, 0) | _mask(scenes, 1)


def render(scenes: Scenes) -> Pixels:
    """Two coloured objects on plain grey."""
    at = scenes.nuisance
    ground = at["ground"][:, None, None].expand(-1, drawing.SIZE, drawing.SIZE)
    objects = [
        (_mask(scenes, side), drawing.COLOURS[scenes.variables[name]] * at["light"][:, side, None])
        for side, name in enumerate(SIZES)
    ]
    return drawing.paint(ground, objects, at["noise"])


def _flip(side: str, other: str):
    """Change one object so that the label changes: equal colours part, different ones become equal."""

    def corrupt(scenes: Scenes, generator: torch.Generator) -> Scenes:
        own, theirs = scenes.variables[side], scenes.variables[other]
        return scenes.changed(**{side: torch.where(own == theirs, other_value(own, 4, generator), theirs)})

    return corrupt


def _both(scenes: Scenes, generator: torch.Generator) -> Scenes:
    """Change both colours by the same step: equal pairs stay equal, different ones different. The label is constant
    although every input of the program changes."""
    step = torch.randint(1, 4, (len(scenes),), generator=generator)
    return scenes.changed(**{name: (scenes.variables[name] + step) % 4 for name in SIZES})


def placement(seed: int) -> Placement:
    """Heads drawn by the seed."""
    draws = random.Random(f"same-different {seed}")
    gather, free, *early = draws.sample(range(4), 4)
    second, right, *late = draws.sample(range(4), 4)
    gather, free, second, right = f"L0H{gather}", f"L0H{free}", f"L1H{second}", f"L1H{right}"
    outsiders = sorted([f"L0H{head}" for head in early] + [f"L1H{head}" for head in late])
    return Placement(
        task="same-different",
        seed=seed,
        planted={f"{gather}@register": "left", f"{second}@cls": "left", f"{right}@cls": "right", "L1MLP@cls": "label"},
        flows=((gather, second), (second, "L1MLP"), (right, "L1MLP"), ("L1MLP", "out")),
        free=(f"{free}@patch", "L0MLP@patch"),
        feature_readers=(gather, right),
        outside={
            **{head: (f"{head}@all",) for head in outsiders},
            "free components at CLS": (f"{free}@cls", "L0MLP@cls"),
            "free components at the register": (f"{free}@register", "L0MLP@register"),
            "gathering head elsewhere": (f"{gather}@cls", f"{gather}@patch"),
            "CLS into layer 1": tuple(f"cls->L1H{head}" for head in range(4)),
            "forbidden reads": (f"patch->{second}", f"register->{right}"),
            "past the last MLP": ("direct->out",),
        },
        decoys=tuple(outsiders),
        quiet=tuple(sorted(draws.sample(outsiders, 2))),
        constant=(("embed", second), ("embed", "L1MLP"), ("embed", "out")),
    )


def nuisance(scenes: Scenes) -> dict[str, tuple[Tensor, int]]:
    """Irrelevant properties that decoys carry beside the relevant ones: whether the ground is bright."""
    return {"bright ground": ((scenes.nuisance["ground"] > 0.45).long(), 2)}


TASK = PlantedTask(
    name="same-different",
    summary="do two objects share a colour; a register token, two hops, and a comparison in an MLP",
    classes=("different", "same"),
    registers=1,
    program=program,
    draw=draw,
    render=render,
    mask=mask,
    corruptions={"left": _flip("left", "right"), "right": _flip("right", "left"), "both": _both},
    changes={"left": ("left", "label"), "right": ("right", "label"), "both": ("left", "right")},
    placement=placement,
    linear=("left", "right"),
    nuisance=nuisance,
)
"""The task."""
