"""The loss that plants a program: behaviour, and one pass under random joint interchanges.

Base images x, sources A and B (two permutations of the batch), program h on variables V (benchmark plan A.4, **X**; the
interchange and strictness terms are those of strict interchange-intervention training, InterpBench, **C**):

* behaviour: CE(f(x), h(V));
* joint: every row draws a subset s of the planted places (each with probability `p_planted`) that take their value from
  A, and a subset o of the outside places (each with `p_outside`) that take theirs from B:
  CE(f(x; s <- A, o <- B), h(V with s <- V_A)).
* silence, on the rows whose s is empty (`ALONE` of them at least): mean squared change of the centred logits, as a
  share of their variance. A confident model loses nothing in cross-entropy when an outside head moves a margin of 20
  by 2; yet that is an effect, and exact patching sees it. This term is ours.

The published recipe tests one place at a time; then every single test passes and yet exchanging all outside places at
once drops accuracy to 0.75-0.84. Subsets in one pass cost less and give 0.998 and more. We draw per row, not per batch.

A planted place of the `label` variable overrides the program: its source's answer is the answer.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from mechvis.axes import Logits
from mechvis.models.parts import TowerParts
from mechvis.testing.trained.interchange import Trace, forward
from mechvis.testing.trained.placement import Placement
from mechvis.testing.trained.scenes import Scenes
from mechvis.testing.trained.subsets import random_interchange
from mechvis.testing.trained.task import PlantedTask

ALONE = 0.25
"""Share of rows in which only outside places are exchanged."""


def joint_loss(
    parts: TowerParts,
    task: PlantedTask,
    placement: Placement,
    scenes: Scenes,
    generator: torch.Generator,
    *,
    silence: float = 1.0,
) -> tuple[Tensor, Trace, dict[str, Tensor]]:
    """Behaviour, joint interchange and silence loss of one batch.

    Args:
        parts: the model in training.
        task: images and program.
        placement: where the program is planted.
        scenes: the batch.
        generator: draws the interchanges.
        silence: weight of the silence term.

    Returns:
        The sum in nats, the plain forward (for further terms), and figures to log.
    """
    pixels = task.render(scenes)
    labels = task.labels(scenes)
    trace = forward(parts, pixels)
    behaviour = F.cross_entropy(trace.logits, labels)
    drawn = random_interchange(task, placement, scenes, trace, generator, p_alone=ALONE)
    logits = forward(parts, pixels, drawn.donors).logits
    joint = F.cross_entropy(logits, drawn.labels)
    change = _change(trace.logits, logits, drawn.alone)
    figures = {
        "behaviour": behaviour.detach(),
        "joint": joint.detach(),
        "silence": change.detach(),
        "accuracy": (trace.logits.argmax(-1) == labels).float().mean(),
        "interchange accuracy": (logits.argmax(-1) == drawn.labels).float().mean(),
    }
    return behaviour + joint + silence * change, trace, figures


def _change(before: Logits, after: Logits, rows: Bool[Tensor, " row"]) -> Tensor:
    """Mean squared change of the centred logits on some rows, over their variance; zero where there is no such row.

    A variance below one counts as one: else an untrained model is taught to answer nothing, and stays there. Gradients
    flow through both passes: held to a fixed plain pass, the exchanged one pulls all logits up, to margins above 100.
    """
    before, after = (logits - logits.mean(dim=1, keepdim=True) for logits in (before, after))
    change = ((after - before) ** 2).mean(dim=1)
    return (change * rows).sum() / rows.sum().clamp(min=1) / before.detach().var().clamp(min=1.0)


def behaviour_loss(parts: TowerParts, task: PlantedTask, scenes: Scenes) -> tuple[Tensor, Trace, dict[str, Tensor]]:
    """The twin's loss: nothing is planted."""
    labels = task.labels(scenes)
    trace = forward(parts, task.render(scenes))
    loss = F.cross_entropy(trace.logits, labels)
    accuracy = (trace.logits.argmax(-1) == labels).float().mean()
    return loss, trace, {"behaviour": loss.detach(), "accuracy": accuracy}
