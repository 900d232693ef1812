"""Splits that share no image, and control tasks."""

import numpy as np
import pytest

from mechvis.errors import BadData, OutOfRange, ShapeMismatch, SplitOverlap
from probes.linear import Split, control_labels, split_images


def test_stratified_seeded_and_disjoint():
    target = np.repeat([0, 1], [80, 20])
    split = split_images(target, seed=3)
    assert split.sizes == {"train": 60, "validation": 10, "test": 30}
    assert (target[split.test] == 1).sum() == 6 and (target[split.validation] == 1).sum() == 2
    parts = np.concatenate([split.train, split.validation, split.test])
    assert len(np.unique(parts)) == 100
    np.testing.assert_array_equal(split_images(target, seed=3).train, split.train)
    assert (split_images(target, seed=4).train != split.train).any()


def test_groups_are_never_cut():
    together = np.arange(100) // 7
    split = split_images(np.arange(100) % 4, seed=0, together=together)
    parts = [set(together[part]) for part in (split.train, split.validation, split.test)]
    assert not parts[0] & parts[2] and not parts[0] & parts[1] and not parts[1] & parts[2]


def test_numbers_need_no_strata():
    assert split_images(np.random.default_rng(0).normal(size=50)).sizes["test"] == 15


def test_overlap_is_refused():
    with pytest.raises(SplitOverlap, match="train and the test part share 1 images"):
        Split(train=np.array([0, 1]), validation=np.array([], int), test=np.array([1, 2]))
    with pytest.raises(BadData, match="twice"):
        Split(train=np.array([0, 0]), validation=np.array([], int), test=np.array([2]))
    with pytest.raises(BadData, match="train part is empty"):
        Split(train=np.array([], int), validation=np.array([], int), test=np.array([2]))
    with pytest.raises(OutOfRange, match="names image 9"):
        Split(train=np.array([9]), validation=np.array([], int), test=np.array([2])).within(5)
    with pytest.raises(ShapeMismatch, match="list of positions"):
        Split(train=np.array([0.5]), validation=np.array([], int), test=np.array([2]))


def test_bad_fractions():
    with pytest.raises(BadData, match="at most 1"):
        split_images(np.zeros(9, int), (0.8, 0.2, 0.2))
    with pytest.raises(BadData, match="would be empty"):
        split_images(np.zeros(3, int), (0.9, 0.05, 0.05))
    with pytest.raises(ShapeMismatch, match="together"):
        split_images(np.zeros(9, int), together=np.zeros(3))


def test_control_labels():
    target, types = np.arange(60) % 3, np.arange(60) // 4
    drawn = control_labels(target, types, seed=0)
    assert all(len(set(drawn[types == name])) == 1 for name in range(15)), "one label per type"
    alone = control_labels(target, seed=0)
    assert sorted(alone) == sorted(target) and (alone != target).any(), "a permutation"
    np.testing.assert_array_equal(control_labels(target, types, seed=0), drawn)
    with pytest.raises(ShapeMismatch, match="one type per image"):
        control_labels(target, types[:5])
