"""Shapley values of heads: the hand-wired head, the enumerated twin, the clean model."""

import numpy as np
import pytest
import torch

import mechvis
from mechvis import testing
from mechvis.attribution.head_game import HeadGame, HeadShapley, head_shapley
from mechvis.attribution.methods.shapley import exact
from mechvis.errors import OutOfRange, ShapeMismatch
from mechvis.target import target_of

DOUBLE = torch.float64


@pytest.fixture(scope="module")
def model():
    return mechvis.load(testing.hand_wired_vit(dtype=DOUBLE), preprocess=testing.tiny_preprocess())


def game(model, pixels, reference):
    target = target_of(model, model.run(pixels).logits, target=0)
    return HeadGame(
        model=model,
        pixels=pixels,
        target=target,
        reference=mechvis.means(model, reference, "blocks.*.attn.hook_z"),
    )


def test_one_head_does_everything(model, tmp_path):
    pixels, brightness = testing.hand_wired_images(6, dtype=DOUBLE)
    reference, others = testing.hand_wired_images(20, seed=1, dtype=DOUBLE)
    found = head_shapley(model, pixels, reference, target=0, pairs=2, progress=False)
    values = found.arrays["values"]
    truth = 0.75 * (brightness[:, 4] - others[:, 4].mean())
    assert values[:, 0, 0] == pytest.approx(truth.numpy(), abs=0.01)
    values = values.reshape(6, 8)
    assert np.abs(values[:, 1:]).max() < 0.01, "loud heads that nobody reads"
    assert found.table["layer"].to_list() == [0] * 4 + [1] * 4
    assert HeadShapley.load(found.save(tmp_path / "heads")).table.equals(found.table)
    alone = head_shapley(model, pixels, reference, target=0, pairs=2, batch_size=4, progress=False)
    assert alone.arrays["values"] == pytest.approx(found.arrays["values"], abs=1e-9)


def test_against_all_sets_and_the_clean_model():
    bare = testing.tiny("vit", dtype=DOUBLE, num_attention_heads=2, num_hidden_layers=3)
    model = mechvis.load(bare, preprocess=testing.tiny_preprocess())
    pixels = testing.tiny_input("vit", n=2, dtype=DOUBLE)
    asked = game(model, pixels, testing.tiny_input("vit", n=8, seed=5, dtype=DOUBLE))
    clean = model.run(pixels).logits[:, 0]
    testing.assert_close(asked.scores(torch.ones(2, 1, 6))[:, 0], clean, 1e-9, "all heads on")
    from mechvis.attribution.methods.shapley import shapley

    truth = exact(asked, 2)
    assert truth.sum(1).numpy() == pytest.approx((clean - asked.scores(torch.zeros(2, 1, 6))[:, 0]).numpy(), abs=1e-6)
    found, extra = shapley(asked, [torch.Generator().manual_seed(i) for i in range(2)], pairs=60)
    assert ((found - truth).abs() <= 5 * extra["se"] + 1e-9).all()


def test_bad_input(model):
    pixels = testing.hand_wired_images(2, dtype=DOUBLE)[0]
    with pytest.raises(ShapeMismatch, match=r"\[image row head\] = \[2 row 8\], got \[2, 1, 9\]"):
        game(model, pixels, pixels).scores(torch.ones(2, 1, 9))
    with pytest.raises(OutOfRange, match="pairs=0"):
        head_shapley(model, pixels, pixels, pairs=0)
