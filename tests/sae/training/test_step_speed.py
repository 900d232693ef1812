"""What makes a step fast changes nothing: the k largest through bfloat16, gradients held back, things taken once."""

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import sae
from mechvis.kernels.support import Support
from mechvis.kernels.topk import naive
from sae import screen, sparse
from sae.active import Encoder, Screened, encoder
from sae.architecture import Step
from sae.data import Rows
from sae.held import Held, hold
from sae.losses import error_of, fvu, squares, variance
from sae.training.job import Learner
from sae.training.optimiser import Adam

N, D, K = 1024, 64, 4


@pytest.fixture
def screened(monkeypatch):
    """Screening wherever it is possible, also on a CPU that has no products in bfloat16."""
    monkeypatch.setattr(screen, "native", lambda: True)


def case(rows=300, *, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, D, generator=g), torch.randn(N, D, generator=g) / D**0.5, 0.1 * torch.randn(N, generator=g)


def agree(x, weight, bias, k=K, **settings):
    found, values = screen.largest(x, weight, bias, k, **settings)
    full = x @ weight.T if bias is None else torch.addmm(bias, x, weight.T)
    best, latents = naive.topk(full, k)
    assert torch.equal(found, latents)
    torch.testing.assert_close(values, best, rtol=1e-5, atol=1e-5, equal_nan=True)


# -- the k largest -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("biased", [True, False])
def test_the_largest_are_those_of_float32(biased):
    x, weight, bias = case()
    agree(x, weight, bias if biased else None)


def test_latents_that_bfloat16_cannot_tell_apart():
    """Latents that differ in the fourth digit: the bound lets all of them through."""
    x, weight, _ = case()
    direction = torch.nn.functional.normalize(torch.randn(D, generator=torch.Generator().manual_seed(5)), dim=0)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(6))
    weight[100:124] = direction * (1 + 1e-4 * order[:, None])
    x[:40] = 6 * direction * torch.linspace(1, 1.5, 40)[:, None]
    agree(x, weight, None)


def test_without_the_bound_some_are_others():
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2000, D, generator=g), torch.randn(2048, D, generator=g) / D**0.5
    agree(x, weight, None, 8)
    found, values = screen.largest(x, weight, None, 8, exact=False)
    wrong = (found != naive.topk(x @ weight.T, 8)[1]).any(1).float().mean()
    assert 0 < wrong < 0.05
    rows = torch.arange(2000)[:, None]
    torch.testing.assert_close(values, (x @ weight.T)[rows, found], rtol=1e-5, atol=1e-5)


def test_rows_that_cannot_be_screened():
    """Zeros, rows without a positive latent, equal latents, large and small rows, infinity and NaN among good ones."""
    x, weight, bias = case()
    x[3], x[40] = 0.0, 1e-20
    x[70] *= 1e6
    agree(x, weight, bias)
    agree(x, weight, None)
    agree(x[3:4], weight, None)
    agree(x, weight, bias - 50.0)
    agree(x, weight[:1].expand(N, D).contiguous(), None)
    agree(torch.zeros(5, D), torch.zeros(N, D), None)
    weight[7] = torch.nan
    found, _ = screen.largest(x, weight, bias, K)
    assert (found == 7).any(1).all(), "NaN is the largest, so that a look at the loss sees it"
    x, weight, bias = case()
    x[9, 3] = torch.inf
    agree(x[torch.arange(300) != 9], weight, bias)
    found, values = screen.largest(x, weight, bias, K)
    assert not torch.isfinite(values[9]).all() and torch.isfinite(values[8]).all()


def test_a_weight_that_changed_behind_its_version():
    """`.data` changes a weight without a word. What was rounded before is then wrong, and that is noticed."""
    x, weight, bias = case()
    agree(x, weight, bias)
    version = weight._version
    weight.data.copy_(weight.flip(0) * 3)
    assert weight._version == version
    agree(x, weight, bias)


def test_a_weight_that_changed_is_rounded_anew():
    x, weight, bias = case()
    agree(x, weight, bias)
    weight[5] += 1.0
    agree(x, weight, bias)
    assert torch.equal(screen.known(weight).weight[5, :-2], weight[5].bfloat16())


