"""Planted pictures: what is drawn where, and that to draw again changes one thing only."""

import pytest
import torch

from mechvis.errors import OutOfRange, ShapeMismatch, UnknownName
from mechvis.testing.evidence import drawing
from mechvis.testing.evidence.names import VARIANTS, variant
from mechvis.testing.evidence.scenes import Scenes

NAMES = list(VARIANTS)


@pytest.mark.parametrize("name", NAMES)
class TestVariants:
    def test_the_first_images_of_a_longer_draw_are_the_same(self, name):
        short, long = variant(name).draw(3, 5), variant(name).draw(9, 5)
        assert torch.equal(short.pixels, long.pixels[:3])
        assert torch.equal(short.truth, long[:3].truth)
        assert not torch.equal(short.pixels, variant(name).draw(3, 6).pixels)

    def test_truth_and_decoys_are_where_the_marks_are(self, name):
        scenes = variant(name).draw(40, 1)
        bare = scenes
        for slot in range(scenes.kinds.shape[1]):
            bare = bare.with_kind(slot, drawing.NONE)
        drawn = (scenes.pixels - bare.pixels).abs().amax(1)
        touched = drawn.unflatten(1, (8, 4)).unflatten(3, (8, 4)).amax((2, 4)).flatten(1) > 0
        marked = scenes.truth.any(1) | scenes.decoys.any(1)
        assert bool((touched <= marked).all())
        assert not bool((scenes.truth & scenes.decoys).any())
        assert torch.allclose(bare.pixels, scenes.ground)

    def test_marks_never_share_a_cell(self, name):
        cells = variant(name).draw(200, 2).cells
        assert all(len(set(row)) == len(row) for row in cells.tolist())

    def test_every_explained_class_has_evidence_in_test_images(self, name):
        scenes = variant(name).draw(50, 3)
        classes = scenes.variant.explained(scenes)
        sizes = scenes.truth[torch.arange(50)[:, None], classes].sum(2)
        assert set(sizes.flatten().tolist()) == {8 if name in ("redundant", "two_heads") else 4}

    def test_training_images_lack_evidence_now_and_then(self, name):
        scenes = variant(name).draw(400, 4, training=True)
        missing = (scenes.kinds == drawing.NONE).any(1).float().mean()
        assert 0.05 < missing < 0.7

    def test_every_check_changes_the_picture(self, name):
        scenes = variant(name).draw(30, 5)
        for check in scenes.variant.checks():
            changed = check.changed(scenes)
            assert bool((changed.pixels != scenes.pixels).flatten(1).any(1).all()), check.name
            assert torch.equal(changed.ground, scenes.ground)


def test_class_specific_truth_of_one_class_is_the_decoy_of_the_other():
    scenes = variant("class_specific").draw(30, 0)
    first, second = scenes.kinds[:, 0], scenes.kinds[:, 1]
    rows = torch.arange(30)
    assert bool((scenes.truth[rows, first] <= scenes.decoys[rows, second]).all())
    assert bool((scenes.truth[rows, second] <= scenes.decoys[rows, first]).all())
    absent = ~scenes.variant.present(scenes)
    assert not bool(scenes.truth[absent].any())


def test_two_heads_label_is_whether_colours_agree():
    scenes = variant("two_heads").draw(300, 0)
    same = scenes.kinds[:, 0] == scenes.kinds[:, 1] - 3
    assert torch.equal(scenes.labels.bool(), same)
    assert 0.4 < same.float().mean() < 0.6
    alone = scenes.with_kind(0, drawing.NONE)
    assert not bool(alone.truth.any())


def test_shortcut_agrees_with_the_shape_in_the_stated_share_of_training_images():
    scenes = variant("shortcut").draw(4000, 0, training=True)
    there = scenes.kinds[:, 0] >= 0
    agree = (scenes.kinds[:, 1] - 4 == scenes.kinds[:, 0])[there].float().mean()
    assert 0.95 < agree < 0.975  # 0.95 and a quarter of the rest by chance
    corners = torch.tensor([0, 3, 12, 15])
    assert bool(torch.isin(scenes.cells[:, 1], corners).all())
    assert not bool(torch.isin(scenes.cells[:, [0, 2]], corners).any())


def test_marks_have_the_energy_that_was_asked():
    mark = drawing.bitmap("plus", "red", 0.5)
    assert float(mark.square().mean().sqrt()) == pytest.approx(0.5)
    assert mark[0, 4, 4] > 0 and mark[0, 0, 0] == 0


def test_moved_marks_go_to_a_free_cell():
    scenes = variant("object").draw(50, 0)
    free = scenes.free_cell()
    assert not bool((free[:, None] == scenes.cells).any())
    assert torch.equal(scenes.moved(0, free).truth[:, 0], drawing.patches_of(free, torch.ones(50, dtype=torch.bool)))


def test_bad_inputs_say_what_to_do():
    with pytest.raises(OutOfRange, match="at least one image"):
        variant("object").draw(0)
    with pytest.raises(UnknownName, match="class_specific"):
        variant("class_spezific")
    scenes = variant("object").draw(3)
    with pytest.raises(ShapeMismatch, match="not about the same images"):
        Scenes(variant=scenes.variant, kinds=scenes.kinds, cells=scenes.cells, ground=scenes.ground[:2])
