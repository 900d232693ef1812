"""The fused optimiser against the plain one, step by step."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

import sae
from mechvis.kernels.adam_rows import naive
from sae.data import Rows
from sae.shards import WHOLE
from sae.training import fused
from sae.training.fused import Fused, optimiser
from sae.training.job import Learner
from sae.training.optimiser import Adam

STEPS = 50
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
# Several blocks of rows, the last one not full.
LATENTS, WIDTH = 50, 12


class Toy(torch.nn.Module):
    """Parameters of every kind: unit rows, free rows, a bias; one that gets no gradient."""

    def __init__(self, dtype, decoder="unit"):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        rows = torch.randn(LATENTS, WIDTH, generator=g, dtype=torch.float64)
        self.W_dec = torch.nn.Parameter((rows / rows.norm(dim=1, keepdim=True)).to(dtype))
        self.W_enc = torch.nn.Parameter(rows.clone().to(dtype))
        self.b_dec = torch.nn.Parameter(torch.zeros(WIDTH, dtype=dtype))
        self.idle = torch.nn.Parameter(torch.ones(LATENTS, dtype=dtype))
        self.architecture = SimpleNamespace(decoder=decoder, UNIT=("W_dec",))
        self.shards, self.mine = WHOLE, {"W_dec", "W_enc"}


def after(kind, dtype, *, decoder="unit", clip=1.0, size=1.0, steps=STEPS):
    """Parameters, moments and norms after some steps along drawn gradients."""
    toy = Toy(dtype, decoder)
    found = kind(toy, sae.Training(clip=clip))
    g = torch.Generator().manual_seed(1)
    norms = []
    for _ in range(steps):
        for name, p in toy.named_parameters():
            grad = size * torch.randn(p.shape, generator=g, dtype=torch.float64)
            p.grad = None if name == "idle" else grad.to(dtype)
        norms.append(found.step(0.01))
    assert all(p.grad is None for p in toy.parameters())
    return dict(toy.named_parameters()) | found.tensors() | {"norms": torch.stack(norms)}


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(fused, "BLOCK", 16 * WIDTH)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("decoder", ["unit", "free"])
@pytest.mark.parametrize("clip", [None, 1.0, 1e6])
def test_both_forms_agree(dtype, decoder, clip):
    plain, fast = (after(kind, dtype, decoder=decoder, clip=clip) for kind in (Adam, Fused))
    assert plain.keys() == fast.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(fast[name], tensor, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype], msg=name)
    norms = fast["W_dec"].norm(dim=1)
    assert torch.allclose(norms, torch.ones_like(norms), atol=1e-6) == (decoder == "unit")


def test_the_comparison_can_fail():
    plain, other = after(Adam, torch.float64), after(Fused, torch.float64, clip=None)
    assert (plain["W_enc"] - other["W_enc"]).abs().max() > 1e-10


def test_it_repeats_bit_by_bit():
    one, two = after(Fused, torch.float32), after(Fused, torch.float32)
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_a_gradient_that_is_not_finite_spoils_weights_in_both_forms():
    """So that the loss of the next step says so; it must not be hidden by clipping."""
    for kind in (Adam, Fused):
        assert not torch.isfinite(after(kind, torch.float32, size=torch.inf, steps=1)["W_dec"]).all()


def test_a_row_of_zeros_stays_without_a_gradient():
    for kind in (Adam, Fused):
        toy = Toy(torch.float32)
        with torch.no_grad():
            toy.W_dec[3] = 0.0
        found = kind(toy, sae.Training())
        toy.W_dec.grad = torch.zeros_like(toy.W_dec)
        found.step(0.1)
        assert (toy.W_dec[3] == 0).all() and torch.isfinite(toy.W_dec).all()


def test_the_rule():
    assert type(optimiser(Toy(torch.float32), sae.Training())) is Fused
    assert type(optimiser(Toy(torch.float32), sae.Training(fast=False))) is Adam
    assert type(optimiser(Toy(torch.bfloat16), sae.Training())) is Adam
    turned = Toy(torch.float32)
    turned.W_enc = torch.nn.Parameter(turned.W_enc.detach().T.contiguous().T)
    assert type(optimiser(turned, sae.Training())) is Adam


@pytest.mark.parametrize(
    "architecture", [sae.TopK(n_latents=96, k=4), sae.BatchTopK(n_latents=96, k=4)], ids=["topk", "batch_topk"]
)
def test_learners_with_either_end_alike(architecture):
    """A whole step in float64, with gradients held back and sizes handed on, against autograd and the plain form.
    Latents die at once here, so that two supports share both weights."""
    rows = torch.randn(640, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    settings = sae.Training(tokens=6400, batch=64, lr=3e-3, dead_after=64, look_every=1)
    found = {}
    for fast in (True, False):
        learner = Learner(sae.start(architecture, {"site": rows}, seed=0), dataclasses.replace(settings, fast=fast))
        for number in range(STEPS):
            learner.step(number, Rows(activations={"site": rows[64 * (number % 10) :][:64]}))
        assert learner.n_dead > 0
        found[fast] = dict(learner.dictionary.named_parameters()) | {"line": learner.line()}
    line, plain = found[True].pop("line"), found[False].pop("line")
    assert line == pytest.approx(plain, rel=1e-9)
    for name, p in found[True].items():
        torch.testing.assert_close(p, found[False][name], rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize("clip", [None, 1.0])
def test_the_way_through_the_kernel_is_the_same(clip, monkeypatch):
    """Where the rule picks Triton, rows go through `adam_rows`: here its plain twin stands for it."""
    calls = []

    def counted(*args, **kwargs):
        calls.append(args[0].shape)
        naive.adam_rows(*args, **kwargs)

    plain = after(Adam, torch.float32, clip=clip, steps=5)
    monkeypatch.setattr(fused, "choose", lambda *args: "triton")
    monkeypatch.setattr(fused, "adam_rows", counted)
    fast = after(Fused, torch.float32, clip=clip, steps=5)
    assert calls == [(LATENTS, WIDTH)] * 10
    for name, tensor in plain.items():
        torch.testing.assert_close(fast[name], tensor, rtol=1e-5, atol=1e-5, msg=name)