def test_when_it_is_done(screened, monkeypatch):
    weight = torch.zeros(N, D)
    assert screen.possible(weight, K) and isinstance(encoder(torch.zeros(2, D), None, weight, None), Screened)
    assert not screen.possible(weight.double(), K) and not screen.possible(weight, N // 16)
    assert not screen.possible(weight[:, :32].contiguous(), K) and not screen.possible(weight.T, K)
    assert (
        screen.group_size(8192, 32) == 64 and screen.group_size(8192, 64) == 32 and screen.group_size(8190, 3) is None
    )
    monkeypatch.setattr(screen, "native", lambda: False)
    assert not screen.possible(weight, K)
    assert type(encoder(torch.zeros(2, D), None, weight, None)) is Encoder


def test_an_encoder_multiplies_all_only_when_asked(screened):
    x, weight, bias = case()
    e = encoder(x, x.mean(0), weight, bias)
    support, values = e.largest(K)
    assert "pre" not in vars(e)
    codes = e.at(support)
    torch.testing.assert_close(codes.numbers, values)
    plain = encoder(x, x.mean(0), weight, bias, fast=False)
    torch.testing.assert_close(codes.numbers, plain.pre[support.rows, support.latents], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(e.pre, plain.pre, rtol=1e-5, atol=1e-5)
    other = Support.from_rows(torch.arange(3).expand(len(x), 3), N)
    torch.testing.assert_close(e.at(other).dense()[:, :3], plain.pre[:, :3], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n_dead", [2, 9, 700])
def test_dead_latents_alone_are_multiplied(screened, n_dead):
    """Also where fewer are dead than the host knew of: those places hold -inf, as in the plain form."""
    x, weight, bias = case()
    dead = torch.zeros(N, dtype=torch.bool)
    dead[torch.randperm(N, generator=torch.Generator().manual_seed(1))[:n_dead]] = True
    e = encoder(x, None, weight, bias)
    support, values = e.largest(K, dead)
    best, latents = naive.topk(torch.addmm(bias, x, weight.T), K, among=dead)
    assert torch.equal(support.latents.view(-1, K), latents)
    torch.testing.assert_close(values.view(-1, K), best, rtol=1e-5, atol=1e-5)


# -- gradients ---------------------------------------------------------------------------------------------------------


def two_supports(held=None, *, dtype=torch.float64, more=False):
    """Gradients of a loss with two supports on the same weights."""
    g = torch.Generator().manual_seed(0)
    W_enc, W_dec = (
        torch.nn.Parameter(torch.randn(30, 8, generator=g, dtype=torch.float64).to(dtype)) for _ in range(2)
    )
    x = torch.randn(20, 8, generator=g, dtype=torch.float64).to(dtype)
    supports = [Support.from_rows(torch.rand(20, 30, generator=g).argsort()[:, :k].sort().values, 30) for k in (3, 5)]
    if held is not None:
        held.parameters = {"W_enc": W_enc, "W_dec": W_dec}

    def loss():
        written = 0
        for support in supports:
            values = sparse.encode_at(x, None, W_enc, None, support).relu()
            written = written + sparse.decode_at(values, support, W_dec)
        total = (x - written).square().sum()
        return total + W_dec.square().sum() if more else total

    if held is None:
        loss().backward()
        return W_enc, W_dec, {}
    with hold(held):
        loss().backward()
    assert (W_enc.grad is None) and (W_dec.grad is None) == (not more)
    return W_enc, W_dec, held.finish()


@pytest.mark.parametrize("more", [False, True])
@pytest.mark.parametrize("mkl", [True, False])
def test_held_gradients_are_those_of_autograd(more, mkl, monkeypatch):
    if not mkl:
        monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    enc, dec, _ = two_supports(more=more)
    held_enc, held_dec, sizes = two_supports(Held(parameters={}, unit=frozenset({"W_dec"})), more=more)
    torch.testing.assert_close(held_enc.grad, enc.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(held_dec.grad, dec.grad, rtol=1e-12, atol=1e-12)
    assert ("W_dec" in sizes) == (not more), "what came another way is not in the sizes"
    torch.testing.assert_close(sizes["W_enc"].squares, enc.grad.square().sum(1))
    assert sizes["W_enc"].along is None
    if not more:
        torch.testing.assert_close(sizes["W_dec"].along, (dec.grad * dec).sum(1).detach())


def test_a_pass_that_failed_leaves_nothing_behind():
    held = Held(parameters={})
    _, _, sizes = two_supports(held)
    held.shares["W_enc"] = ["left over"]
    with hold(held):
        pass
    assert held.shares == {} and held.finish() == {} and sizes.keys() == {"W_enc", "W_dec"}


def test_sums_are_the_same_bits_whatever_the_threads():
    g = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(torch.zeros(512, 96))
    support = Support.from_rows(torch.rand(400, 512, generator=g).argsort()[:, :8].sort().values, 512)
    values, x = torch.randn(len(support), generator=g), torch.randn(400, 96, generator=g)
    threads, seen = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 1, 2):
            torch.set_num_threads(count)
            held = Held(parameters={"p": p})
            held._room["p"] = torch.full((512, 96), torch.nan)
            held.add("p", sparse.held.Share(values=values, x=x.clone(), support=support))
            held.finish()
            seen.append(p.grad.clone())
            p.grad = None
    finally:
        torch.set_num_threads(threads)
    assert torch.isfinite(seen[0]).all() and all(torch.equal(one, seen[0]) for one in seen)


# -- whole steps -------------------------------------------------------------------------------------------------------


def learners(architecture, steps, **settings):
    rows = torch.randn(512, D, generator=torch.Generator().manual_seed(0))
    wanted = sae.Training(tokens=51200, batch=128, lr=1e-3, **settings)
    learner = Learner(sae.start(architecture, {"site": rows}, seed=0), wanted)
    for number in range(steps):
        learner.step(number, Rows(activations={"site": rows[128 * (number % 4) :][:128]}))
    return learner


@pytest.mark.parametrize("name", ["topk", "batch_topk"])
def test_screened_steps_are_the_plain_steps(screened, name):
    """In float32, with the k largest through bfloat16: weights after 20 steps, and the log."""
    kinds = {"topk": sae.TopK(n_latents=N, k=K), "batch_topk": sae.BatchTopK(n_latents=N, k=K)}
    fast, plain = (learners(kinds[name], 20, fast=fast, dead_after=128, look_every=1) for fast in (True, False))
    assert type(plain.optimiser) is Adam and type(fast.optimiser) is not Adam and fast.n_dead > 0
    for (parameter, a), b in zip(fast.dictionary.named_parameters(), plain.dictionary.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, msg=parameter)
    line, truth = fast.line(), plain.line()
    assert line == pytest.approx(truth, rel=1e-4)


def test_bfloat16_ends_near_float32(screened):
    lines = {p: learners(sae.TopK(n_latents=N, k=K, aux=0.0), 40, precision=p).line() for p in ("float32", "bfloat16")}
    assert lines["bfloat16"]["fvu"] == pytest.approx(lines["float32"]["fvu"], rel=2e-3)


def test_steps_repeat_bit_by_bit(screened):
    one, two = (learners(sae.TopK(n_latents=N, k=K), 10) for _ in range(2))
    pairs = zip(one.dictionary.parameters(), two.dictionary.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


class Allocations(TorchDispatchMode):
    """Sizes of what operations give back that did not exist before."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        every = torch.utils._pytree.tree_leaves((args, kwargs))
        given = {
            t.untyped_storage().data_ptr() for t in every if isinstance(t, torch.Tensor) and t.layout == torch.strided
        }
        for t in torch.utils._pytree.tree_leaves(out):
            if (
                isinstance(t, torch.Tensor)
                and t.layout == torch.strided
                and t.untyped_storage().data_ptr() not in given
            ):
                self.found.append((t.numel(), str(function)))
        return out


@pytest.mark.parametrize("fast", [True, False])
def test_a_step_makes_no_large_matrix(screened, fast):
    """Neither pre-activations of all rows nor a matrix of a weight's size; the plain form makes dozens."""
    learner = learners(sae.TopK(n_latents=N, k=K, aux=0.0), 3, fast=fast)
    rows = Rows(activations={"site": torch.randn(128, D, generator=torch.Generator().manual_seed(9))})
    with Allocations() as seen:
        learner.step(3, rows)
    large = [one for one in seen.found if one[0] >= min(N * D, 128 * N)]
    assert (large == []) == fast and len(seen.found) > 20


def test_the_batch_is_gone_over_once():
    y, step = torch.randn(50, 6), Step()
    y_hat = torch.randn(50, 6, requires_grad=True)
    loss = fvu(y, y_hat, step)
    expected = (y - y_hat).square().sum() / (y - y.mean(0)).square().sum()
    torch.testing.assert_close(loss, expected)
    assert variance(y, step) is variance(y, step)
    torch.testing.assert_close(error_of(y, y_hat.detach(), step), (y - y_hat).detach().square().sum().double())
    other = torch.randn(50, 6)
    torch.testing.assert_close(error_of(y, other, step), (y - other).square().sum().double(), rtol=1e-5, atol=0)
    torch.testing.assert_close(variance(other, step), (other - other.mean(0)).square().sum() / 50)
    assert variance(y, dataclasses.replace(step, known={})) == pytest.approx(float(variance(y, step)))
    assert squares(torch.zeros(0, 3), torch.zeros(3)) == 0


def test_gradients_of_the_squared_error():
    y, y_hat = (torch.randn(5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(sae.losses.squared_error, (y, y_hat))
