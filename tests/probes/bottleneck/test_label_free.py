"""Label-free bottlenecks: columns that are linear in the features are found, shuffled ones are dropped (17.6)."""

import numpy as np
import pytest
import torch

from mechvis.errors import BadData, OutOfRange, ShapeMismatch
from probes.bottleneck import filter_texts, label_free, learn_projection
from probes.bottleneck.label_free import cubed_cosine
from probes.features import Features

D = 16


def made(n, first=0, seed=0):
    """Sparse factors seen through a random rotation; the class is the larger of the first two factors."""
    generator = np.random.default_rng(seed)
    turn = np.linalg.qr(np.random.default_rng(99).standard_normal((D, D)))[0]
    factors = generator.gamma(1.0, 1.0, (n, D))
    labels = (factors[:, 0] > factors[:, 1]).astype(np.int64)
    features = Features(
        rows={"z": 3 + 5 * factors @ turn},
        sites={"z": "hook_pooled"},
        layers={"z": None},
        n_images=n,
        labels=labels,
        class_names=("second", "first"),
        ids=tuple(f"made/{first + i}" for i in range(n)),
    )
    return features, factors


def test_linear_columns_are_found_and_shuffled_ones_are_not():
    features, factors = made(500)
    shuffled = np.random.default_rng(1).permuted(factors[:, 3:6], axis=0)
    found = learn_projection(features["z"], np.concatenate([factors[:, :3], shuffled], axis=1), rate=0.05)
    assert found.similarity[:3].min() > 0.97, "linear in the features"
    assert found.similarity[3:].max() < 0.2, "of other images"
    turn = np.linalg.qr(np.random.default_rng(99).standard_normal((D, D)))[0]
    learned = found.weight[:3] / np.linalg.norm(found.weight[:3], axis=1, keepdims=True)
    assert (learned * turn[:3]).sum(1).min() > 0.95, "the directions are the planted ones"


def test_cubed_cosine_by_hand():
    a, b = np.random.default_rng(0).standard_normal((2, 30, 3))
    x, y = ((m - m.mean(0)) ** 3 for m in (a, b))
    expected = (x * y).sum(0) / np.linalg.norm(x, axis=0) / np.linalg.norm(y, axis=0)
    found = cubed_cosine(torch.from_numpy(1e6 * a), torch.from_numpy(1e-6 * b)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_stops_when_held_out_similarity_falls():
    generator = np.random.default_rng(0)
    x, noise = generator.standard_normal((60, 40)), generator.standard_normal((60, 2))
    early = learn_projection(x, noise, rate=0.05, patience=5)
    assert early.steps < 100 and early.similarity.max() < 0.9


def test_whole_recipe():
    (train, factors), (test, _) = made(500), made(300, 5000, seed=7)
    generator = np.random.default_rng(3)
    activations = np.stack(
        [
            0.1 + 0.1 * factors[:, 0],
            0.1 + 0.1 * factors[:, 1],
            0.1 + 0.1 * generator.permutation(factors[:, 2]),
            0.02 * factors[:, 3],
        ],
        axis=1,
    )
    names = ["first thing", "second thing", "unrelated", "never shown"]
    found = label_free(train, test, names, activations, rate=0.02, draws=1)
    filtered = found.tables["filtered"]
    assert filtered["kept"].to_list() == [True, True, False, False]
    assert "similarity" in filtered["why"][2] and "five highest" in filtered["why"][3]
    assert filtered["similarity"][3] is None
    assert found.concepts.names == ("first thing", "second thing") and found.facts["layer"] == "linear"
    assert found.pick(what="bottleneck")["accuracy"] > 0.97
    weights = {(row["class"], row["concept"]): row["weight"] for row in found.weights().to_dicts()}
    assert weights["first", "first thing"] > 0 > weights["first", "second thing"]


def test_texts_are_filtered():
    texts = ["red", "crimson", "dog", "a very long description of something"]
    embeddings = np.array([[1.0, 0.0, 0.0], [1.0, 0.1, 0.0], [0.0, 1.0, 0.1], [0.0, 0.0, 1.0]])
    found = filter_texts(texts, embeddings, class_embeddings=np.array([[0.0, 1.0, 0.0]]))
    assert found["kept"].to_list() == [True, False, False, False]
    assert "'red'" in found["why"][1] and "class name" in found["why"][2] and "36 characters" in found["why"][3]
    assert filter_texts(texts, embeddings, longest=100, from_each_other=1.1)["kept"].all()
    with pytest.raises(BadData, match="none of the 1 texts is kept"):
        filter_texts(["too long"], np.ones((1, 2)), longest=3)
    with pytest.raises(ShapeMismatch, match="2 texts and 1 embeddings"):
        filter_texts(["a", "b"], np.ones((1, 2)))


def test_bad_input():
    (train, factors), (test, _) = made(100), made(50, 5000)
    with pytest.raises(ShapeMismatch, match=r"activations are \[training image concept\]"):
        label_free(train, test, ["a"], factors[:, :2])
    with pytest.raises(BadData, match="no text is active"):
        label_free(train, test, ["a"], np.zeros((100, 1)) + 0.01 * factors[:, :1])
    with pytest.raises(BadData, match="no concept is known to the backbone"):
        label_free(train, test, ["a"], np.random.default_rng(0).random((100, 1)), steps=20)
    with pytest.raises(BadData, match="same activation on every image"):
        learn_projection(train["z"], np.ones((100, 1)))
    with pytest.raises(BadData, match="at least ten"):
        learn_projection(train["z"][:20], factors[:20])
    with pytest.raises(ShapeMismatch, match="features of 100 images"):
        learn_projection(train["z"], factors[:50])
    with pytest.raises(OutOfRange, match="share lies between"):
        learn_projection(train["z"], factors, share=1.0)
