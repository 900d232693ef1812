"""A unit of two concepts, a unit of one, and a unit of none; then the same with scenes-clip's embeddings."""

import numpy as np
import pytest

import mechvis
from mechvis.data import scenes
from mechvis.data.scene_factors import BACKGROUNDS, COLOURS, SHAPES
from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch
from probes.unit_labels import polysemantic
from probes.unit_labels.polysemantic import over_the_range

N, D, TEXTS = 1500, 48, 20


@pytest.fixture(scope="module")
def world():
    """Images with a few of 20 concepts, embeddings with a direction per concept and a large common mean."""
    generator = np.random.default_rng(0)
    atoms = np.linalg.qr(generator.standard_normal((D, TEXTS)))[0].T
    there = generator.random((2 * N, TEXTS)) < 0.1
    mean = 2 * generator.standard_normal(D) / np.sqrt(D)
    images = mean + there @ atoms + 0.05 * generator.standard_normal((2 * N, D))
    texts = 1.5 * generator.standard_normal(D) / np.sqrt(D) + atoms
    return there, images, texts, [f"text {i}" for i in range(TEXTS)]


def study(world, unit, **settings):
    _, images, texts, names = world
    unit = unit + 0.05 * np.random.default_rng(1).standard_normal(2 * N)
    return polysemantic(unit[:N], images[:N], texts, names, (unit[N:], images[N:]), named=1, **settings)


def test_a_unit_of_two_concepts(world):
    there = world[0]
    exclusive = there[:, 3] ^ there[:, 8]
    found = study(world, np.maximum(there[:, 3], there[:, 8]) * exclusive * 1.0, retrieved=0.05)
    assert {one.texts[0] for one in found.descriptions} == {"text 3", "text 8"}
    assert found.is_polysemantic and found.polysemanticity > found.random_95
    assert sum(one.share for one in found.descriptions) == pytest.approx(1)
    assert all(one.auc > 0.95 and one.difference > 1 for one in found.descriptions)


def test_a_unit_of_one_concept(world):
    found = study(world, world[0][:, 5] * 1.0)
    assert [one.texts for one in found.descriptions] == [("text 5",)]
    assert found.polysemanticity == 0 and not found.is_polysemantic and np.isnan(found.random_95)
    assert found.best.auc > 0.95 and found.best.n > 100


def test_one_concept_cut_in_several_is_put_together(world):
    """Forced into groups, all are about the same thing."""
    found = study(world, world[0][:, 5] * 1.0, least=-1.0)
    assert len(found.descriptions) == 1 and not np.isnan(found.silhouette) and not found.is_polysemantic


def test_groups_by_what_else_is_in_the_images_do_not_count(world):
    """The unit is about one concept; each image also has one of four others, which split the unit's images."""
    there, _, texts, names = world
    generator = np.random.default_rng(7)
    atoms = texts - texts.mean(0)
    mine, other = generator.random(2 * N) < 0.1, generator.integers(0, 4, 2 * N)
    images = texts.mean(0) + mine[:, None] * atoms[5] + 1.6 * atoms[other]
    images = images + 0.1 * generator.standard_normal(images.shape)
    found = study((there, images, texts, names), mine * 1.0)
    assert len(found.descriptions) > 1 and found.polysemanticity > found.random_95, "the groups do differ"
    assert not found.is_polysemantic and len(found.holding()) < 2


def test_a_unit_of_noise_has_no_description(world):
    noise = np.random.default_rng(3).standard_normal(2 * N)
    found = study(world, noise)
    assert max(one.auc for one in found.descriptions) < 0.6 and not found.is_polysemantic


def test_images_are_drawn_over_the_range():
    generator = np.random.default_rng(0)
    a = generator.exponential(size=20_000)
    chosen = over_the_range(a, 500, 0.001, generator)
    assert len(chosen) <= 520 and np.isin(np.argsort(-a)[:20], chosen).all()
    part = np.minimum((a[chosen] / a.max() * 10).astype(int), 9)
    counts = np.bincount(part, minlength=10)
    assert counts[:6].min() > 40, "uniform draws would take nine in ten from the lowest two parts"
    np.testing.assert_array_equal(over_the_range(a[:50], 500, 0.01, generator), np.arange(50))


def test_polysemantic_refuses_what_does_not_fit(world):
    _, images, texts, names = world
    a, new = images[:N, 0], (images[N:, 0], images[N:])
    with pytest.raises(ShapeMismatch, match="19 names"):
        polysemantic(a, images[:N], texts, names[:-1], new)
    with pytest.raises(ShapeMismatch, match="new images"):
        polysemantic(a, images[:N], texts, names, (a[:5], images[N:]))
    with pytest.raises(BadData, match="constant"):
        polysemantic(np.ones(N), images[:N], texts, names, new)
    with pytest.raises(OutOfRange, match="fires=1"):
        polysemantic(a, images[:N], texts, names, new, fires=1)
    with pytest.raises(NotFinite):
        polysemantic(a * np.nan, images[:N], texts, names, new)
    lonely = np.zeros(N)
    lonely[3] = 1
    with pytest.raises(BadData, match="1 images make the unit active"):
        polysemantic(lonely, images[:N], texts, names, new)


def test_scenes_clip_embeddings_tell_two_concepts_apart():
    clip, images = mechvis.load("scenes-clip"), scenes(640, seed=41)
    words = [*SHAPES, *COLOURS, *BACKGROUNDS]
    embeddings, texts = clip.encode_image(images).numpy(), clip.encode_text(words).numpy()
    there = {word: np.zeros(640) for word in words}
    for column in (np.array(SHAPES)[images.labels], images.columns["colour"], images.columns["background"]):
        for word in np.unique(column):
            there[word] = (column == word) * 1.0
    noise = 0.05 * np.random.default_rng(0).standard_normal(640)

    def run(unit):
        unit = unit + noise
        return polysemantic(
            unit[:400], embeddings[:400], texts, words, (unit[400:], embeddings[400:]), named=1, most=2, retrieved=0.05
        )

    two = run(np.maximum(there["heart"], there["ring"]))
    assert {one.texts[0] for one in two.descriptions} == {"heart", "ring"}
    assert two.is_polysemantic and min(one.auc for one in two.descriptions) > 0.95
    one = run(there["star"])
    assert not one.is_polysemantic and one.best.texts == ("star",) and one.best.auc > 0.95
