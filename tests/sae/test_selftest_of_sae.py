"""The checks that `mechvis selftest` runs of this package hold for several seeds, and can fail."""

import pytest
import torch

from sae.selftest import checks


@pytest.mark.parametrize("seed", [0, 1])
def test_all_hold(seed):
    found = checks(seed)
    assert len(found) == 3 and all(check.ok for check in found), found


def test_wrong_gradients_are_seen(monkeypatch):
    from sae import sparse

    right = sparse.column_sums
    monkeypatch.setattr(sparse, "column_sums", lambda values, support: 1.001 * right(values, support))
    assert not checks(0)[0].ok


def test_a_run_that_learns_nothing_is_seen(monkeypatch):
    from sae.training.optimiser import Adam

    monkeypatch.setattr(Adam, "step", lambda self, lr, sizes=None: torch.zeros(()))
    monkeypatch.setattr("sae.training.job.optimiser", Adam)
    assert not checks(0)[1].ok
