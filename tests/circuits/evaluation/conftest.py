"""Tasks on planted models: what the measures must say about them is known."""

import pytest
import torch
from torch import nn

from circuits.circuit import Circuit
from circuits.pairs.pairs import Pairs
from circuits.task import task
from mechvis.testing import planted
from mechvis.testing.planted.wired import WiredViT, wrapped


def as_pairs(drawn):
    return Pairs(
        name=drawn.name,
        clean=drawn.clean,
        corrupt=drawn.corrupt,
        ids=tuple(f"{drawn.name} {i}" for i in range(len(drawn))),
        clean_labels=drawn.clean_labels,
        corrupt_labels=drawn.corrupt_labels,
    )


@pytest.fixture(scope="session")
def pairs_of():
    """From planted pairs to pairs."""
    return as_pairs


@pytest.fixture(scope="session")
def f3():
    """SaturationNet: one pair, 13 edges."""
    return task(planted.saturation_net(), as_pairs(planted.saturation_pairs()))


@pytest.fixture(scope="session")
def core(f3):
    return Circuit.of(f3.graph, planted.SATURATION_CORE, title="the big edges")


@pytest.fixture(scope="session")
def everything(f3):
    return Circuit(graph=f3.graph, kept=f3.graph.allowed, title="everything")


@pytest.fixture(scope="session")
def nothing(f3):
    return Circuit.of(f3.graph, [], title="nothing")


@pytest.fixture(scope="session")
def cue_model():
    return planted.cue_lookup()


@pytest.fixture(scope="session")
def cue(cue_model):
    """cue-lookup: 110 edges, of which seven are planted, on 12 pairs in which everything differs."""
    return task(cue_model, as_pairs(planted.cue_pairs("all", 12, seed=2)))


@pytest.fixture(scope="session")
def cue_circuit(cue):
    return Circuit.of(cue.graph, planted.cue_circuit(), title="planted")


def gate(bias, n=1):
    """Two heads copy x0; a neuron is high where A + B + bias > 0, and decides between two classes."""
    x0, a, b, c = range(4)
    model = WiredViT(channels=1, d_model=4, n_layers=1, n_heads=2, d_head=1, n_classes=2, activation=nn.Tanh)
    with torch.no_grad():
        model.embedding[0, x0] = 1.0
        for index, slot in enumerate((a, b)):
            head = model.head(0, index)
            head.v[x0, 0], head.o[0, slot] = 1.0, 1.0
        neurons = model.neurons(0)
        neurons.w_in[a, 0] = neurons.w_in[b, 0] = 20.0
        neurons.b_in[0] = 20.0 * bias
        neurons.w_out[0, c] = 1.0
        model.readout[c] = torch.tensor([4.0, -4.0], dtype=torch.float64)
    clean = torch.ones(n, 1, 1, 1, dtype=torch.float64)
    pairs = Pairs(
        name="gate",
        clean=clean,
        corrupt=-clean,
        ids=tuple(map(str, range(n))),
        clean_labels=torch.zeros(n, dtype=torch.int64),
        corrupt_labels=torch.ones(n, dtype=torch.int64),
    )
    return task(wrapped(model, "gate", class_names=("plus", "minus")), pairs)


@pytest.fixture(scope="session")
def either():
    """OR: one of the two heads is enough."""
    return gate(1.0)


@pytest.fixture(scope="session")
def both():
    """AND: both heads are needed."""
    return gate(-1.0)


PATH = ("embed->L0H{0}.v", "L0H{0}->L0MLP", "L0MLP->out")


@pytest.fixture(scope="session")
def path_through():
    """The circuit through one head of a gate, or through several."""

    def through(task, *heads):
        return Circuit.of(task.graph, {edge.format(head) for head in heads for edge in PATH})

    return through
