"""F12 and F13 are what their descriptions say."""

import numpy as np
import pytest
import torch

from mechvis.errors import BadData
from mechvis.testing.concept_worlds import concept_bag, two_attributes


def test_the_bag():
    bag = concept_bag(noise=0.0)
    torch.testing.assert_close(bag.concepts @ bag.concepts.T, torch.eye(4, dtype=torch.float64))
    present = bag.images(3000, 1) @ bag.concepts.T
    assert ((present.abs() < 1e-9) | ((present - 1).abs() < 1e-9)).all(), "there or not"
    assert present.mean((0, 1)).numpy() == pytest.approx([0.25] * 4, abs=0.02)
    z = bag.concepts[[0, 0, 1, 3]][None]
    assert bag.tail(z)[0].tolist() == pytest.approx([1.0, 0.5, 0.0, 0.6])
    assert bag.tail(z.float()).dtype == torch.float32
    assert torch.equal(bag.images(5, 3), bag.images(5, 3)) and not torch.equal(bag.images(5, 3), bag.images(5, 4))
    noisy = concept_bag().images(2000, 1)
    rest = noisy - noisy @ bag.concepts.T @ bag.concepts
    assert float(rest.square().sum(-1).mean() / 8) == pytest.approx(0.06**2, rel=0.1)
    with pytest.raises(BadData, match="n=0: at least one image"):
        bag.images(0)


def test_the_attributes():
    made = two_attributes(2000, seed=3)
    a, b = made.planes
    np.testing.assert_allclose(np.concatenate([a, b], 1).T @ np.concatenate([a, b], 1), np.eye(4), atol=1e-12)
    for corners, radius, plane in zip(made.corners, (2.0, 1.4), made.planes, strict=True):
        np.testing.assert_allclose(np.linalg.norm(corners, axis=1), radius)
        np.testing.assert_allclose(corners @ plane @ plane.T, corners, atol=1e-12)
        np.testing.assert_allclose(corners.sum(0), 0, atol=1e-12)
    rest = made.z - made.corners[0][made.first] - made.corners[1][made.second]
    assert rest.std() == pytest.approx(0.25, rel=0.02)
    assert set(made.first) == {0, 1, 2} and set(made.second) == {0, 1, 2, 3}
    assert made.overlap(np.stack([a[:, 0], b[:, 0]], 1), 0) == pytest.approx(0.5)
    with pytest.raises(BadData, match="n=0"):
        two_attributes(0)
