"""Small models with dictionaries at their sites."""

import pytest
import torch

import mechvis
import sae
from mechvis import testing


@pytest.fixture(scope="session")
def tiny_model():
    """A wrapped random model and its images, by family; float64."""
    made = {}

    def make(family="vit"):
        if family not in made:
            bare = testing.tiny(family, dtype=torch.float64)
            model = mechvis.load(bare, preprocess=testing.tiny_preprocess())
            model = model.vision if hasattr(model, "vision") else model
            made[family] = model, testing.tiny_input(family, n=5, dtype=torch.float64)
        return made[family]

    return make


@pytest.fixture(scope="session")
def a_dictionary():
    """An untrained dictionary of a site: its codes are as sparse as those of a trained one."""

    def make(model, pixels, reads, writes=None, *, n=24, k=4, seed=0, **more):
        sites = [reads] if writes is None else [reads, writes]
        cache = model.run(pixels, capture=sites).cache
        width = {name: cache[name].flatten(2) if cache[name].ndim == 4 else cache[name] for name in sites}
        rows = {name: value.reshape(-1, value.shape[-1]) for name, value in width.items()}
        settings = {"n_latents": n, "k": k, **more}
        return sae.start(sae.TopK(**settings), rows, reads=reads, writes=writes, seed=seed)

    return make
