"""Tags and the failure modes of scenes-vit: its shortcut makes it fail on some backgrounds, and CLIP can name them."""

import numpy as np
import pytest

import mechvis
from mechvis.data.scene_factors import BACKGROUNDS
from mechvis.errors import BadData, NotFinite, ShapeMismatch, SplitOverlap, UnknownName
from probes.concept_scope import clip_tags, column_tags, failure_modes_of_model
from probes.concept_scope.tags import otsu


@pytest.fixture(scope="module")
def vit():
    return mechvis.load("scenes-vit")


@pytest.fixture(scope="module")
def images():
    return mechvis.data.scenes(n=900, seed=61)


def test_otsu_is_the_best_of_all_splits():
    generator = np.random.default_rng(0)
    values = np.concatenate([generator.normal(0, 1, 70), generator.normal(8, 1, 30)])
    threshold, separation = otsu(values)
    assert 2.5 < threshold < 6 and separation > 0.9

    def between(limit):
        low, high = values[values <= limit], values[values > limit]
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2 / len(values) ** 2

    assert between(threshold) == pytest.approx(max(between(limit) for limit in np.sort(values)[:-1]))
    assert otsu(generator.normal(size=50_000))[1] == pytest.approx(2 / np.pi, abs=0.01), "one normal group"
    assert otsu(np.array([1.0, 1.0, 1.0, 2.0]))[0] == 1.5
    with pytest.raises(BadData, match="same for all images"):
        otsu(np.ones(5))
    with pytest.raises(NotFinite):
        otsu(np.array([0.0, np.nan]))


def test_clip_names_the_background(images):
    clip = mechvis.load("scenes-clip")
    found = clip_tags(clip, images[:300], [f"a {background} background" for background in BACKGROUNDS[:4]])
    for tag, background in enumerate(BACKGROUNDS[:4]):
        truth = images.columns["background"][:300] == background
        assert (found.true[:, tag] == truth).mean() > 0.98
    assert (found.separation > 0.64).all()
    with pytest.raises(BadData, match="no texts"):
        clip_tags(clip, images, [])


def test_the_backgrounds_that_mislead_scenes_vit_are_found_and_confirmed(vit, images):
    others = mechvis.data.scenes(n=900, seed=62)
    found = failure_modes_of_model(
        vit,
        images,
        column_tags(images, ["background", "colour"]),
        "heart",
        held_out=(others, column_tags(others, ["background", "colour"])),
        support=8,
    )
    assert ("background=diagonal",) in found.sets()
    assert not any("colour" in tag for tags in found.sets() for tag in tags), "colour has nothing to do with it"
    worst = found.table.row(0, named=True)
    assert worst["held_out_high"] < found.facts["accuracy"] and worst["p_adjusted"] < 0.05
    with pytest.raises(SplitOverlap, match="found on and confirmed on"):
        tags = column_tags(images, ["background"])
        failure_modes_of_model(vit, images, tags, "heart", held_out=(images, tags))


def test_bad_input(vit, images):
    tags = column_tags(images, ["background"])
    with pytest.raises(UnknownName, match="unknown column"):
        column_tags(images, ["texture"])
    with pytest.raises(BadData, match="bin it before"):
        column_tags(images, ["x"])
    with pytest.raises(BadData, match="no column is named"):
        column_tags(images, [])
    with pytest.raises(UnknownName, match="unknown class 'hart'"):
        failure_modes_of_model(vit, images, tags, "hart")
    with pytest.raises(ShapeMismatch, match="900 images but 5 rows"):
        failure_modes_of_model(vit, images, tags[:5], "heart")
    with pytest.raises(BadData, match="other tags than the images"):
        others = mechvis.data.scenes(n=20, seed=3)
        failure_modes_of_model(vit, images, tags, "heart", held_out=(others, column_tags(others, ["colour"])))
