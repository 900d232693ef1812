"""The tuned lens: the known answers of methods.md 3.3, streaming and memory, files, refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import mechvis
from mechvis import testing
from mechvis.errors import BadData, OutOfRange, ResultMismatch, ShapeMismatch, SplitOverlap, StoreCorrupt, UnknownName
from mechvis.hooked import HookedViT
from probes.lenses import TunedLens, lens_maps, logit_lens, tuned_lens

QUIET = {"progress": False, "resamples": 200}


def pixels(n=64, seed=1):
    return testing.tiny_input("vit", n=n, seed=seed, dtype=torch.float64)


def vit(dead=()):
    module = testing.tiny("vit", dtype=torch.float64)
    with torch.no_grad():
        for layer in dead:
            block = module.vit.layers[layer]
            for linear in (block.attention.o_proj, block.mlp.fc2):
                linear.weight.zero_()
                linear.bias.zero_()
    return mechvis.load(module, preprocess=testing.tiny_preprocess())


def rotation(width, seed=0):
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))
    return torch.from_numpy(q * np.sign(np.diag(r)))


def turned(model):
    """The same function with two more blocks at the end: one turns the stream by a random rotation, the next turns it
    back. So the stream between them (layer 3) knows all that layer 2 knows, in another basis."""
    parts, turn = model.parts, rotation(model.parts.d_model)

    def block(matrix):
        like = parts.blocks[0]
        silent = replace(like.attn, out=lambda merged: merged[..., : parts.d_model] * 0, out_bias=lambda: None)
        move = matrix - torch.eye(len(matrix), dtype=matrix.dtype)
        plain = {"ln2": nn.Identity(), "mlp_in": lambda x: x, "act": lambda x: x, "d_mlp": parts.d_model}
        return replace(
            like,
            attn=silent,
            mlp_out=lambda x: x @ move,
            mlp_out_weight=lambda: move,
            mlp_out_bias=lambda: None,
            **plain,
        )

    blocks = (*parts.blocks, block(turn), block(turn.T))
    return HookedViT(model.bare, replace(parts, blocks=blocks), preprocess=model.preprocess)


@pytest.mark.parametrize(("dtype", "rate"), [(torch.float64, 1e-3), (torch.float32, 1e-3), (torch.float32, 1e-2)])
def test_dead_blocks_need_no_map(dtype, rate):
    """Everything after block 0 writes nothing: identity is right, and training must not walk away from it, where the
    gradient is nothing but rounding."""
    model = vit(dead=(1, 2)).to(dtype)
    lens = tuned_lens(model, pixels().to(dtype), epochs=20, learning_rate=rate, **QUIET)
    assert lens.table["logit_kl"].max() < (1e-12 if dtype == torch.float64 else 1e-6)
    assert lens.table["tuned_kl"].max() < 1e-5 and lens.table["size"].max() == 0


def test_a_rotation_defeats_the_logit_lens_and_not_the_tuned_one():
    model = turned(vit())
    testing.assert_close(model.run(pixels(4)).output, vit().run(pixels(4)).output, 1e-10, "the same function")
    lens = tuned_lens(
        model, pixels(400), sites="blocks.3.hook_resid_post", epochs=120, learning_rate=0.02, weight_decay=0.0, **QUIET
    )
    row = lens.pick(layer=3)
    assert row["logit_kl"] > 0.1, "the control: the basis is another"
    assert row["tuned_kl"] < 0.01 * row["logit_kl"]
    assert row["saved_low"] > 0
    beside = logit_lens(model, pixels(32, seed=9), sites="blocks.3.hook_resid_post", tuned=lens, **QUIET)
    assert beside.pick(lens="tuned")["agreement"] > 0.85
    assert beside.pick(lens="logit")["agreement"] < 0.4


@pytest.mark.parametrize("tokens", ["read", "cls", "patches"])
def test_streamed_equals_kept(tokens):
    options = {"epochs": 2, "learning_rate": 0.01, "tokens": tokens, "batch_size": 16, **QUIET}
    kept, streamed = (tuned_lens(vit(), pixels(48), keep=keep, **options) for keep in (True, False))
    np.testing.assert_allclose(streamed.arrays["change"], kept.arrays["change"], atol=1e-10)
    assert np.abs(kept.arrays["change"]).max() > 0.001


def test_one_step_by_hand():
    """One step of Adam: every entry moves by the learning rate against its gradient, less where that is small."""
    model = vit()
    lens = tuned_lens(
        model, pixels(5), sites="blocks.0.hook_resid_post", epochs=1, batch_size=4, learning_rate=0.01, **QUIET
    )
    order = np.random.default_rng(0).permutation(5)
    train = pixels(5)[np.sort(order[1:])]
    run = model.run(train, capture="blocks.0.hook_resid_post")
    x = run.cache["blocks.0.hook_resid_post"][:, 0]
    change = torch.zeros(16, 16, dtype=torch.float64, requires_grad=True)
    log_q = model.parts.head(model.parts.ln_final(x + x @ change)).log_softmax(-1)
    log_p = run.output.log_softmax(-1).detach()
    (log_p.exp() * (log_p - log_q)).sum(-1).mean().backward()
    expected = -0.01 * change.grad / (change.grad.abs() + 1e-8)
    np.testing.assert_allclose(lens.arrays["change"][0], expected, atol=1e-9)


def test_seeds(tmp_path):
    options = {"epochs": 1, "rank": 2, **QUIET}
    one, same, other = (tuned_lens(vit(), pixels(20), seed=seed, **options) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.arrays["v"], same.arrays["v"])
    assert not np.allclose(one.arrays["v"], other.arrays["v"])


def test_low_rank():
    lens = tuned_lens(vit(), pixels(64), rank=2, epochs=15, learning_rate=0.02, **QUIET)
    change, _ = lens.map_of("blocks.0.hook_resid_post")
    assert np.linalg.matrix_rank(change, tol=1e-9) == 2
    assert (lens.table["saved"] > 0).all()


def test_weight_decay_pulls_to_the_identity():
    sizes = [
        tuned_lens(vit(), pixels(48), epochs=8, learning_rate=0.02, weight_decay=decay, **QUIET).table["size"].sum()
        for decay in (0.0, 20.0)
    ]
    assert sizes[1] < 0.7 * sizes[0]


def test_patches_with_both_goals():
    image, token = (
        tuned_lens(vit(), pixels(32), tokens="patches", goal=goal, epochs=5, learning_rate=0.01, **QUIET)
        for goal in ("output", "token")
    )
    assert (image.table["saved"] > 0).all() and (token.table["saved"] > 0).all()
    assert not np.allclose(image.arrays["change"], token.arrays["change"])
    dead = tuned_lens(vit(dead=(1, 2)), pixels(8), tokens="patches", goal="token", epochs=1, **QUIET)
    assert dead.table["logit_kl"].max() < 1e-12, "the last layer at the same patch is the goal"


def test_nothing_of_the_model_moves():
    model = vit()
    with testing.assert_untouched(model):
        tuned_lens(model, pixels(16), epochs=1, **QUIET)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_save_load_and_use(tmp_path):
    model = vit()
    lens = tuned_lens(model, pixels(24), epochs=2, **QUIET)
    again = TunedLens.load(lens.save(tmp_path / "lens"))
    x = torch.randn(3, 5, 16, dtype=torch.float64)
    torch.testing.assert_close(again.translate(again.sites[0], x), lens.translate(lens.sites[0], x))
    change, bias = lens.map_of(lens.sites[0])
    expected = x.numpy() + x.numpy() @ change + bias
    np.testing.assert_allclose(lens.translate(lens.sites[0], x).numpy(), expected, atol=1e-12)
    assert "affine map" in again.report(tmp_path / "lens.html").read_text()
    with pytest.raises(ResultMismatch, match="trained on another model"):
        logit_lens(vit(dead=(2,)), pixels(4), tuned=again, **QUIET)
    with pytest.raises(UnknownName, match="site of this lens"):
        lens.translate("blocks.2.hook_resid_post", x)
    with pytest.raises(ShapeMismatch, match="vectors of width 16"):
        lens.translate(lens.sites[0], x[..., :4])
    damaged = tmp_path / "lens" / "arrays.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-8])
    with pytest.raises(StoreCorrupt, match="is damaged"):
        TunedLens.load(tmp_path / "lens")


def test_images_of_the_training_are_not_read_for_judging(tmp_path):
    model = vit()
    lens = tuned_lens(model, pixels(20), epochs=1, keep=False, **QUIET)
    lens = TunedLens.load(lens.save(tmp_path / "lens"))
    assert lens.arrays["seen"].shape == (16,)
    with pytest.raises(SplitOverlap, match="16 of 20 images were used to train this lens"):
        logit_lens(model, pixels(20), tuned=lens, **QUIET)
    with pytest.raises(SplitOverlap, match="allow_overlap=True"):
        lens_maps(model, pixels(20), tuned=lens, **QUIET)
    assert logit_lens(model, pixels(20), tuned=lens, allow_overlap=True, **QUIET).table.height == 5
    maps = lens_maps(model, pixels(6, seed=4), tuned=lens, **QUIET)
    stream = model.run(pixels(6, seed=4), capture="blocks.0.hook_resid_post").cache["blocks.0.hook_resid_post"]
    moved = lens.translate("blocks.0.hook_resid_post", stream[2, 1 + 4])
    expected = model.parts.head(model.parts.ln_final(moved)).softmax(-1).detach()
    np.testing.assert_allclose(maps.arrays["values"][2, 0, :, 1, 1], expected, atol=1e-6)


def test_on_the_bundled_classifier():
    """Where shape and background disagree, the tuned lens comes closer to the final answer in every layer."""
    model = mechvis.load("scenes-vit")
    lens = tuned_lens(model, mechvis.data.scenes(n=480, seed=3), epochs=10, **QUIET)
    assert (lens.table["saved_low"] > 0)[1:].all()
    images = mechvis.data.scenes(n=48, seed=7)
    found = logit_lens(model, images, tuned=lens, **QUIET)
    assert found.pick(lens="tuned", layer=2)["kl"] < 0.8 * found.pick(lens="logit", layer=2)["kl"]
    assert found.table.filter(found.table["lens"] == "tuned").height == 3


def test_refusals():
    model, some = vit(), pixels(8)
    with pytest.raises(BadData, match="nothing to tune"):
        tuned_lens(model, some, sites="blocks.2.hook_resid_post", **QUIET)
    with pytest.raises(BadData, match="goal='token' is for tokens='patches'"):
        tuned_lens(model, some, goal="token", **QUIET)
    with pytest.raises(OutOfRange, match="rank=17: D has the width 16"):
        tuned_lens(model, some, rank=17, **QUIET)
    with pytest.raises(OutOfRange, match="epochs=0"):
        tuned_lens(model, some, epochs=0, **QUIET)
    with pytest.raises(BadData, match="cannot be split"):
        tuned_lens(model, some[:1], **QUIET)
    with pytest.raises(UnknownName, match="tokens 'patch'"):
        tuned_lens(model, some, tokens="patch", **QUIET)
    with pytest.raises(OutOfRange, match=r"held_out=1\.5"):
        tuned_lens(model, some, held_out=1.5, **QUIET)
    scenes = mechvis.data.scenes(n=6, seed=1)
    with pytest.raises(SplitOverlap, match="training and validation images of a lens"):
        tuned_lens(mechvis.load("scenes-vit"), scenes, validation=scenes[:2], **QUIET)
