"""Texts near a latent, in the joint space of a CLIP model."""

import numpy as np
import polars as pl
import pytest
import torch

import mechvis
import sae
from mechvis.data.text_bank import text_bank
from mechvis.errors import BadData
from sae.architectures.relu import ReLU
from sae.attribution.projection import projected_directions
from sae.dashboards import latent_pages

SITE = "blocks.3.hook_resid_post"
TEXTS = text_bank("scenes").texts[:24]


@pytest.fixture(scope="module")
def clip():
    return mechvis.load("scenes-clip")


@pytest.fixture(scope="module")
def scenes():
    return mechvis.data.scenes(24, seed=5)


@pytest.fixture(scope="module")
def anchors(clip):
    found = clip.encode_text(list(TEXTS)).detach().double()
    return torch.nn.functional.normalize(found - found.mean(0), dim=1)


@pytest.fixture(scope="module")
def planted(clip, scenes, anchors):
    """Latent i writes what the read-out turns into text i; all fire here and there."""
    rows = clip.vision.run(scenes, capture=[SITE]).cache[SITE].flatten(0, 1)
    site = clip.vision.graph[SITE].name
    slope = projected_directions(clip.vision, torch.eye(rows.shape[1]), scenes).double()  # d_model, d_embed
    d = sae.start(ReLU(n_latents=8, normalise="none"), {site: rows})
    with torch.no_grad():
        d.W_dec.copy_(anchors[:8] @ torch.linalg.pinv(slope))
        d.W_enc.copy_(torch.randn(d.W_enc.shape, generator=torch.Generator().manual_seed(0)))
        d.b_enc.copy_(-(rows @ d.W_enc.T).quantile(0.9, dim=0))
    return d


@pytest.fixture(scope="module")
def pages(clip, scenes, planted):
    return latent_pages(clip, scenes, planted, latents=range(8), texts=TEXTS, n_top=4, n_texts=3, progress=False)


def test_the_direction_finds_its_text(pages):
    found = pages.tables["texts"].filter((pl.col("kind") == "decoder") & (pl.col("rank") == 0)).sort("latent")
    assert found["text"].to_list() == list(TEXTS[:8])
    assert found["cosine"].min() > 0.98 and found["above_chance"].all()
    assert 0.1 < pages.facts["text_decoder_chance"] < 0.95


def test_top_images_find_texts_as_by_hand(pages, clip, scenes, anchors):
    embeddings = clip.encode_image(scenes).double()
    checked = 0
    for latent in range(8):
        rows = pages.of(latent)["texts"].filter(pl.col("kind") == "images")
        top = pages.of(latent)["examples"].filter(pl.col("kind") == "top")["image"].to_list()
        middle = embeddings[top].mean(0) - embeddings.mean(0)
        scores = (anchors @ middle / middle.norm()).numpy()
        assert np.allclose(rows["cosine"], np.sort(scores)[::-1][:3], atol=1e-5)
        assert rows["text"].to_list() == [TEXTS[j] for j in np.argsort(-scores)[:3]]
        assert (rows["cosine"] > pages.facts["text_images_chance"]).to_list() == rows["above_chance"].to_list()
        checked += 1
    assert checked == 8 and 0 < pages.facts["text_images_chance"] <= 1


def test_another_model_is_read_by_clip_through_its_images_only(tiny_vit, images, planted, clip, scenes, anchors):
    """The tower alone, with the whole model beside it: its images are embedded, directions too, since it is the tower;
    through a classifier's tower they are not."""
    head = clip.classifier(["star", "ring"])
    found = latent_pages(head, scenes, planted, latents=[0, 1], texts=list(TEXTS), clip=clip, progress=False)
    assert set(found.tables["texts"]["kind"]) == {"images"}
    assert any(line.startswith("No texts by decoder direction") for line in found.caveats)
    same = latent_pages(clip, scenes, planted, latents=[0, 1], texts=list(TEXTS), progress=False)
    rows = [t.tables["texts"].filter(pl.col("kind") == "images") for t in (found, same)]
    assert np.allclose(rows[0]["cosine"], rows[1]["cosine"], atol=1e-5)


def test_a_site_without_a_way_to_the_stream_says_so(clip, scenes):
    site = "blocks.1.ln2.hook_normalized"
    rows = clip.vision.run(scenes, capture=[site]).cache[site].flatten(0, 1)
    d = sae.start(ReLU(n_latents=6, normalise="none"), {site: rows})
    found = latent_pages(clip, scenes, d, texts="scenes", n_texts=2, progress=False)
    assert set(found.tables["texts"]["kind"]) == {"images"}
    assert any("not added to the residual stream" in line for line in found.caveats)


def test_bad_texts(clip, scenes, planted):
    for texts in (["one"], ["one", "one"]):
        with pytest.raises(BadData, match="at least two different ones"):
            latent_pages(clip, scenes, planted, texts=texts, progress=False)
    with pytest.raises(BadData, match="no text bank"):
        latent_pages(clip, scenes, planted, texts="no such bank", progress=False)
