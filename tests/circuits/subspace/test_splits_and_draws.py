"""The behaviour comes first; splits are by image; pairs stay inside a split and inside a group."""

import pytest
import torch

from circuits.subspace import Drawer, label_variable, split_images
from mechvis.errors import BadData, RefusedMethod, ShapeMismatch, SplitOverlap

N = 120


@pytest.fixture
def variable():
    return label_variable(torch.arange(N) % 3, name="shape")


def test_splits_are_disjoint_and_complete(variable):
    held_out = torch.arange(N) >= 90
    splits = split_images(variable, variable.labels, held_out=held_out, seed=4)
    every = torch.cat(splits.groups)
    assert every.sort().values.tolist() == list(range(N))
    assert splits.unseen.tolist() == list(range(90, N))
    assert splits.counts == {"train": 45, "validation": 18, "test": 27, "unseen": 30, "dropped": 0}
    again = split_images(variable, variable.labels, held_out=held_out, seed=4)
    assert torch.equal(splits.train, again.train)
    assert not torch.equal(splits.train, split_images(variable, variable.labels, held_out=held_out, seed=5).train)


def test_images_without_the_behaviour_are_dropped_and_counted(variable):
    predicted = variable.labels.clone()
    predicted[:10] = (predicted[:10] + 1) % 3
    splits = split_images(variable, predicted)
    assert splits.dropped == 10 and min(int(part.min()) for part in splits.groups) >= 10
    assert splits.unseen is None and "unseen" not in splits.counts


def test_too_many_are_refused_with_the_count(variable):
    predicted = variable.labels.clone()
    predicted[:13] = (predicted[:13] + 1) % 3
    with pytest.raises(RefusedMethod, match=r"13 of 120 images \(10.8%\); at most 10%"):
        split_images(variable, predicted)
    assert split_images(variable, predicted, max_dropped=0.2).dropped == 13


def test_versions_of_a_scene_stay_together(variable):
    scene = torch.arange(N) // 4
    splits = split_images(variable, variable.labels, together=scene.tolist())
    names = [set(scene[part].tolist()) for part in splits.groups]
    assert not (names[0] & names[1] or names[0] & names[2] or names[1] & names[2])


def test_versions_of_a_scene_are_held_out_together(variable):
    scene, held_out = torch.arange(N) // 4, torch.arange(N) >= 90
    with pytest.raises(SplitOverlap, match="1 names of together= have images on both sides"):
        split_images(variable, variable.labels, together=scene, held_out=held_out)
    held_out = torch.arange(N) >= 88
    assert len(split_images(variable, variable.labels, together=scene, held_out=held_out).unseen) == 32


@pytest.mark.parametrize(
    ("more", "error", "text"),
    [
        ({"held_out": torch.zeros(3, dtype=torch.bool)}, ShapeMismatch, "3 entries in held_out"),
        ({"together": [1, 2]}, ShapeMismatch, "2 entries in together"),
        ({"fractions": (0.5, 0.5, 0.5)}, BadData, "sum to at most 1"),
        ({"fractions": (0.98, 0.01, 0.01)}, BadData, "the validation split has 1 images"),
        ({"held_out": torch.arange(N) == 0}, BadData, "the unseen split has 1 images"),
    ],
)
def test_splits_that_cannot_be(variable, more, error, text):
    with pytest.raises(error, match=text):
        split_images(variable, variable.labels, **more)


def test_pairs_stay_inside_and_never_meet_themselves():
    images = torch.arange(5, 40)
    within = torch.arange(N) % 4
    pairs = Drawer(images, within=within, seed=1).draw(3000)
    assert set(pairs.base.tolist()) == set(images.tolist()) == set(pairs.source.tolist())
    assert bool((pairs.base != pairs.source).all())
    assert torch.equal(within[pairs.base], within[pairs.source])
    # Every partner of one base, about equally often.
    partners = pairs.source[pairs.base == 5].bincount(minlength=40)
    assert set(partners.nonzero().flatten().tolist()) == {9, 13, 17, 21, 25, 29, 33, 37}


def test_rounds_use_every_base_equally_often():
    pairs = Drawer(torch.arange(7), seed=0).rounds(20)
    assert len(pairs) == 21 and pairs.base.bincount().tolist() == [3] * 7


def test_draws_are_reproducible_and_touch_no_random_state():
    before = torch.get_rng_state()
    one, other = (Drawer(torch.arange(9), seed=3).draw(50) for _ in range(2))
    assert torch.equal(one.source, other.source) and torch.equal(before, torch.get_rng_state())
    assert not torch.equal(one.source, Drawer(torch.arange(9), seed=4).draw(50).source)


def test_images_without_partner_are_never_drawn():
    drawer = Drawer(torch.arange(5), within=[0, 0, 1, 2, 2], seed=0)
    assert drawer.alone == 1 and 2 not in drawer.draw(200).base.tolist()
    with pytest.raises(BadData, match="none of the 3 images has a partner"):
        Drawer(torch.arange(3), within=[0, 1, 2])
    with pytest.raises(ShapeMismatch, match="one name per image"):
        Drawer(torch.arange(3), within=[0, 1])
