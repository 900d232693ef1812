"""Optimised masks on models whose evidence is known, and what happens where the model looks at the context."""

import numpy as np
import pytest
import torch
from torch import nn

import mechvis
from circuits.masks import (
    SELF_CHECK,
    Masks,
    MaskSettings,
    _binarise,
    intersection_over_union,
    optimise_masks,
    read_masks,
    self_check,
)
from mechvis import testing
from mechvis.errors import FailedMasks, OutOfRange, ResultMismatch, ShapeMismatch

GRID, SIZE, CLASSES = 8, 16, 3
COARSE = MaskSettings(grid=GRID, weight_smooth=0.01, keep=0.35)


class SmoothEvidence(nn.Module):
    """Logits are the mean class evidence in the object region plus that outside it, each with its own gain.

    Pixels `[image 3 16 16]`: channel c is evidence for class c. A wrapped model is more than masks need: a callable
    with device, dtype and `inputs` is enough.
    """

    def __init__(self, region, object_gain, context_gain):
        super().__init__()
        weight = object_gain * region + context_gain * ~region
        self.weight = nn.Parameter(weight.double() / region.sum())

    def forward(self, pixels):
        return (pixels * self.weight).sum((-2, -1))

    device, dtype = torch.device("cpu"), torch.float64

    def inputs(self, pixels):
        return pixels


def region_of(rows, columns):
    region = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    region[rows, columns] = True
    return region


REGION = region_of(slice(4, 14), slice(2, 11))  # 90 of 256 pixels, 35 %


def scene(object_class, context_class, region=REGION):
    pixels = torch.zeros(1, CLASSES, SIZE, SIZE, dtype=torch.float64)
    pixels[:, object_class, region], pixels[:, context_class, ~region] = 1.0, 1.0
    return pixels


CONFLICTING = torch.cat([scene(0, 1), scene(2, 0)])


def test_a_model_of_the_object_gives_the_object():
    model = SmoothEvidence(REGION, object_gain=6.0, context_gain=0.0)
    masks = optimise_masks(model, CONFLICTING, settings=COARSE, fill="zero", progress=False)
    overlap = intersection_over_union(masks.masks, REGION.expand(2, -1, -1))
    assert (overlap > 0.75).all(), overlap
    assert not masks.failed.any() and (masks.divergence < SELF_CHECK).all()
    assert masks.source == "optimised"


def test_a_model_of_the_context_gives_the_context():
    """Pitfall 3: the mask shows what the model uses; where that is the context, it does not touch the object."""
    model = SmoothEvidence(REGION, object_gain=0.5, context_gain=6.0)
    masks = optimise_masks(model, CONFLICTING, settings=COARSE, fill="zero", progress=False)
    overlap = intersection_over_union(masks.masks, REGION.expand(2, -1, -1))
    assert (overlap < 0.05).all(), overlap


@pytest.mark.parametrize("grid", [1, 2, 7, 16, 32])
def test_the_share_is_exact(grid):
    generator = torch.Generator().manual_seed(grid)
    for soft in (torch.rand(3, grid, grid, generator=generator), torch.zeros(3, grid, grid)):
        binary = _binarise(soft, 0.35)
        assert binary.flatten(1).sum(1).tolist() == [max(1, round(0.35 * grid * grid))] * 3


def test_the_share_is_exact_at_full_size():
    model = SmoothEvidence(REGION, 6.0, 0.0)
    found = optimise_masks(model, CONFLICTING, settings=MaskSettings(grid=16, steps=3), fill="zero", progress=False)
    assert found.masks.flatten(1).sum(1).tolist() == [round(0.35 * 256)] * 2


def test_where_the_mask_is_flat_its_neighbours_fill_it_up():
    soft = torch.zeros(1, 20, 20)
    soft[0, 14:18, 14:18] = 1.0
    binary = _binarise(soft, 0.2)[0]
    assert bool(binary[14:18, 14:18].all())
    assert not bool(binary[:8].any()) and not bool(binary[:, :8].any())


def test_larger_values_come_before_neighbours():
    soft = torch.zeros(1, 8, 8)
    soft[0, 0, 0], soft[0, 7, 7], soft[0, 7, 6] = 0.2, 0.9, 0.8
    binary = _binarise(soft, 3 / 64)[0]
    assert bool(binary[0, 0]) and bool(binary[7, 7]) and bool(binary[7, 6])


