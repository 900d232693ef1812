"""The area by hand; few concepts are enough where the library is right; choices are made on validation images."""

import numpy as np
import pytest

from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch, SplitOverlap, UnknownName
from probes.concept_tests.inherent import (
    InherentInterpretability,
    area,
    concept_activations,
    concept_library,
    inherent_interpretability,
    sparsified,
    study,
)

WIDTH, CLASSES = 24, 6


def drawn(n, seed):
    """Each class is one direction of many; the rest is noise, as strong together but spread over all others."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, n)
    basis = np.linalg.qr(np.random.default_rng(99).normal(size=(WIDTH, WIDTH)))[0]
    return (2.0 * np.eye(WIDTH)[labels] + 0.6 * generator.normal(size=(n, WIDTH))) @ basis, labels


@pytest.fixture(scope="module")
def splits():
    return drawn(400, 0), drawn(300, 1), drawn(500, 2)


@pytest.fixture(scope="module")
def true_library():
    return np.linalg.qr(np.random.default_rng(99).normal(size=(WIDTH, WIDTH)))[0]


@pytest.fixture(scope="module")
def found(splits, true_library):
    return inherent_interpretability(*splits, true_library, strengths=(0.1, 1.0), random_draws=2, progress=False)


def test_the_example_of_the_specification():
    retained = np.array([0.80, 0.78, 0.70, 0.50]) / 0.82
    assert area(retained, [0, 0.5, 0.9, 0.98]) == pytest.approx(0.9012, abs=5e-5)
    by_hand = 0.5 * (0.80 + 0.78) / 2 + 0.4 * (0.78 + 0.70) / 2 + 0.08 * (0.70 + 0.50) / 2
    assert area(retained, [0, 0.5, 0.9, 0.98]) == pytest.approx(by_hand / 0.82, abs=1e-12)
    assert area(np.ones(8)) == pytest.approx(0.98)


def test_the_right_library_needs_few_concepts(found):
    given, random = found.pick(library="given"), found.pick(library="random")
    assert given["iis"] > 0.85 and given["low"] < given["iis"] < given["high"] and given["n"] == 500
    assert random["iis"] < given["low"] and random["draws"] == 2
    assert given["iis_per_width"] == pytest.approx(given["iis"] / 0.98)
    assert len(found.caveats) == 1 and found.iis("random") == random["iis"]
    curve = found.tables["curve"]
    at = {(r["library"], r["sparsity"]): r["retained"] for r in curve.iter_rows(named=True)}
    assert at["given", 0.0] == pytest.approx(1.0, abs=0.02), "a full basis loses nothing: it is a rotation"
    assert at["given", 0.95] > at["random", 0.95] + 0.1
    assert found.iis() == pytest.approx(area(curve.filter(curve["library"] == "given")["retained"].to_list()))


def test_random_concepts_are_told_from_random_ones_never(splits):
    library = concept_library(splits[0][0], 24, "random", seed=50)
    nothing = inherent_interpretability(*splits, library, strengths=(1.0,), random_draws=2, progress=False)
    assert "A random library of equal size does as well" in nothing.caveats[1]


def test_choices_are_made_on_validation_images(splits):
    """Test labels may be anything: they choose nothing."""
    train, validation, (z, labels) = splits
    shuffled = np.random.default_rng(0).permutation(labels)
    strengths = (0.001, 1.0)
    right, chosen = study._best([train, validation, (z, labels)], strengths)
    wrong, chosen_too = study._best([train, validation, (z, shuffled)], strengths)
    assert chosen == chosen_too and wrong.mean() < 0.4 < right.mean()
    # Validation labels do choose.
    noisy = np.random.default_rng(1).permutation(validation[1])
    scores = [study._best([train, (validation[0], noisy), (z, labels)], [one])[0].mean() for one in strengths]
    assert scores[0] != scores[1]


def test_saved_and_loaded(found, tmp_path):
    again = InherentInterpretability.load(found.save(tmp_path))
    assert again.iis() == found.iis() and again.tables["curve"].equals(found.tables["curve"])
    assert "area under the curve" in again.report(tmp_path / "r.html").read_text(encoding="utf-8")


def test_the_largest_by_size_are_left():
    a = np.array([[1.0, -3.0, 2.0, 0.5], [0.0, 0.0, 0.1, 0.0]])
    assert sparsified(a, 0.75).tolist() == [[0, -3.0, 0, 0], [0, 0, 0.1, 0]]
    assert sparsified(a, 0.98).tolist() == sparsified(a, 0.75).tolist(), "at least one"
    assert sparsified(a, 0.0).tolist() == a.tolist() and sparsified(a, 0.0) is not a
    ten = np.arange(1.0, 11.0)[None]
    assert [(sparsified(ten, s) != 0).sum() for s in (0.1, 0.3, 0.5, 0.7, 0.9, 0.95)] == [9, 7, 5, 3, 1, 1]
    plain = np.where(np.abs(a) >= np.sort(np.abs(a), axis=1)[:, [-2]], a, 0)
    assert sparsified(a, 0.5)[0].tolist() == plain[0].tolist()
    with pytest.raises(OutOfRange, match="sparsity=1"):
        sparsified(a, 1)


@pytest.mark.parametrize("kind", ["kmeans", "prototypes", "random"])
def test_libraries(splits, kind):
    z, labels = splits[0]
    library = concept_library(z, 12, kind, labels=labels, seed=3)
    assert library.shape == (12, WIDTH)
    np.testing.assert_allclose(np.linalg.norm(library, axis=1), 1, atol=1e-12)
    np.testing.assert_array_equal(library, concept_library(z, 12, kind, labels=labels, seed=3))


def test_prototypes_are_spread_over_classes(splits):
    z, labels = splits[0]
    library = concept_library(z, 2 * CLASSES, "prototypes", labels=labels)
    centred = z - z.mean(0)
    which = (centred / np.linalg.norm(centred, axis=1, keepdims=True) @ library.T).argmax(0)
    assert np.bincount(labels[which]).tolist() == [2] * CLASSES


def test_clusters_find_the_classes(splits):
    z, labels = splits[0]
    library = concept_library(z, CLASSES)
    nearest = concept_activations(z, library, mean=z.mean(0)).argmax(1)
    assert np.mean([np.bincount(labels[nearest == j]).max() / (nearest == j).sum() for j in range(CLASSES)]) > 0.9


def test_what_is_refused(splits, true_library):
    train, validation, test = splits
    names = [f"a{i}" for i in range(400)], [f"b{i}" for i in range(300)], [f"a{i}" for i in range(500)]
    with pytest.raises(SplitOverlap, match=r"400 images are both training and test images, e\.g\. 'a0'"):
        inherent_interpretability(train, validation, test, true_library, ids=names)
    with pytest.raises(SplitOverlap, match="the validation and the test images are the same"):
        inherent_interpretability(train, test, test, true_library)
    with pytest.raises(ShapeMismatch, match=r"the library is \[concept 24\]"):
        inherent_interpretability(train, validation, test, np.eye(3))
    with pytest.raises(ShapeMismatch, match="validation: representations"):
        inherent_interpretability(train, (validation[0], validation[1][:5]), test, true_library)
    with pytest.raises(NotFinite, match="row 2 of the representations"):
        broken = np.where(np.arange(400)[:, None] == 2, np.inf, train[0])
        inherent_interpretability((broken, train[1]), validation, test, true_library)
    with pytest.raises(BadData, match=r"test images of the classes \[9\]"):
        inherent_interpretability(train, validation, (test[0], np.full(500, 9)), true_library)
    with pytest.raises(BadData, match="all of one class"):
        inherent_interpretability((train[0], np.zeros(400, int)), validation, test, true_library)
    with pytest.raises(OutOfRange, match="random_draws=0"):
        inherent_interpretability(train, validation, test, true_library, random_draws=0)
    with pytest.raises(OutOfRange, match="sparsities ascend"):
        area([1, 1], [0.5, 0.1])
    with pytest.raises(ShapeMismatch, match="at least two"):
        area([1], [0])
    with pytest.raises(UnknownName, match="unknown kind of library 'pca'"):
        concept_library(train[0], 3, "pca")
    with pytest.raises(OutOfRange, match="k=401"):
        concept_library(train[0], 401)
    with pytest.raises(BadData, match="are all images alike"):
        concept_library(np.ones((5, 2)), 2, "prototypes")
    with pytest.raises(ShapeMismatch, match="representations are 24 wide"):
        concept_activations(train[0], np.eye(3), mean=np.zeros(24))


def test_a_representation_that_says_nothing():
    generator = np.random.default_rng(0)
    sides = [(np.zeros((n, 3)), np.arange(n) % 2) for n in (40, 20, 22)]
    with pytest.raises(BadData, match="there is nothing to retain"):
        inherent_interpretability(*sides, generator.normal(size=(3, 3)), progress=False)
