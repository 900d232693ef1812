"""ROAR, KAR and the probe on planted data: the right map beats random ones, and masks that give the class away show."""

import numpy as np
import pytest
import torch

import mechvis
from mechvis.errors import BadData, OutOfRange, ShapeMismatch
from mechvis.faithfulness import Examples, Kar, Roar, features_of, filled_with_mean, probe_fit
from mechvis.models.load import wrap
from mechvis.removal import Game
from mechvis.target import Target, target_of
from mechvis.testing import tiny, tiny_input, tiny_preprocess

GRID = (3, 3)


def planted(n, seed):
    """The centre patch holds the class as a pattern (+, -) or (-, +) that has mean zero; the rest is noise."""
    g = torch.Generator().manual_seed(seed)
    pixels = 0.3 * torch.randn(n, 1, 6, 6, generator=g)
    labels = torch.randint(0, 2, (n,), generator=g)
    sign = (2 * labels - 1).float()
    pixels[:, 0, 2:4, 2] += 2 * sign[:, None]  # the centre patch, left half up, right half down
    pixels[:, 0, 2:4, 3] -= 2 * sign[:, None]
    return pixels, labels


def examples(maps=None, n=120, seed=0):
    pixels, labels = planted(n, seed)
    right = torch.zeros(n, 9)
    right[:, 4] = 1
    values = right if maps is None else maps(labels)
    return Examples(
        inputs=filled_with_mean(pixels, GRID), labels=labels, maps=values, ids=range(1000 * seed, 1000 * seed + n)
    )


SETTINGS = {"shares": (0.12, 0.5), "seeds": 2}


def test_the_right_map_beats_random_ones():
    train, test = examples(), examples(seed=1)
    gone = Roar(**SETTINGS).measure(train, test, probe_fit)
    kept = Kar(**SETTINGS).measure(train, test, probe_fit)
    assert gone.values.mean() < 0.65, "the class is still there without its patch"
    assert kept.values.mean() > 0.95
    assert gone.baselines["random"].mean() > gone.values.mean() + 0.1
    assert gone.curves["accuracy"].shape == (120, 2) and gone.points.tolist() == [0.12, 0.5]
    assert abs(gone.baselines["mask_shape"].mean() - 0.5) < 0.2
    wrong = Roar(**SETTINGS).measure(
        examples(lambda labels: torch.eye(9)[:1].expand(len(labels), -1)),
        examples(lambda labels: torch.eye(9)[:1].expand(len(labels), -1), seed=1),
        probe_fit,
    )
    assert wrong.values.mean() > gone.values.mean() + 0.1, "a map of nothing should cost less"


def test_masks_that_give_the_class_away_show():
    """A map that marks another corner for each class: nothing of the image is needed to tell them apart."""
    leak = lambda labels: torch.eye(9)[labels * 8]  # noqa: E731
    found = Roar(shares=(0.12,), seeds=1).measure(examples(leak), examples(leak, seed=1), probe_fit)
    assert found.baselines["mask_shape"].mean() == 1


def test_probe_on_features_of_a_frozen_model():
    model = wrap(tiny("vit", dtype=torch.float64), preprocess=tiny_preprocess())
    pixels = tiny_input("vit", n=4, dtype=torch.float64)
    game = Game(model=model, pixels=pixels, target=target_of(model, model.run(pixels).output), operator="token_drop")
    features = features_of(game)
    whole = features(torch.ones(4, 9))
    pooled = model.run(pixels, capture=["hook_pooled"]).cache["hook_pooled"]
    torch.testing.assert_close(whole, pooled)
    dropped = torch.ones(4, 9)
    dropped[:, 2] = 0
    assert (features(dropped) - whole).abs().max() > 1e-3
    with mechvis.testing.assert_untouched(model):
        one = Examples(inputs=features, labels=torch.tensor([0, 1, 0, 1]), maps=torch.eye(9)[:4])
        found = Roar(shares=(0.3,), seeds=1).measure(one, one, probe_fit)
    assert found.values.mean() == 1.0, "four images are told apart by a linear probe"


def test_filling_with_the_mean():
    pixels = torch.rand(2, 3, 6, 9)
    inputs = filled_with_mean(pixels, (2, 3))
    masks = torch.ones(2, 6)
    masks[0, 4] = 0
    found = inputs(masks)
    torch.testing.assert_close(found[0, :, 4, 4], pixels[0].mean((1, 2)))
    assert torch.equal(found[1], pixels[1]) and torch.equal(found[0, :, :3], pixels[0, :, :3])
    with pytest.raises(ShapeMismatch, match="do not divide"):
        filled_with_mean(pixels, (4, 4))


def test_what_cannot_be_retrained():
    good = examples(n=8)
    with pytest.raises(OutOfRange, match="seeds=0"):
        Roar(seeds=0).measure(good, good, probe_fit)
    with pytest.raises(OutOfRange, match="shares"):
        Roar(shares=(1.0,)).measure(good, good, probe_fit)
    bad = Examples(inputs=good.inputs, labels=good.labels[:4], maps=good.maps)
    with pytest.raises(ShapeMismatch, match="8 maps, 4 labels"):
        Roar().measure(bad, good, probe_fit)
    bare = wrap(tiny("vit-base", dtype=torch.float64), preprocess=tiny_preprocess())
    game = Game(
        model=bare,
        pixels=tiny_input("vit", n=1, dtype=torch.float64),
        target=Target(classes=torch.zeros(1).long()),
        operator="mean",
    )
    with pytest.raises(BadData, match="no head"):
        features_of(game)


def test_same_numbers_again():
    train, test = examples(n=40), examples(n=40, seed=1)
    first, again = (Roar(**SETTINGS).measure(train, test, probe_fit) for _ in range(2))
    np.testing.assert_array_equal(first.values, again.values)
    np.testing.assert_array_equal(first.baselines["random"], again.baselines["random"])
