"""F16, PlantedPath: one path through hidden units that matters, and a louder unit that nobody reads.

A ReLU network 5-8-6-3 as one token and two MLP layers, so that its hidden units are neurons (`mlp.hook_post`): eight of
layer 0 read the five inputs, six of layer 1 read those eight, three logits read those six. No norm, and the one head of
each layer writes nothing.

    neuron 2 of layer 0 -> neuron 4 of layer 1 -> logits

is the only path: neuron 4 reads neuron 2 alone, and the logits read neuron 4 alone. All other weights between the
hidden layers are random: every neuron of layer 0 is read, but by neurons that are not. Neuron 5 of layer 1 has by far
the largest activation. So (methods2.md 22, **P**): mean-replacing a neuron of layer 1 has an effect for neuron 4 only,
of the connections into it only that from neuron 2 counts and for just as much, and neuron 5 has effect 0.000.

The specification's numbers (1.487 for the path, mean activation 2.02 for neuron 5) depend on its random weights; ours
are `PATH_KL` and `PATH_LOUDNESS`, for `path_net()` on `path_images()`. Neurons 6 and 7 of layer 1 are not used.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechvis.axes import Pixels
from mechvis.errors import BadData
from mechvis.testing.planted.wired import WiredViT, wrapped

INPUTS, HIDDEN, CLASSES = 5, (8, 6), 3
PATH_UNITS = {0: 2, 1: 4}
"""Layer -> the neuron on the path."""
PATH_LOUD = 5
"""The neuron of layer 1 with the largest activation, which nothing reads."""
PATH_KL = 1.0528
"""Mean KL(clean || edited) in nats of mean-replacing the connection 2 -> 4, or neuron 2 of layer 0: the same."""
PATH_LOUDNESS = 11.2897
"""Mean activation of neuron 5 of layer 1."""
IN = slice(0, 5)
FIRST, SECOND = slice(5, 13), slice(13, 19)


@torch.no_grad()
def path_net(seed: int = 0) -> Any:
    """F16 as a wrapped model: pixels `[image 5 1 1]`, three logits.

    Args:
        seed: of the random weights; the path is the same for all.

    Example:
        >>> path_net().cfg.d_mlp
        8
    """
    model = WiredViT(
        channels=INPUTS, d_model=19, n_layers=2, n_heads=1, d_head=1, d_mlp=8, n_classes=CLASSES, activation=nn.ReLU
    )
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    model.embedding[:, IN] = torch.eye(INPUTS, dtype=torch.float64)
    first, second = model.neurons(0), model.neurons(1)
    first.w_in[IN], first.b_in[:] = drawn(INPUTS, 8), 0.1 * drawn(8)
    first.w_out[:, FIRST] = torch.eye(8, dtype=torch.float64)
    second.w_in[FIRST, :6], second.b_in[:6] = drawn(8, 6), 0.1 * drawn(6)
    second.w_in[FIRST, PATH_UNITS[1]] = 0.0
    second.w_in[FIRST.start + PATH_UNITS[0], PATH_UNITS[1]] = 1.5
    second.b_in[PATH_UNITS[1]] = 0.1
    second.w_in[FIRST, PATH_LOUD] = 1.5 * drawn(8).abs()
    second.w_out[:6, SECOND] = torch.eye(6, dtype=torch.float64)
    model.readout[SECOND.start + PATH_UNITS[1]] = torch.tensor([2.0, 0.0, -2.0])
    model.classifier.bias[:] = torch.tensor([-3.0, 0.0, 1.2])
    return wrapped(model, "planted-path", class_names=("a", "b", "c"))


def path_images(n: int = 400, seed: int = 1) -> Pixels:
    """Images for :func:`path_net`: standard normal inputs `[image 5 1 1]`.

    Raises:
        BadData: no image is asked for.
    """
    if n < 1:
        raise BadData(f"n={n}: expected at least one image.")
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, INPUTS, 1, 1, generator=generator, dtype=torch.float64)


@torch.no_grad()
def path_connection(model: Any, pixels: Pixels, unit: int, reader: int) -> Float[Tensor, "image class"]:
    """Logits where neuron `reader` of layer 1 gets the mean of neuron `unit` of layer 0 instead of its value, and every
    other neuron what it always gets: the plain twin of an edge intervention between neurons.

    Args:
        model: from :func:`path_net`.
        pixels: its images; the mean is over them.
        unit: neuron of layer 0.
        reader: neuron of layer 1.

    Raises:
        BadData: no such neuron.
    """
    if not (0 <= unit < HIDDEN[0] and 0 <= reader < HIDDEN[1]):
        raise BadData(f"neurons {unit} -> {reader}: layer 0 has neurons 0 to 7, layer 1 neurons 0 to 5.")
    bare = model.bare
    values = torch.relu(bare.layers[0].fc1(bare.tokens(pixels)))[:, 0]
    read = bare.neurons(1).w_in[FIRST]
    pre = values @ read + bare.neurons(1).b_in
    pre[:, reader] += (values[:, unit].mean() - values[:, unit]) * read[unit, reader]
    return pre.relu()[:, : HIDDEN[1]] @ bare.readout[SECOND] + bare.classifier.bias
