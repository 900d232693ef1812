"""`colour-if-shape`: name the object's colour if it is a disc, and the ground's texture if it is a cross.

Program: shape, colour, texture -> MUX -> label. Each of two inputs matters on half of the images only, so marginal
effects are diluted; on the other half nothing that changes it may count.

Planted (benchmark plan A.2, A.6 P2 / P3, **X**): colour in a head of layer 0, at CLS; shape and texture in two heads of
layer 1, at CLS; MUX in the MLP of layer 1. Free: one head of layer 0 and its MLP, at the patches. Where we differ from
the prototype: there all three variables sat in layer 1, so that "later is better" found them; and edges are certified,
because paths are resampled too.
"""

import random

import torch
from torch import Tensor

from mechvis.axes import Labels, Mask, Pixels
from mechvis.testing.trained import drawing
from mechvis.testing.trained.placement import Placement
from mechvis.testing.trained.scenes import Scenes, Variables, other_value
from mechvis.testing.trained.task import PlantedTask

SHAPES, TEXTURES = ("disc", "cross"), ("horizontal", "vertical", "checkered")
SIZES = {"shape": 2, "colour": 3, "texture": 3}


def program(variables: Variables) -> Labels:
    """Colour of discs, texture of crosses."""
    return torch.where(variables["shape"] == 0, variables["colour"], variables["texture"])


def draw(n: int, generator: torch.Generator) -> Scenes:
    """Uniform independent variables; jittered place, size, brightness, period, phase and noise."""

    def uniform(low: float, high: float) -> Tensor:
        return drawing.uniform(n, low, high, generator)

    return Scenes(
        sizes=SIZES,
        variables={name: torch.randint(size, (n,), generator=generator) for name, size in SIZES.items()},
        nuisance={
            "down": uniform(11.5, 19.5),
            "across": uniform(11.5, 19.5),
            "radius": uniform(7.0, 9.0),
            "light": uniform(0.85, 1.1),
            "ground": uniform(0.4, 0.6),
            "contrast": uniform(0.2, 0.3),
            "period": uniform(5.0, 7.0),
            "phase": torch.rand((n, 2), generator=generator),
            "noise": 0.03 * torch.randn((n, drawing.SIZE, drawing.SIZE), generator=generator),
        },
    )


def mask(scenes: Scenes) -> Mask:
    """True on the object."""
    at = scenes.nuisance
    disc = drawing.disc(at["down"], at["across"], at["radius"])
    cross = drawing.cross(at["down"], at["across"], 1.1 * at["radius"], at["radius"] / 3)
    return torch.where(scenes.variables["shape"][:, None, None] == 0, disc, cross)


def render(scenes: Scenes) -> Pixels:
    """A coloured disc or cross on a grey texture."""
    at = scenes.nuisance
    texture = drawing.stripes(scenes.variables["texture"], at["phase"], at["period"])
    ground = at["ground"][:, None, None] + at["contrast"][:, None, None] * texture
    colour = drawing.COLOURS[scenes.variables["colour"]] * at["light"][:, None]
    return drawing.paint(ground, [(mask(scenes), colour)], at["noise"])


def _change(variable: str):
    def corrupt(scenes: Scenes, generator: torch.Generator) -> Scenes:
        new = other_value(scenes.variables[variable], SIZES[variable], generator)
        return scenes.changed(**{variable: new})

    return corrupt


def placement(seed: int) -> Placement:
    """Heads drawn by the seed."""
    draws = random.Random(f"colour-if-shape {seed}")
    colour, free, *early = draws.sample(range(4), 4)
    shape, texture, *late = draws.sample(range(4), 4)
    colour, free, shape, texture = f"L0H{colour}", f"L0H{free}", f"L1H{shape}", f"L1H{texture}"
    outsiders = sorted([f"L0H{head}" for head in early] + [f"L1H{head}" for head in late])
    return Placement(
        task="colour-if-shape",
        seed=seed,
        planted={f"{colour}@cls": "colour", f"{shape}@cls": "shape", f"{texture}@cls": "texture", "L1MLP@cls": "label"},
        flows=((colour, "L1MLP"), (shape, "L1MLP"), (texture, "L1MLP"), ("L1MLP", "out")),
        free=(f"{free}@patch", "L0MLP@patch"),
        feature_readers=(colour, shape, texture),
        outside={
            **{head: (f"{head}@all",) for head in outsiders},
            "free components at CLS": (f"{free}@cls", "L0MLP@cls"),
            "colour head at patches": (f"{colour}@patch",),
            "CLS into layer 1": tuple(f"cls->L1H{head}" for head in range(4)),
            "past the last MLP": ("direct->out",),
        },
        decoys=tuple(outsiders),
        quiet=tuple(sorted(draws.sample(outsiders, 2))),
        constant=(("embed", "L1MLP"), ("embed", "out")),
    )


def nuisance(scenes: Scenes) -> dict[str, tuple[Tensor, int]]:
    """Irrelevant properties that decoys carry beside the relevant ones: whether the ground is bright."""
    return {"bright ground": ((scenes.nuisance["ground"] > 0.5).long(), 2)}


TASK = PlantedTask(
    name="colour-if-shape",
    summary="colour of discs, ground texture of crosses; three heads and a multiplexer in an MLP",
    classes=("red or horizontal", "green or vertical", "blue or checkered"),
    registers=0,
    program=program,
    draw=draw,
    render=render,
    mask=mask,
    corruptions={name: _change(name) for name in SIZES},
    changes={name: (name, "label") for name in SIZES},
    placement=placement,
    linear=("colour",),
    nuisance=nuisance,
)
"""The task."""
