"""ConceptScope on the latents of a `sae.Dictionary`, from user code that imports both packages."""

import numpy as np
import pytest
import torch

import mechvis
import sae
from probes.concept_scope import scope_of_dictionary

SITE = "blocks.2.hook_resid_post"


@pytest.fixture(scope="module")
def world():
    """The trained small classifier, and two latents that read where the object is, and where it is not."""
    model, images = mechvis.load("scenes-vit"), mechvis.data.scenes(64, seed=5, group="conflicting")
    x = model.run(images, capture=[SITE]).cache[SITE][:, 1:]
    masks = images.masks_for(model.preprocess)
    grid = model.parts.grid
    there = torch.nn.functional.adaptive_avg_pool2d(masks[:, None].float(), grid)[:, 0].flatten(1) > 0.5
    on, off = x[there].mean(0), x[~there].mean(0)
    d = sae.start(sae.TopK(n_latents=2, k=2, normalise="none"), {SITE: x.flatten(0, 1)})
    with torch.no_grad():
        along = (on - off) / (on - off).norm()
        d.W_enc.copy_(torch.stack([along, -along]))
        d.b_dec.copy_((on + off) / 2)
        d.b_enc.zero_()
    return model, images, d, there


def test_latents_are_sorted(world):
    model, images, d, _ = world
    part = images[np.arange(32)]
    found = scope_of_dictionary(model, part, d, SITE, above=0.0, progress=False)
    assert set(found.table["concept"]) == {"latent 0", "latent 1"}
    measured = found.table.filter(found.table["necessity"].is_not_null())
    object_, ground = (measured.filter(measured["concept"] == name) for name in ("latent 0", "latent 1"))
    assert object_["sufficiency"].mean() > ground["sufficiency"].mean(), "the object alone is worth more"
    assert ground["present"].mean() == 1.0


def test_codes_per_token_are_those_of_rows(world):
    model, images, d, there = world
    x = model.run(images[np.arange(4)], capture=[SITE]).cache[SITE]
    with torch.no_grad():
        codes = d.encode(x)
        assert codes.shape == (4, 65, 2)
        assert torch.equal(codes.flatten(0, 1), d.encode(x.flatten(0, 1)))
    active = codes[:, 1:, 0] > 0
    both, either = (active & there[:4]).sum(), (active | there[:4]).sum()
    assert both / either > 0.5, "the latent is where the object is"


def test_anything_that_encodes_like_it_gives_the_same(world):
    model, images, d, _ = world

    class Plain:
        def encode(self, rows):
            return torch.relu((rows.float() - d.b_dec) @ d.W_enc.T).detach()

    part = images[np.arange(8)]
    own, other = (scope_of_dictionary(model, part, one, SITE, fewest=1, progress=False) for one in (d, Plain()))
    assert own.table.equals(other.table) or (own.table["necessity"] - other.table["necessity"]).abs().max() < 1e-5
