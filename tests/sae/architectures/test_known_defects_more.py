"""Defects that other libraries have (or had), each shown not to be here: Matryoshka, matching pursuit, sparsemax."""

import pytest
import torch

import sae
from sae.architecture import Step
from sae.architectures import Archetypal, MatchingPursuit, Matryoshka, Sparsemax

N, D = 24, 10


@pytest.fixture(scope="module")
def rows():
    return torch.randn(300, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.3


def loss_of(architecture, rows, **step):
    d = sae.start(architecture, {"site": rows}, seed=3)
    x, y = d.normalised(rows)
    return d, d.architecture.loss(d, x, y, Step(**step))


@pytest.mark.parametrize("n_groups", [1, 2, 4])
def test_dictionary_learning_matryoshka_scales_its_error_with_one_over_groups_squared(rows, n_groups):
    """`group_weights=1/G` and then a mean over groups. Here: a sum, or one mean."""
    groups = (1 / n_groups,) * n_groups
    whole = {"n_latents": N, "k": 3, "aux": 0.0, "row_limit": None}
    (d, total), (_, mean) = (loss_of(Matryoshka(groups=groups, reduce=r, **whole), rows) for r in ("sum", "mean"))
    _, y = d.normalised(rows)
    dense = total.codes.dense()
    errors = []
    for bound in d.architecture.bounds():
        left = y - dense[:, :bound] @ d.W_dec[:bound] - d.b_dec
        errors.append(left.square().sum() / (y - y.mean(0)).square().sum())
    errors = torch.stack(errors).detach()
    assert float(total.total.detach()) == pytest.approx(float(errors.sum()), rel=1e-12)
    assert float(mean.total.detach()) == pytest.approx(float(errors.mean()), rel=1e-12)
    if n_groups > 1:
        assert float(mean.total.detach()) != pytest.approx(float(errors.sum()) / n_groups**2, rel=0.1)


def test_dictionary_learning_matryoshka_weighs_dead_latents_up_with_the_number_of_groups(rows):
    """The other side of 1/G²: AuxK against the error. Here the last prefix and AuxK stand as in BatchTopK."""
    step = {"dead": torch.arange(N) % 3 == 0, "n_dead": N // 3}
    _, matryoshka = loss_of(Matryoshka(n_latents=N, k=3, groups=(0.5, 0.5)), rows, **step)
    _, batch = loss_of(sae.BatchTopK(n_latents=N, k=3), rows, **step)
    for part in ("error", "aux"):
        assert float(matryoshka.parts[part]) == pytest.approx(float(batch.parts[part]), rel=1e-12)
        assert batch.parts[part] > 0
    both = float(matryoshka.parts["error_0"] + batch.total.detach())
    assert float(matryoshka.total.detach()) == pytest.approx(both, rel=1e-12)


def test_overcomplete_matching_pursuit_adds_negative_atoms():
    """No ReLU: when every atom points away from the residual, the best of them is taken with a negative number."""
    atoms = torch.nn.functional.normalize(
        torch.tensor([[1.0, 0.2], [1.0, -0.2], [0.8, 0.1]], dtype=torch.float64), dim=1
    )
    away = torch.tensor([[-1.0, 0.0], [-2.0, 0.1]], dtype=torch.float64)
    ends = sae.ends.Ends(reads={"site": 2})
    for solve in ("pursuit", "nnls"):
        architecture = MatchingPursuit(n_latents=3, k=2, normalise="none", solve=solve)
        scale = {"scale_in": torch.ones(2, dtype=torch.float64), "scale_out": torch.ones(2, dtype=torch.float64)}
        parameters = {"W_dec": atoms, "b_dec": torch.zeros(2, dtype=torch.float64)}
        d = sae.Dictionary(architecture, ends, parameters, scale)
        assert (away @ atoms.T).max() < 0, "the test asks for rows that all atoms point away from"
        assert torch.equal(d.encode(away), torch.zeros(2, 3, dtype=torch.float64))
        for fast in (True, False):
            loss = architecture.loss(d, away, away, Step(fast=fast))
            assert torch.equal(loss.codes.dense(), torch.zeros(2, 3, dtype=torch.float64))
            assert torch.equal(loss.y_hat, torch.zeros_like(away))
        # One step beyond: an atom that was worth taking, then only atoms that point away.
        some = torch.cat([away, -away])
        assert (d.encode(some) >= 0).all() and (d.encode(some)[2:] > 0).any(1).all()


def test_overcomplete_archetypal_atoms_beyond_the_candidates_stay_zero(rows):
    """`torch.eye(n, n_candidates)`: with fewer candidates than latents the others of W are zero, and so are atoms."""
    d = sae.start(Archetypal(n_latents=N, k=3, candidates=6), {"site": rows})
    assert d.mix.sum(1).eq(1).all() and d.W_dec.norm(dim=1).gt(0).all()


class TestSparsemaxFrequencyMask:
    """Sparsemax-SAE keeps how often latents fire as a plain attribute: not saved, counted in evaluation too; and it
    multiplies the scores of masked latents by zero."""

    def trained(self, rows):
        d = sae.start(Sparsemax(n_latents=N, max_frequency=0.3), {"site": rows})
        return self.after(d, rows)

    def after(self, d, rows):
        x, y = d.normalised(rows)
        with torch.no_grad():
            d.architecture.after(d, d.architecture.loss(d, x, y, Step()), Step())
        return d

    def test_is_saved(self, rows, tmp_path):
        d = self.trained(rows)
        assert (d.frequency > 0.3).any() and not (d.frequency > 0.3).all()
        again = sae.load(d.save(tmp_path / "d"))
        assert torch.equal(again.frequency, d.frequency) and again.seen_batches == 1
        # What comes out depends on it, so losing it would show.
        fresh = sae.load(tmp_path / "d")
        fresh.frequency.zero_()
        assert torch.allclose(again(rows), d(rows), atol=1e-12) and not torch.allclose(fresh(rows), d(rows), atol=1e-3)

    def test_is_a_mean_over_batches_of_how_often_latents_fire(self, rows):
        d = sae.start(Sparsemax(n_latents=N, max_frequency=None), {"site": rows})
        shares = [(d.encode(part) > 0).double().mean(0) for part in (rows[:100], rows[100:])]
        for part in (rows[:100], rows[100:]):
            self.after(d, part)
        assert torch.allclose(d.frequency, (shares[0] + shares[1]) / 2)

    def test_is_not_counted_in_evaluation(self, rows):
        d = self.trained(rows)
        known = d.frequency.clone()
        for mode in (True, False):
            d.train(mode)
            d(rows), d.encode(rows)
            x, y = d.normalised(rows)
            d.architecture.loss(d, x, y, Step())
        assert torch.equal(d.frequency, known) and d.seen_batches == 1

    def test_masked_latents_are_out_of_the_competition(self):
        """A score of zero is above a negative one: multiplied by zero, a masked latent would compete."""
        d = sae.start(Sparsemax(n_latents=3, normalise="none"), {"site": torch.eye(2, dtype=torch.float64)})
        with torch.no_grad():
            d.concepts.copy_(torch.tensor([[0.3, 0.0], [0.2, 0.0], [9.0, 0.0]]))
            d.to_key.copy_(torch.eye(2))
            d.to_value.copy_(torch.eye(2))
            d.architecture.before(d, Step())
            d.frequency[2] = 0.5
        row = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        # Scores .3, .2 and masked. Among two: τ = (.5 - 1)/2. With a third at zero: τ = (.5 - 1)/3, and it is in.
        codes = d.encode(row)
        assert torch.allclose(codes, torch.tensor([[0.3, 0.2, 0.0]], dtype=torch.float64))
        weights = sae.Dictionary(
            Sparsemax(n_latents=3, normalise="none", codes="weights"),
            d.ends,
            dict(d.named_parameters()),
            dict(d.named_buffers()),
        )
        assert torch.allclose(weights.encode(row), torch.tensor([[0.55, 0.45, 0.0]], dtype=torch.float64))
