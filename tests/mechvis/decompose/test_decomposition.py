"""Tables of direct effects, and ablation of the direct path beside the forward pass."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

import mechvis
from mechvis import edits
from mechvis.decompose import Decomposition, ablations, decompose
from mechvis.errors import BadData, SplitOverlap, UnknownName, UnsupportedModel
from mechvis.means import means
from mechvis.models.load import wrap
from mechvis.testing import assert_untouched, tiny
from mechvis.testing.tiny import tiny_preprocess


@pytest.fixture(scope="module")
def model():
    return mechvis.load("scenes-vit")


@pytest.fixture(scope="module")
def images():
    return mechvis.data.scenes(n=60, seed=11)


@pytest.fixture(scope="module")
def found(model, images):
    return decompose(model, images, keep=True, batch_size=16, progress=False)


def test_shares_and_direct_effects_add_up(model, images, found):
    assert abs(found.table["share"].sum() - 1) < 1e-5
    logits = model.run(images).logits
    target = torch.as_tensor(images.labels)
    rows = torch.arange(len(images))
    others = logits.clone()
    others[rows, target] = -torch.inf
    difference = (logits[rows, target] - others.max(1).values).mean()
    assert abs(found.table["direct"].sum() - float(difference)) < 1e-4
    assert found.table["n"].unique().to_list() == [60]


def test_streamed_sums_are_those_of_all_at_once(found):
    values = found.values.astype(np.float64)
    whole = values.sum(1)
    spread = values.var(0).sum(-1) / whole.var(0).sum(-1)
    np.testing.assert_allclose(found.table["spread"], spread, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(found.arrays["mean"], values.mean(0), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(found.table["norm"], np.linalg.norm(values, axis=-1).mean(0), rtol=1e-6)


def test_everything_at_its_mean_is_a_constant(found):
    constant = found.without(list(found.names))
    np.testing.assert_allclose(constant, np.broadcast_to(constant[0], constant.shape), atol=1e-5)
    assert found.without(["L3H1"]).std(0).max() > 0.1


def test_kinds_and_unknown_terms(found):
    assert len(found.places("heads")) == 16 and len(found.places("MLPs")) == 4
    with pytest.raises(UnknownName, match="L3H1"):
        found.places("L3H7")


def test_saves_and_loads(found, tmp_path):
    again = Decomposition.load(found.save(tmp_path / "d"))
    assert again.table.equals(found.table) and np.array_equal(again.values, found.values)
    assert "relative error" in again.caveats[0]
    assert (tmp_path / "d.html").exists() is False and found.report(tmp_path / "d.html").exists()


def test_terms_that_were_not_kept(model, images):
    with pytest.raises(BadData, match="keep=True"):
        _ = decompose(model, images[:8], progress=False).values


def test_ablation_of_the_last_layer_is_the_same_both_ways_up_to_the_norm(model, images):
    """What the last block's MLP writes reaches nothing but the norm: the two differ by its divisor alone."""
    found = ablations(model, images, groups={"last": ["L3MLP"], "first": ["L0MLP"]}, seed=1, progress=False)
    clean, direct, forward = (found.arrays[name][..., 0] for name in ("clean", "direct", "forward"))
    gap = np.abs(direct - forward).mean(1) / np.abs(clean).mean()
    assert 3 * gap[0] < gap[1], gap  # blocks after the first one react; nothing but the norm is after the last


def test_forward_column_is_an_edited_run(model, images):
    reference, judged = images[:20], images[20:]
    found = ablations(model, judged, reference=reference, groups={"two": ["L2H1", "L3H0"]}, progress=False)
    average = means(model, reference, ["blocks.2.attn.hook_z", "blocks.3.attn.hook_z"])
    run = model.run(
        judged,
        edits=[
            edits.mean_positional("blocks.2.attn.hook_z", average, heads=[1]),
            edits.mean_positional("blocks.3.attn.hook_z", average, heads=[0]),
        ],
    )
    accuracy = (run.logits.argmax(-1) == torch.as_tensor(judged.labels)).float().mean()
    assert abs(found.table["accuracy_forward"][0] - float(accuracy)) < 1e-6


def test_standard_groups_and_self_attention(model, images):
    with assert_untouched(model):
        found = ablations(model, images[:24], layers=-2, self_attention=True, progress=False)
    groups = found.table["group"].to_list()
    assert {"L2H0", "heads of layer 3", "all MLPs", "heads up to layer 3", "class token to itself"} <= set(groups)
    last = found.table.filter(pl.col("group") == "class token to itself").row(0, named=True)
    assert last["forward"] is None and last["direct"] is not None


def test_bad_input(model, images):
    with pytest.raises(UnknownName, match="L3H1"):
        ablations(model, images, groups={"x": ["L3H8"]}, progress=False)
    with pytest.raises(BadData, match="forward pass"):
        ablations(model, images, groups={"x": ["head bias"]}, progress=False)
    with pytest.raises(SplitOverlap):
        ablations(model, images, reference=images[:5], progress=False)
    with pytest.raises(BadData, match="too few"):
        ablations(model, images[:2], progress=False)
    with pytest.raises(BadData, match="ImageSet"):
        ablations(model, images.pixels, progress=False)
    with pytest.raises(UnsupportedModel, match="classifier"):
        ablations(mechvis.load("scenes-clip").vision, images, progress=False)


def test_layers_are_ablated_through_an_attention_pooling():
    bare, preprocess = tiny("siglip-vision"), tiny_preprocess()
    parts = mechvis.load(bare, preprocess=preprocess).parts
    weight = torch.randn(parts.pooling.d_out, 8, generator=torch.Generator().manual_seed(0))

    def head(x):
        return x @ weight.to(x)

    with_head = replace(parts, head=head, reference=lambda x: head(parts.reference(x)))
    model = wrap(bare, family=lambda _: with_head, preprocess=preprocess)
    found = ablations(model, mechvis.data.scenes(9, seed=1), progress=False).table
    assert {"L0H0", "all MLPs"} <= set(found["group"]) and found["direct"].is_not_null().all()
