"""What stands in the place of missing patches, by hand and against scipy; dropped tokens against their plain twin."""

import pytest
import torch
from scipy.ndimage import gaussian_filter

from mechvis.errors import BadData, OutOfRange, RefusedMethod, ShapeMismatch
from mechvis.keyed import generator_of
from mechvis.models.load import wrap
from mechvis.removal import Blur, Mean, OtherImage, Zero, tokens
from mechvis.removal.neighbours import imputed, neighbour_weights
from mechvis.removal.operators import patch_means
from mechvis.testing import tiny, tiny_input, tiny_preprocess

IDS = torch.arange(3)


@pytest.fixture
def pixels():
    return torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(0)).double()


def test_zero_and_mean(pixels):
    assert not Zero().background(pixels, IDS, 0).any()
    mean = Mean().background(pixels, IDS, 0)
    torch.testing.assert_close(mean[1, 2, 5, 7], pixels[1, 2].mean())
    assert (mean == mean[:, :, :1, :1]).all()


def test_blur_is_a_gaussian(pixels):
    sigma = 0.1 * 12
    reach = int(3 * sigma) + 1
    found = Blur(sigma=0.1).background(pixels, IDS, 0)
    expected = gaussian_filter(pixels.numpy(), (0, 0, sigma, sigma), mode="mirror", radius=(0, 0, reach, reach))
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-9, atol=1e-9)
    flat = torch.ones(1, 3, 12, 12)
    torch.testing.assert_close(Blur().background(flat, IDS[:1], 0), flat)
    with pytest.raises(OutOfRange, match="sigma=0"):
        Blur(sigma=0).background(pixels, IDS, 0)


def test_another_image_is_never_the_image_itself(pixels):
    found = OtherImage(pool=pixels).background(pixels, IDS, 0)
    for image, other in zip(pixels, found, strict=True):
        assert not torch.equal(image, other) and any(torch.equal(other, one) for one in pixels)
    # It belongs to the example, not to its place.
    alone = OtherImage(pool=pixels).background(pixels[2:], IDS[2:], 0)
    assert torch.equal(alone[0], found[2])
    with pytest.raises(BadData, match="holds no image but the explained one"):
        OtherImage(pool=pixels[:1]).background(pixels[:1], IDS[:1], 0)
    with pytest.raises(BadData, match="the pool has images"):
        OtherImage(pool=pixels[:, :, :6]).background(pixels, IDS, 0)


def test_neighbour_weights_by_hand():
    weights = neighbour_weights((3, 3))
    # Corner 0: right and below 1/6 each, diagonal 1/12: 0.4, 0.4, 0.2 once they add up to one.
    torch.testing.assert_close(weights[0, [1, 3, 4]], torch.tensor([0.4, 0.4, 0.2]).double())
    # Centre: four of 1/6 and four of 1/12 add up to one.
    torch.testing.assert_close(weights[4, [1, 0]], torch.tensor([1 / 6, 1 / 12]).double())
    torch.testing.assert_close(weights.sum(1), torch.ones(9).double())
    assert weights.diagonal().abs().max() == 0 and neighbour_weights((1, 1)).tolist() == [[0.0]]


def test_missing_patches_solve_their_equations(pixels):
    kept = torch.rand(3, 16, generator=torch.Generator().manual_seed(1)) < 0.5
    found = imputed(pixels, kept, (4, 4), (3, 3), 0.0, [generator_of(0, i, "a") for i in range(3)])
    colours = patch_means(found, (3, 3)).flatten(2)
    expected = torch.einsum("pq,icq->icp", neighbour_weights((4, 4)), colours)
    gone = ~kept[:, None].expand_as(colours)
    torch.testing.assert_close(colours[gone], expected[gone], rtol=1e-9, atol=1e-9)
    wide = kept.view(3, 1, 4, 4).repeat_interleave(3, 2).repeat_interleave(3, 3).expand_as(pixels)
    assert torch.equal(found[wide], pixels[wide])


def test_all_kept_and_none_kept(pixels):
    draws = [generator_of(0, i, "a") for i in range(3)]
    everything = torch.ones(3, 16).bool()
    assert torch.equal(imputed(pixels, everything, (4, 4), (3, 3), 0.5, draws), pixels)
    nothing = imputed(pixels, ~everything, (4, 4), (3, 3), 0.0, draws)
    torch.testing.assert_close(nothing[0, 1], pixels[0, 1].mean().expand(12, 12), rtol=1e-6, atol=1e-6)


def test_noise_has_its_size(pixels):
    draws = [generator_of(0, i, "a") for i in range(3)]
    plain, noisy = (imputed(pixels, torch.zeros(3, 16).bool(), (4, 4), (3, 3), noise, draws) for noise in (0.0, 0.3))
    assert abs(float((noisy - plain).std()) - 0.3) < 0.02


@pytest.mark.parametrize("family", ["vit", "deit", "deit-distilled", "clip-vision"])
def test_dropped_tokens_agree_with_unread_ones(family):
    model = wrap(tiny(family, dtype=torch.float64), preprocess=tiny_preprocess())
    if model.parts.reads is None or any(place >= len(model.parts.prefix) for place in model.parts.reads):
        pytest.fail(f"{family} reads patches: choose another family for this test")
    stream = model.parts.embed(tiny_input("vit", n=2, dtype=torch.float64))
    kept = torch.ones(2, stream.shape[1] - len(model.parts.prefix)).bool()
    kept[0, [1, 4]] = False
    kept[1, [0, 7]] = False
    fast, plain = (f(model, stream, kept, model.parts) for f in (tokens.without, tokens.without_keys))
    torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9)
    assert (fast - tokens.from_embedding(model, stream, model.parts)).abs().max() > 1e-3


def test_what_cannot_be_dropped():
    model = wrap(tiny("vit", dtype=torch.float64), preprocess=tiny_preprocess())
    stream = model.parts.embed(tiny_input("vit", n=2, dtype=torch.float64))
    uneven = torch.ones(2, 9).bool()
    uneven[0, 0] = False
    with pytest.raises(ShapeMismatch, match="rows of a batch keep different numbers"):
        tokens.without(model, stream, uneven, model.parts)
    pooled = wrap(tiny("beit-mean", dtype=torch.float64), preprocess=tiny_preprocess())
    stream = pooled.parts.embed(tiny_input("vit", n=2, dtype=torch.float64))
    with pytest.raises(RefusedMethod, match="Use the operator mean_token"):
        tokens.without_keys(pooled, stream, torch.ones(2, 9).bool(), pooled.parts)