def test_images_do_not_influence_each_other():
    model = SmoothEvidence(REGION, 6.0, 1.0)
    pixels = torch.cat([CONFLICTING, scene(1, 1), scene(1, 2)])
    settings = MaskSettings(grid=GRID, steps=30)
    together = optimise_masks(model, pixels, settings=settings, progress=False)
    for batch_size in (1, 3):
        apart = optimise_masks(model, pixels, settings=settings, batch_size=batch_size, progress=False)
        assert torch.equal(together.masks, apart.masks)
        np.testing.assert_allclose(together.divergence, apart.divergence, atol=1e-12)


def test_failures_are_counted_and_said():
    """Evidence spread evenly over the whole image: no third of it keeps the prediction."""
    model = SmoothEvidence(torch.ones(SIZE, SIZE, dtype=torch.bool), 4.5, 4.5)
    pixels = torch.cat([scene(0, 0), scene(1, 1)])
    with pytest.warns(FailedMasks, match=r"2 of 2 optimised masks do not keep the prediction \(JS >= 0.05\)"):
        masks = optimise_masks(model, pixels, settings=COARSE, fill="zero", progress=False)
    assert masks.failed.tolist() == [True, True]


def test_given_masks_do_not_fail():
    given = Masks(REGION.expand(2, -1, -1), np.array([0.6, 0.6]), "given")
    assert not given.failed.any()


def test_self_check_by_hand():
    model = SmoothEvidence(REGION, 6.0, 0.0)
    masks = torch.stack([REGION, ~REGION])
    found = self_check(model, CONFLICTING, masks, fill="zero")
    assert found[0] == 0.0 and found[1] > 0.2


def test_the_model_is_left_alone_also_without_gradients():
    model = mechvis.load(testing.tiny("vit"), preprocess=testing.tiny_preprocess())
    pixels, settings = testing.tiny_input("vit", n=3), MaskSettings(grid=4, steps=4)
    with testing.assert_untouched(model):
        with_gradients = optimise_masks(model, pixels, settings=settings, progress=False)
        for context in (torch.no_grad(), torch.inference_mode()):
            with context:
                found = optimise_masks(model, pixels, settings=settings, progress=False)
            assert torch.equal(found.masks, with_gradients.masks)


def test_half_precision_models_are_optimised_in_single():
    bare = testing.tiny("vit", dtype=torch.bfloat16)
    model = mechvis.load(bare, preprocess=testing.tiny_preprocess())
    pixels, settings = testing.tiny_input("vit", n=2), MaskSettings(grid=4, steps=4, keep=0.9)
    masks = optimise_masks(model, pixels, settings=settings, progress=False)
    assert masks.masks.dtype == torch.bool and np.isfinite(masks.divergence).all()


def test_an_interrupted_optimisation_continues(tmp_path, monkeypatch):
    import circuits.masks as module

    model, images = testing.shortcut_vit(), testing.shortcut_images(12).image_set()
    options = {"settings": MaskSettings(grid=4, steps=20), "fill": "zero", "batch_size": 4, "progress": False}
    whole = optimise_masks(model, images, **options)
    real, calls = module._optimise, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(module, "_optimise", interrupted)
    with pytest.raises(KeyboardInterrupt):
        optimise_masks(model, images, folder=tmp_path, **options)
    monkeypatch.setattr(module, "_optimise", lambda *args: calls.append(1) or real(*args))
    found = optimise_masks(model, images, folder=tmp_path, **{**options, "batch_size": 32})
    assert len(calls) == 4, "two batches were kept, one is computed"
    assert torch.equal(found.masks, whole.masks) and np.array_equal(found.divergence, whole.divergence)
    with pytest.raises(ResultMismatch, match="differs in: fill"):
        optimise_masks(model, images, folder=tmp_path, **{**options, "fill": "mean"})


def test_intersection_over_union():
    one = torch.zeros(3, 2, 2, dtype=torch.bool)
    other = one.clone()
    one[0, 0], other[0, :, 0] = True, True
    one[1] = True
    assert intersection_over_union(one, other).tolist() == pytest.approx([1 / 3, 0.0, 1.0])
    with pytest.raises(ShapeMismatch, match=r"\[3, 2, 2\] and \[2, 2, 2\] cannot be compared"):
        intersection_over_union(one, other[:2])


def test_given_masks_are_read_in_parts():
    images = testing.shortcut_images(10)
    found = read_masks(images.image_set(), testing.shortcut_preprocess(), batch_size=4)
    assert torch.equal(found, images.masks)


@pytest.mark.parametrize("wrong", [{"keep": 0.0}, {"keep": 1.0}, {"steps": 0}, {"tau": 0.0}, {"grid": 0}])
def test_settings_out_of_range(wrong):
    with pytest.raises(OutOfRange, match="0 < keep < 1"):
        MaskSettings(**wrong)
