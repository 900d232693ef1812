"""One direction per neuron, and its words: planted answers."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import orthogonal_mp

from mechvis import testing
from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch, UnknownName
from mechvis.models.load import wrap
from probes.second_order import coefficients, explained_elsewhere, in_words, rank_one, summarise
from probes.second_order.texts import along, dictionary

PLANTED, LAYER, HEAD = 5, 1, 2


def planted_model(target):
    """A CLIP vision tower in which one neuron of layer 1 is read by one head of layer 2 alone, whose OV map takes it to
    `target` in the joint space; the other neurons reach several heads, which write this and that."""
    bare = testing.tiny("clip-vision", dtype=torch.float64)
    model = wrap(bare, preprocess=testing.tiny_preprocess())
    parts, attn = model.parts, bare.vision_model.encoder.layers[LAYER + 1].self_attn
    norm, last = parts.blocks[LAYER + 1].ln1, parts.ln_final
    centring = torch.eye(16, dtype=torch.float64) - 1 / 16
    with torch.no_grad():
        attn.out_proj.weight[:, 12:] = 0  # head 3 is silent
        values = centring * norm.weight @ model.W_V[LAYER + 1].permute(1, 0, 2).flatten(1)[:, :12]
        wanted = torch.zeros(12, dtype=torch.float64)
        wanted[HEAD * 4] = 1.0
        row = torch.linalg.lstsq(values.T, wanted[:, None]).solution[:, 0]
        bare.vision_model.encoder.layers[LAYER].mlp.fc2.weight[:, PLANTED] = row
        projection = centring * last.weight @ bare.visual_projection.weight.T
        write = torch.linalg.lstsq(projection.T, target[:, None]).solution[:, 0]
        attn.out_proj.weight[:, HEAD * 4] = write
    return wrap(bare, preprocess=testing.tiny_preprocess())


@pytest.fixture(scope="module")
def target():
    return torch.nn.functional.normalize(torch.randn(8, generator=torch.Generator().manual_seed(3)).double(), dim=0)


@pytest.fixture(scope="module")
def found(target):
    return coefficients(
        planted_model(target), testing.tiny_input("clip-vision", n=24, dtype=torch.float64), LAYER, progress=False
    )


def test_planted_neuron_points_to_its_text(found, target):
    fitted = rank_one(found, top=12)
    cosines = np.abs(fitted.direction @ target.numpy())
    assert cosines[PLANTED] > 0.999 and fitted.explained[PLANTED] > 0.999999
    others = np.delete(cosines, PLANTED)
    assert others.max() < 0.999 and np.delete(fitted.explained, PLANTED).mean() < 0.99
    reach = np.abs(found.alpha[:, :, PLANTED, None] * found.vectors[:, PLANTED]).max((0, 2))
    assert found.terms[int(reach.argmax())] == f"L{LAYER + 1}H{HEAD}" and np.delete(reach, HEAD).max() < 1e-12


def test_direction_by_hand(found):
    fitted, effects = rank_one(found, top=10), found.effects()
    for neuron in (0, 9):
        away = effects[:, neuron] - effects[:, neuron].mean(0)
        order = np.argsort(-np.linalg.norm(away, axis=1))[:10]
        _, values, right = np.linalg.svd(away[order])
        assert np.abs(fitted.direction[neuron] @ right[0]) == pytest.approx(1, abs=1e-10)
        assert (away[order] @ fitted.direction[neuron] > 0).mean() == pytest.approx(fitted.positive[neuron])
        assert fitted.positive[neuron] >= 0.5
        assert fitted.explained[neuron] == pytest.approx(values[0] ** 2 / (values**2).sum())
        np.testing.assert_array_equal(fitted.images[neuron], order)
        np.testing.assert_allclose(fitted.sizes[neuron], np.linalg.norm(away[order], axis=1), atol=1e-10)
        expected = effects[:, neuron].mean(0) + np.outer(away @ fitted.direction[neuron], fitted.direction[neuron])
        np.testing.assert_allclose(fitted.approximate(found, neuron), expected, atol=1e-12)


def test_top_is_at_most_all_images_and_needs_two(found):
    assert rank_one(found).images.shape == (32, 24)
    with pytest.raises(BadData, match="two images"):
        rank_one(found, top=0)


def test_last_block_has_no_direction(target):
    model = planted_model(target)
    fitted = rank_one(coefficients(model, testing.tiny_input("clip-vision", dtype=torch.float64), 2, progress=False))
    assert (fitted.direction == 0).all() and np.isnan(fitted.explained).all()


def test_groups_of_neurons_change_nothing(target):
    model, pixels = planted_model(target), testing.tiny_input("clip-vision", n=6, dtype=torch.float64)
    whole = summarise(model, pixels, 0, progress=False)
    parts = summarise(model, pixels, 0, progress=False, budget=6 * 8 * 8 * 6 * 5)  # five neurons at a time
    for name in ("neurons", "mean", "direction", "explained", "images", "alpha_mean"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), atol=1e-12, err_msg=name)


def test_explained_on_other_images(found, target):
    fitted = rank_one(found, top=12)
    other = testing.tiny_input("clip-vision", n=10, seed=9, dtype=torch.float64)
    elsewhere = coefficients(planted_model(target), other, LAYER, progress=False)
    share = explained_elsewhere(elsewhere, fitted)
    assert share[PLANTED] == pytest.approx(1.0) and (share <= 1 + 1e-9).all() and np.delete(share, PLANTED).min() < 0.9
    with pytest.raises(BadData, match="other neurons"):
        explained_elsewhere(coefficients(planted_model(target), other, 0, progress=False), fitted)


@pytest.fixture(scope="module")
def texts():
    return np.random.default_rng(0).standard_normal((60, 24)) + 2.0


def test_pursuit_agrees_with_scikit_learn(texts):
    atoms, targets = dictionary(texts), np.random.default_rng(1).standard_normal((5, 24))
    for target, found in zip(targets, in_words(targets, texts, [f"word {i}" for i in range(60)], atoms=6), strict=True):
        expected = orthogonal_mp(atoms.T, target, n_nonzero_coefs=6)
        assert {f"word {i}" for i in expected.nonzero()[0]} == set(found.words)
        np.testing.assert_allclose(found.weights, expected[[int(word[5:]) for word in found.words]], atol=1e-10)
        np.testing.assert_allclose(found.reconstruction, atoms.T @ expected, atol=1e-10)


def test_planted_words_are_found_and_the_mean_is_taken_off(texts):
    atoms = dictionary(texts)
    np.testing.assert_allclose(np.linalg.norm(atoms, axis=1), 1)
    found = in_words((2 * atoms[7] - atoms[30])[None], texts, [str(i) for i in range(60)], atoms=10)[0]
    assert set(found.words) == {"7", "30"} and found.cosine == pytest.approx(1)
    assert found.top(2) == ["7", "-30"]
    # The control: raw embeddings share a large mean, every word is near to every other.
    raw = texts / np.linalg.norm(texts, axis=1, keepdims=True)
    assert np.abs(raw @ raw.T).mean() > 0.7 > np.abs(atoms @ atoms.T).mean()


def test_the_released_normalisation_gives_atoms_of_other_lengths(texts):
    lengths = np.linalg.norm(dictionary(texts, normalise="dimension"), axis=1)
    assert lengths.std() > 0.01
    np.testing.assert_allclose(np.linalg.norm(dictionary(texts, normalise="dimension"), axis=0), 1)


def test_the_part_along_a_direction_does_not_depend_on_its_length():
    away, direction = np.random.default_rng(2).standard_normal((4, 6)), np.arange(1.0, 7)
    np.testing.assert_allclose(along(away, direction), along(away, 3 * direction))
    ratio = along(away, direction, divide=False) / along(away, direction)
    np.testing.assert_allclose(ratio, direction @ direction)
    with pytest.raises(BadData, match="zero"):
        along(away, 0 * direction)


def test_no_direction_no_words_and_bad_input(texts):
    words = [str(i) for i in range(60)]
    assert in_words(np.zeros((1, 24)), texts, words)[0].words == ()
    with pytest.raises(ShapeMismatch, match="60 text embeddings and 2 words"):
        in_words(np.zeros((1, 24)), texts, words[:2])
    with pytest.raises(ShapeMismatch, match="of='embedding'"):
        in_words(np.zeros((1, 8)), texts, words)
    with pytest.raises(OutOfRange, match="atoms=0"):
        in_words(np.zeros((1, 24)), texts, words, atoms=0)
    with pytest.raises(NotFinite, match="the directions"):
        in_words(np.full((1, 24), np.nan), texts, words)
    with pytest.raises(BadData, match="equals the mean"):
        dictionary(np.ones((3, 4)))
    with pytest.raises(BadData, match="two words"):
        dictionary(np.ones((1, 4)))
    with pytest.raises(UnknownName, match="atom, dimension"):
        dictionary(texts, normalise="rows")
