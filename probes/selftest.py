"""What `mechvis selftest` checks of this package: read-outs whose answers are known, in a second or two."""

import numpy as np

from mechvis.selftest import Check

_TOLERANCE = 0.03
_SHARES = (0.453, 0.746, 0.913, 0.983, 1.0)
"""Cumulative shares of five planted directions with standard deviations 5, 4, 3, 2, 1 (methods.md 2.2 **P**)."""
_COUNTS = {0: 400, 9: 300, 11: 300}
"""Decision layers of hand-written label paths, k = 1 (methods.md 3.1 **P**)."""


def checks(seed: int) -> list[Check]:
    """Parts add up to the whole; planted directions are found in order; label paths are decided where they should be.

    Args:
        seed: of the random model, directions and paths.
    """
    return [_parts(seed), *_directions(seed), _paths(seed), _posterior()]


def _parts(seed: int) -> Check:
    import torch

    import mechvis
    from mechvis.decompose import terms
    from mechvis.testing import rand_vit, tiny_preprocess

    model = mechvis.load(rand_vit(seed), preprocess=tiny_preprocess())
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(4, 3, *model.parts.image_size, generator=generator, dtype=torch.float64)
    found = terms(model, pixels)
    error = float((found.values.sum(1) - model.run(pixels).logits).abs().max())
    return Check(
        name="RandViT: sum of what heads, MLPs and biases write beside the logits",
        expected="<= 1e-10",
        measured=f"{error:.1e}",
        ok=error <= 1e-10,
    )


def _directions(seed: int) -> list[Check]:
    from probes.textspan import span_covariance, span_direct

    generator = np.random.default_rng(seed)
    pool = generator.normal(size=(200, 64))
    basis = np.linalg.qr(generator.normal(size=(64, 5)))[0].T
    places = [int(place) for place in generator.permutation(200)[:5]]
    pool[places] = basis
    pool /= np.linalg.norm(pool, axis=1, keepdims=True)
    amounts = generator.normal(size=(2000, 5)) * np.array([5, 4, 3, 2, 1])
    writes = amounts @ basis + generator.normal(size=64) + 0.01 * generator.normal(size=(2000, 64))
    fast = span_covariance(writes.mean(0), np.cov(writes, rowvar=False, bias=True), pool, m=5, rank=5)
    slow = span_direct(writes, pool, m=5, rank=5)
    return [
        Check(
            name="TextSpan: planted texts in order, by both forms",
            expected=str(places),
            measured=str(fast.picks.tolist()),
            ok=fast.picks.tolist() == places == slow.picks.tolist(),
        ),
        Check(
            name="TextSpan: cumulative share of the variance",
            expected=", ".join(f"{share:.3f}" for share in _SHARES),
            measured=", ".join(f"{share:.3f}" for share in fast.cumulative),
            ok=bool(np.abs(fast.cumulative - _SHARES).max() < _TOLERANCE),
        ),
    ]


def _paths(seed: int) -> Check:
    from probes.timeline import decision_layer

    del seed  # the paths are written by hand
    constant = np.zeros((300, 12), int)
    late = np.tile([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9], (300, 1))
    never = np.tile(np.arange(12), (300, 1))
    fickle = np.tile([0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 6, 6], (100, 1))
    layers, counts = np.unique(decision_layer(np.concatenate([constant, late, never, fickle]), k=1), return_counts=True)
    found = {int(layer): int(count) for layer, count in zip(layers, counts, strict=True)}
    return Check(name="decision layers of label paths", expected=str(_COUNTS), measured=str(found), ok=found == _COUNTS)


def _posterior() -> Check:
    from probes.unit_labels import posterior

    expected = (0.0014, 0.0155, 0.1498, 0.6638)
    found = [float(value) for value in np.ravel(posterior(np.arange(4), 3, error=0.23, prior=0.05))]
    return Check(
        name="posterior of 0 to 3 noisy votes",
        expected=", ".join(f"{value:.4f}" for value in expected),
        measured=", ".join(f"{value:.4f}" for value in found),
        ok=bool(np.abs(np.array(found) - expected).max() < 1e-4),
    )
