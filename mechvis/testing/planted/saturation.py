"""F3, SaturationNet: a circuit whose big edge has almost no gradient.

One token, one layer, no norm. Two inputs `x0` and `x1`:

    head 0    A = 2 x0
    head 1    B = x1
    neuron    C = tanh(3 A)
    logits    (4 C + B / 2, -(4 C + B / 2))

On the clean image (1, 0.6) and the corrupt one (-1, -0.6) `tanh` is saturated at both ends: replacing A flips C, which
changes `logit 0 - logit 1` by 16, while the gradient there is 0.002. Known numbers (methods.md 5, **P**), all on
`logit_diff = logit 0 - logit 1`, that is *twice* the formula's logit: edge embed -> A: true 16.0, EAP 0.002, EAP-IG
(inputs) 11.8 with 5 left points, 16.0 with 30; the circuit of the three big edges has faithfulness 0.930, the two small
edges make it 1.
"""

from typing import Any

import torch
from torch import nn

from mechvis.testing.planted.pairs import PlantedPairs
from mechvis.testing.planted.wired import WiredViT, wrapped

X0, X1, A, B, C = range(5)

SATURATION_CORE = frozenset({"embed->L0H0.v", "L0H0->L0MLP", "L0MLP->out"})
"""The big edges: in -> A -> C -> out."""
SATURATION_SMALL = frozenset({"embed->L0H1.v", "L0H1->out"})
"""The small edges: in -> B -> out."""
SATURATION_EDGES = SATURATION_CORE | SATURATION_SMALL
"""The whole circuit. The other eight edges carry nothing: `L0H1->L0MLP` and `L0H0->out` have weight zero."""


@torch.no_grad()
def saturation_net() -> Any:
    """F3 as a wrapped model: pixels `[image 2 1 1]` (x0, x1), two logits, 13 edges.

    Example:
        >>> saturation_net()(saturation_pairs().clean)[0, 0].item() > 4
        True
    """
    model = WiredViT(channels=2, d_model=5, n_layers=1, n_heads=2, d_head=1, d_mlp=1, n_classes=2, activation=nn.Tanh)
    model.embedding[0, X0] = model.embedding[1, X1] = 1.0
    for index, (source, gain, target) in enumerate([(X0, 2.0, A), (X1, 1.0, B)]):
        head = model.head(0, index)
        head.v[source, 0], head.o[0, target] = 1.0, gain
    neurons = model.neurons(0)
    neurons.w_in[A, 0], neurons.w_out[0, C] = 3.0, 1.0
    for slot, weight in ((C, 4.0), (B, 0.5)):
        model.readout[slot] = torch.tensor([weight, -weight])
    return wrapped(model, "saturation-net", class_names=("plus", "minus"))


def saturation_pairs() -> PlantedPairs:
    """The one pair: clean (1, 0.6) of class 0, corrupt (-1, -0.6) of class 1.

    All five edges of the circuit are active: each has an effect by itself.
    """
    clean = torch.tensor([1.0, 0.6], dtype=torch.float64).reshape(1, 2, 1, 1)
    zero, one = torch.tensor([0]), torch.tensor([1])
    return PlantedPairs(
        name="saturation",
        clean=clean,
        corrupt=-clean,
        clean_labels=zero,
        corrupt_labels=one,
        contrast=one,
        circuit=SATURATION_EDGES,
        active=SATURATION_EDGES,
    )
