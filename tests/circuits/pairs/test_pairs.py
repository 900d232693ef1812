"""Pairs of one's own images, the nearest image of another class, the choice by name, and the check of pairs."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import mechvis
from circuits.pairs import Pairs, aligned, check_pairs, make_pairs, nearest_other_class, scene_swap
from circuits.pairs.classes import pair_classes
from circuits.pairs.make import CHANGES
from mechvis import testing
from mechvis.errors import BadData, BadImages, MechvisError, OutOfRange, ShapeMismatch, UnknownName

# aligned


def test_aligned_sets(model):
    drawn = mechvis.data.scene_pairs(5, seed=1, change="object")
    pairs = aligned(model, drawn.clean, drawn.corrupt)
    exact = scene_swap(model, n=5, seed=1, change="object")
    for field in ("clean", "corrupt", "clean_labels", "corrupt_labels", "masks", "corrupt_masks"):
        assert torch.equal(getattr(pairs, field), getattr(exact, field)), field
    assert pairs.ids == exact.ids
    other = aligned(model, drawn.clean, drawn.corrupt, clean_labels=[1, 2, 3, 4, 5], name="mine")
    assert other.clean_labels.tolist() == [1, 2, 3, 4, 5] and other.name == "mine"


def test_labels_are_matched_by_name(model):
    drawn = mechvis.data.scene_pairs(5, seed=1, change="object")
    names = tuple(sorted(drawn.clean.class_names))
    place = np.array([names.index(name) for name in drawn.clean.class_names])
    by_alphabet = [replace(part, labels=place[part.labels], class_names=names) for part in (drawn.clean, drawn.corrupt)]
    pairs = aligned(model, *by_alphabet)
    assert pairs.clean_labels.tolist() == drawn.clean.labels.tolist()
    strange = replace(drawn.clean, class_names=("dodo", *drawn.clean.class_names[1:]), labels=np.zeros(5, int))
    with pytest.raises(BadData, match="'dodo'"):
        aligned(model, strange, drawn.corrupt)


def test_aligned_pixels_in_the_models_type(model):
    pixels = torch.rand(3, 3, 64, 64, dtype=torch.float64) - 0.5
    pairs = aligned(model, pixels, pixels.flip(0))
    assert pairs.clean.dtype == torch.float32 and pairs.ids == ("pair 0", "pair 1", "pair 2")
    model.run(pairs.clean)
    double = mechvis.load(testing.tiny("vit", dtype=torch.float64), preprocess=testing.tiny_preprocess())
    images = testing.tiny_input("vit")
    assert aligned(double, images, images.flip(0)).clean.dtype == torch.float64


def test_pairs_that_do_not_align(model, images):
    pixels = images.pixels_for(model.preprocess)
    other = pixels.flip(0)
    for arguments, error, text in (
        ((images, images[:3]), ShapeMismatch, "16 clean images and 3 corrupt ones"),
        ((pixels, pixels), BadData, "all 16 corrupt images are equal"),
        ((pixels, other[..., :32]), BadImages, "expected images of 64 x 64"),
        ((pixels, other * float("inf")), BadImages, "NaN or Inf"),
        ((pixels * 255, other), BadImages, "0-255"),
        ((pixels, "folder"), BadImages, "corrupt: expected an ImageSet or pixels"),
    ):
        with pytest.raises(error, match=text):
            aligned(model, *arguments)
    for more, error, text in (
        ({"clean_labels": [1, 2]}, ShapeMismatch, "16 pairs but 2 entries in clean_labels"),
        ({"clean_labels": [8] * 16}, OutOfRange, "clean_labels hold 8; the model's classes are 0 to 7"),
        ({"corrupt_labels": [0.5] * 16}, ShapeMismatch, "class indices"),
        ({"masks": torch.ones(16, 64, 64)}, ShapeMismatch, "masks are bool"),
        ({"corrupt_masks": torch.ones(16, 8, 8, dtype=torch.bool)}, ShapeMismatch, r"got torch.bool \[16, 8, 8\]"),
    ):
        with pytest.raises(error, match=text):
            aligned(model, pixels, other, **more)
    assert issubclass(BadImages, MechvisError)


def test_equal_pairs_are_told(model, images, caplog):
    pixels = images.pixels_for(model.preprocess)
    corrupt = pixels.flip(0)
    corrupt[:2] = pixels[:2]
    with caplog.at_level("WARNING"):
        aligned(model, pixels, corrupt)
    assert "2 of 16 corrupt images are equal" in caplog.text


# nearest


def test_nearest_image_of_another_class(model, images):
    """By hand: the smallest Euclidean distance of the patches before the layer, among images of other classes."""
    candidates = mechvis.data.scenes(40, seed=77)
    pairs = nearest_other_class(model, images, candidates=candidates, layer=2, batch_size=7)
    ours, theirs = (
        model.run(part.pixels_for(model.preprocess), capture=["blocks.2.hook_resid_pre"]).cache["resid_pre", 2][:, 1:]
        for part in (images, candidates)
    )
    distance = (ours[:, None] - theirs[None]).double().flatten(2).norm(dim=2).numpy()
    distance[images.labels[:, None] == candidates.labels[None]] = np.inf
    nearest = distance.argmin(1)
    assert torch.equal(pairs.corrupt, candidates.pixels_for(model.preprocess)[nearest])
    assert pairs.corrupt_labels.tolist() == candidates.labels[nearest].tolist()
    assert torch.equal(pairs.corrupt_masks, candidates.masks_for(model.preprocess)[nearest])
    among = nearest_other_class(model, images)
    assert (among.clean_labels != among.corrupt_labels).all()


def test_nearest_refuses(model, images):
    with pytest.raises(BadData, match="matched images need labels"):
        nearest_other_class(model, replace(images, labels=None))
    with pytest.raises(OutOfRange, match="layer 9"):
        nearest_other_class(model, images, layer=9)
    alone = images[np.flatnonzero(images.labels == images.labels[0])]
    with pytest.raises(BadData, match="have no neighbour of another"):
        nearest_other_class(model, images, candidates=alone)
    with pytest.raises(BadImages, match="in an ImageSet"):
        nearest_other_class(model, images.pixels)


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_by_name(model, images, change):
    pairs = make_pairs(model, images, change, seed=1)
    assert isinstance(pairs, Pairs) and len(pairs) == 16 and pairs.clean_labels is not None
    assert torch.equal(pairs.clean, images.pixels_for(model.preprocess))
    assert pair_classes(model, pairs).clean.shape == (16, 8)


def test_an_unknown_change(model, images):
    with pytest.raises(UnknownName, match="Nearest: object"):
        make_pairs(model, images, "objects")


# check


class Fixed:
    """Logits by hand in the place of a model: the first pixel of an image says which row of a table it is."""

    def __init__(self, table):
        self.table, self.device, self.dtype = table, torch.device("cpu"), torch.float64
        self.parts = type("Parts", (), {"head": 1, "class_names": ("a", "b", "c")})

    def run(self, pixels):
        return type("Run", (), {"logits": self.table[pixels[:, 0, 0, 0].long()]})


def made(clean, corrupt, **more):
    """Pairs of rows of the table."""
    halves = [torch.tensor(rows, dtype=torch.float64)[:, None, None, None] for rows in (clean, corrupt)]
    names = tuple(f"p{i}" for i in range(len(clean)))
    return Pairs(name="rows", clean=halves[0], corrupt=halves[1], ids=names, class_names=("a", "b", "c"), **more)


SURE_A, SURE_B, FLAT_B, SPLIT = [9.0, 0, 0], [0, 9.0, 0], [0, 0.1, 0], [2.0, 2.1, 0]


def test_each_way_to_fail():
    model = Fixed(torch.tensor([SURE_A, SURE_B, FLAT_B, SPLIT], dtype=torch.float64))
    pairs = made([0, 1, 0, 0, 1], [1, 0, 0, 2, 1], clean_labels=torch.zeros(5, dtype=torch.int64))
    check = check_pairs(model, pairs, 1.0)
    assert check.wrong_clean.tolist() == [False, True, False, False, True]
    assert check.still_clean.tolist() == [False, True, True, False, False]
    assert check.collapsed.tolist() == [False, False, False, True, False]
    assert check.undistinguished.tolist() == [False, False, True, False, True]
    assert check.failing.tolist() == [False, True, True, True, True]
    assert (check.failing | ~check.undistinguished).all(), "undistinguished pairs fail"
    assert repr(check) == (
        "PairCheck('rows': 4 of 5 pairs fail; 2 wrong on clean, 2 still the clean class on corrupt, 1 collapsed on "
        "corrupt; 2 with one prediction for both halves)"
    )
    assert check.kept(pairs).ids == ("p0",)
    rows = check.table()
    assert rows["class"].to_list() == ["a"] * 5 and rows["on_corrupt"].to_list() == ["b", "a", "a", "b", "b"]
    assert rows["failing"].to_list() == check.failing.tolist()
    with pytest.raises(BadData, match=r"rows: 4 of 5 pairs fail \(2 wrong on clean, .*p1, p2, p3\), more than max_f"):
        check_pairs(model, pairs)
    assert len(check_pairs(model, pairs, 0.8)) == 5
    with pytest.raises(ShapeMismatch, match="these are other pairs"):
        check.kept(pairs[:2])
    with pytest.raises(BadData, match="all 1 pairs of 'rows' fail"):
        check_pairs(model, pairs[[1]], 1.0).kept(pairs[[1]])


def test_collapse_is_twice_the_entropy_of_clean():
    model = Fixed(torch.tensor([SURE_A, SURE_B, FLAT_B, SPLIT], dtype=torch.float64))
    pairs = made([0, 0, 3], [2, 1, 2], clean_labels=torch.tensor([0, 0, 1]))
    check = check_pairs(model, pairs, 1.0)

    def entropy(row):
        p = torch.tensor(row, dtype=torch.float64).softmax(0)
        return float(-(p * p.log()).sum())

    assert check.entropy_corrupt[0] == pytest.approx(entropy(FLAT_B))
    assert check.entropy_clean.tolist() == pytest.approx([entropy(SURE_A), entropy(SURE_A), entropy(SPLIT)])
    # Flat after sure is a collapse, flat after split is not.
    assert check.collapsed.tolist() == [True, False, False]
    assert not check_pairs(model, pairs, 1.0, entropy_ratio=None).collapsed.any()
    assert "collapsed" not in repr(check_pairs(model, pairs, 1.0, entropy_ratio=None))
    # A clean entropy of nearly nothing counts as a tenth of ln 3: a ratio of 10 000 between sure answers is none.
    sharper = Fixed(torch.tensor([[30.0, 0, 0], [0, 9.0, 0]], dtype=torch.float64))
    assert not check_pairs(sharper, made([0], [1]), 1.0).collapsed.any()


def test_without_labels_the_prediction_is_the_class():
    model = Fixed(torch.tensor([SURE_A, SURE_B, FLAT_B, SPLIT], dtype=torch.float64))
    check = check_pairs(model, made([1, 0], [0, 0]), 1.0)
    assert check.target.tolist() == [1, 0]
    assert check.wrong_clean.tolist() == [False, False] and check.still_clean.tolist() == [False, True]
    known = pair_classes(model, made([1, 3], [0, 1]))
    assert known.contrast.tolist() == [0, 0] and known.one_class.tolist() == [False, True], "best other class of clean"


def test_bad_checks(model, images):
    pairs = make_pairs(model, images, "object")
    with pytest.raises(OutOfRange, match="max_failing=2"):
        check_pairs(model, pairs, 2)
    with pytest.raises(OutOfRange, match="entropy_ratio=-1"):
        check_pairs(model, pairs, entropy_ratio=-1)
    with pytest.raises(BadData, match="got ImageSet"):
        check_pairs(model, images)


def test_scenes_vit_tells_object_swaps_apart(model):
    check = check_pairs(model, scene_swap(model, n=64, change="object", seed=500), 0.6)
    assert check.failing.mean() < 0.6 and check.undistinguished.mean() < 0.4
    pairs = check.kept(scene_swap(model, n=64, change="object", seed=500))
    assert not check_pairs(model, pairs, 0.0).failing.any()
