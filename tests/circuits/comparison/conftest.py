"""A tiny random model that reads scenes, scenes, and planted edge scores of images that scatter about known weights."""

import numpy as np
import pytest
import torch

import mechvis
from circuits.edges.graph import EdgeGraph
from mechvis import testing
from mechvis.data import scenes


@pytest.fixture(scope="session")
def tiny():
    """Three layers of four heads, eight classes, float64, random."""
    return mechvis.load(testing.tiny("vit", dtype=torch.float64), preprocess=testing.tiny_preprocess())


@pytest.fixture(scope="session")
def other_tiny():
    """The same architecture with other weights."""
    return mechvis.load(testing.tiny("vit", dtype=torch.float64, seed=7), preprocess=testing.tiny_preprocess())


@pytest.fixture(scope="session")
def pictures():
    """(n, seed) -> scenes."""
    return lambda n, seed, **more: scenes(n, seed=seed, **more)


@pytest.fixture(scope="session")
def graph():
    """Four layers of two heads."""
    return EdgeGraph((2,) * 4)


@pytest.fixture(scope="session")
def planted(graph):
    """(n, seed, move, noise) -> scores `[edge image]` about fixed weights, which `move` shifts."""
    generator = np.random.default_rng(0)
    weights, direction = generator.normal(size=(2, graph.n_edges))

    def made(n, seed, move=0.0, noise=3.0):
        scatter = np.random.default_rng(seed).normal(size=(graph.n_edges, n))
        return (weights + move * direction)[:, None] + noise * scatter

    return made
