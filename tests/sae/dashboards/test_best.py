"""The best entries of every latent while they stream by, against a full sort."""

import numpy as np
import pytest

from mechvis.errors import OutOfRange, ShapeMismatch
from sae.dashboards.best import EMPTY, Best, drawn


def entries(rng, n_latents=7, n_images=50, levels=1000):
    """Every pair of image and latent with a chance of one half, few levels: many ties."""
    image, latent = np.nonzero(rng.random((n_images, n_latents)) < 0.5)
    return image, latent, rng.integers(1, levels, len(image)).astype(float)


@pytest.mark.parametrize("levels", [3, 100000])
@pytest.mark.parametrize("order", ["stream", "mixed"])
def test_it_is_a_full_sort(levels, order):
    rng = np.random.default_rng(0)
    image, latent, key = entries(rng, levels=levels)
    best = Best(7, 5)
    given = np.arange(len(key)) if order == "stream" else rng.permutation(len(key))
    for part in np.array_split(given, 9):
        best.add(latent[part], key[part], image=image[part], value=key[part] * 2, row=image[part] + 1)
    for one in range(7):
        mine = np.flatnonzero(latent == one)
        expected = sorted(mine, key=lambda e: (-key[e], image[e]))[:5]
        assert best.image[one].tolist() == image[expected].tolist()
        assert best.key[one].tolist() == key[expected].tolist()
        assert best.value[one].tolist() == (2 * key[expected]).tolist()
        assert best.row[one].tolist() == (image[expected] + 1).tolist()


def test_fewer_entries_than_places():
    best = Best(2, 3)
    best.add(np.array([1]), np.array([0.5]), image=np.array([4]))
    assert best.image.tolist() == [[EMPTY] * 3, [4, EMPTY, EMPTY]]
    assert best.only(np.array([1])).image.tolist() == [[4, EMPTY, EMPTY]]


def test_bad_input():
    with pytest.raises(OutOfRange, match="0 entries per latent"):
        Best(2, 0)
    with pytest.raises(ShapeMismatch, match="got 1, 2, 2, 2, 2"):
        Best(2, 1).add(np.array([0]), np.array([0.5, 1.0]), image=np.array([0, 1]))


def test_the_hash_draws_evenly_and_the_same_every_time():
    image = np.arange(20000)
    found = drawn(image, 5, seed=1)
    assert np.array_equal(found[100:200], drawn(image[100:200], np.full(100, 5), seed=1))
    counts = np.histogram(found, 20, (0, 1))[0]
    assert (np.abs(counts - 1000) < 5 * np.sqrt(1000)).all()
    # Neighbouring images, other latents and other seeds say nothing about each other.
    for other in (np.roll(found, 1), drawn(image, 6, seed=1), drawn(image, 5, seed=2)):
        assert abs(np.corrcoef(found, other)[0, 1]) < 5 / np.sqrt(len(image))
