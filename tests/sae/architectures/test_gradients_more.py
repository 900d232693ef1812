"""Losses and gradients of Matryoshka, nested k, matching pursuit, archetypal and sparsemax: against formulas written
here once more, densely, whose gradients autograd finds in float64."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import nnls as scipy_nnls

import sae
from mechvis.errors import BadData, RefusedMethod, UnknownName
from sae.architecture import Step
from sae.architectures import Archetypal, MatchingPursuit, Matryoshka, NestedK, Sparsemax
from sae.architectures.archetypal import project_
from sae.omp import nnls, orthogonal_pursue
from sae.pursuit import choose, pursue
from sae.simplex import sparsemax_support

N, D, ROWS = 24, 10, 40
DEAD = torch.arange(N) % 3 == 0
TOLERANCE = 1e-10


@pytest.fixture(scope="module")
def rows():
    return torch.randn(300, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.3


def started(architecture, rows, jitter=0.1):
    """A dictionary whose parameters are all away from their start, so that no gradient is zero by symmetry."""
    d = sae.start(architecture, {"site": rows}, seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in d.parameters():
            p += jitter * torch.randn(p.shape, generator=generator, dtype=torch.float64)
        for name in architecture.UNIT:
            getattr(d, name).div_(getattr(d, name).norm(dim=1, keepdim=True))
        architecture.before(d, Step())
    return d


def compare(d, rows, expected, *, fast, **step):
    """The loss and all its gradients equal those of `expected(x)`."""
    x, y = d.normalised(rows[:ROWS])
    step = Step(dead=DEAD, n_dead=int(DEAD.sum()), fast=fast, **step)
    loss = d.architecture.loss(d, x, y, step)
    wanted = expected(x)
    assert abs(float(loss.total.detach() - wanted.detach())) < TOLERANCE
    names, parameters = zip(*d.named_parameters(), strict=True)
    got = torch.autograd.grad(loss.total, parameters, allow_unused=True)
    right = torch.autograd.grad(wanted, parameters, allow_unused=True)
    moved = 0
    for name, a, b in zip(names, got, right, strict=True):
        a, b = (torch.zeros_like(d.get_parameter(name)) if g is None else g for g in (a, b))
        assert (a - b).abs().max() < TOLERANCE, name
        moved += float(b.abs().max()) > 1e-6
    assert moved >= len(names) - 1
    return loss


def fraction(y, y_hat):
    return ((y - y_hat) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()


def aux_k(d, W, pre, y, y_hat, k, among=DEAD):
    """AuxK as it is written in 2406.04093, densely."""
    e = (y - y_hat).detach()
    masked = pre.masked_fill(~among, -torch.inf)
    kept = torch.zeros_like(pre, dtype=torch.bool).scatter(1, masked.topk(k, dim=1).indices, True) & among
    e_hat = torch.where(kept, pre.relu(), 0.0) @ W
    return ((e - e_hat) ** 2).sum() / ((e - e.mean(0)) ** 2).sum()


def flat_largest(score, count):
    """The `count` largest positive entries of a matrix, as a mask."""
    least = score.detach().relu().flatten().sort(descending=True).values[count - 1]
    return (score.detach() >= least) & (score.detach() > 0)


# -- Matryoshka ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("settings", [{"groups": (0.25, 0.25, 0.5)}, {"prefixes": 5, "prefix_seed": 2}])
def test_matryoshka(rows, fast, reduce, settings):
    d = started(Matryoshka(n_latents=N, k=3, reduce=reduce, row_limit=None, k_aux=4, **settings), rows)
    bounds = d.architecture.bounds(9)

    def expected(x):
        pre = (x - d.b_dec) @ d.W_enc.T + d.b_enc
        f = torch.where(flat_largest(pre, 3 * ROWS), pre.relu(), 0.0)
        written = [f[:, :m] @ d.W_dec[:m] + d.b_dec for m in bounds]
        errors = [fraction(x, y_hat) for y_hat in written]
        total = sum(errors) / (1 if reduce == "sum" else len(errors))
        return total + aux_k(d, d.W_dec, pre, x, written[-1], 4) / 32

    compare(d, rows, expected, fast=fast, number=9)


@pytest.mark.parametrize("fast", [True, False])
def test_matryoshka_aux_of_each_group_on_what_its_prefix_leaves(rows, fast):
    d = started(Matryoshka(n_latents=N, k=3, row_limit=None, k_aux=2, groups=(0.25, 0.75), aux_per_group=True), rows)

    def expected(x):
        pre = (x - d.b_dec) @ d.W_enc.T + d.b_enc
        f = torch.where(flat_largest(pre, 3 * ROWS), pre.relu(), 0.0)
        first, both = f[:, :6] @ d.W_dec[:6] + d.b_dec, f @ d.W_dec + d.b_dec
        early = DEAD & (torch.arange(N) < 6)
        aux = aux_k(d, d.W_dec, pre, x, first, 2, early) + aux_k(d, d.W_dec, pre, x, both, 2, DEAD & ~early)
        return fraction(x, first) + fraction(x, both) + aux / 32

    compare(d, rows, expected, fast=fast)


def test_matryoshka_of_one_group_is_batch_topk(rows):
    one = started(Matryoshka(n_latents=N, k=3, groups=(1.0,)), rows)
    other = sae.Dictionary(
        sae.BatchTopK(n_latents=N, k=3), one.ends, dict(one.named_parameters()), dict(one.named_buffers())
    )
    x, y = one.normalised(rows[:ROWS])
    step = Step(dead=DEAD, n_dead=int(DEAD.sum()))
    a, b = one.architecture.loss(one, x, y, step), other.architecture.loss(other, x, y, step)
    assert torch.equal(a.total, b.total)


def test_matryoshka_random_prefixes_are_a_function_of_seed_and_step():
    a = Matryoshka(n_latents=1000, k=3, prefixes=10, prefix_seed=5)
    drawn = [a.bounds(step) for step in range(200)]
    assert drawn == [a.bounds(step) for step in range(200)] and len(set(drawn)) == 200
    assert drawn != [Matryoshka(n_latents=1000, k=3, prefixes=10, prefix_seed=6).bounds(step) for step in range(200)]
    assert all(b[-1] == 1000 and len(set(b)) == 10 and list(b) == sorted(b) for b in drawn)
    # Pareto of power 1/2, cut off: P(length <= m) = (1 - m'^-.5) / (1 - 1000^-.5); two prefixes: one is drawn.
    two = Matryoshka(n_latents=1000, k=3, prefixes=2)
    lengths = np.array([two.bounds(step)[0] for step in range(3000)])
    for m in (1, 3, 30):
        assert (lengths <= m).mean() == pytest.approx((1 - (m + 1) ** -0.5) / (1 - 1000**-0.5), abs=0.03)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"groups": (0.5, 0.4)}, "together 1"),
        ({"reduce": "median"}, "sum"),
        ({"prefixes": 99}, "prefixes=99"),
        ({"groups": (0.01, 0.99)}, "would be empty"),
    ],
)
def test_matryoshka_refuses(settings, words):
    with pytest.raises((BadData, UnknownName), match=words):
        Matryoshka(n_latents=N, k=3, **settings)


# -- nested k --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("weights", ["uniform", "reverse"])
def test_nested_k(rows, fast, weights):
    d = started(NestedK(n_latents=N, ks=(2, 4, 7), weights=weights, k_aux=4), rows)
    shares = {"uniform": (1 / 3, 1 / 3, 1 / 3), "reverse": (3 / 6, 2 / 6, 1 / 6)}[weights]

    def expected(x):
        pre = (x - d.b_dec) @ d.W_enc.T + d.b_enc
        total = 0.0
        for k, share in zip((2, 4, 7), shares, strict=True):
            kept = torch.zeros_like(pre, dtype=torch.bool).scatter(1, pre.topk(k, dim=1).indices, True)
            y_hat = torch.where(kept, pre.relu(), 0.0) @ d.W_dec + d.b_dec
            total = total + share * fraction(x, y_hat)
        return total + aux_k(d, d.W_dec, pre, x, y_hat, 4) / 32

    loss = compare(d, rows, expected, fast=fast)
    assert torch.equal(loss.codes.dense() > 0, d.encode(rows[:ROWS]) > 0)


def test_nested_k_with_one_k_is_topk(rows):
    one = started(NestedK(n_latents=N, ks=(4,)), rows)
    other = sae.Dictionary(
        sae.TopK(n_latents=N, k=4), one.ends, dict(one.named_parameters()), dict(one.named_buffers())
    )
    x, y = one.normalised(rows[:ROWS])
    a, b = one.architecture.loss(one, x, y, Step()), other.architecture.loss(other, x, y, Step())
    assert torch.allclose(a.total, b.total, rtol=0, atol=1e-14)
    assert torch.equal(one.encode(rows), other.encode(rows))


@pytest.mark.parametrize(
    "settings", [{"ks": (4, 4)}, {"ks": (0, 2)}, {"ks": (4, 99)}, {"ks": ()}, {"ks": (4,), "k": 99}]
)
def test_nested_k_refuses(settings):
    with pytest.raises(BadData, match="of 24 latents"):
        NestedK(n_latents=N, **settings)


# -- matching pursuit ------------------------------------------------------------------------------------------------


def pursued(x, W, k, threshold=0.0, among=None):
    """Matching pursuit in numpy, one row after another."""
    codes, left = np.zeros((len(x), len(W))), x.copy()
    for code, r in zip(codes, left, strict=True):
        for _ in range(k):
            if threshold and np.linalg.norm(r) < threshold:
                break
            products = W @ r
            if among is not None:
                products[~among] = -np.inf
            j = int(products.argmax())
            v = max(products[j], 0.0)
            code[j] += v
            r -= v * W[j]
    return codes, left


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("threshold", [0.0, 0.4])
def test_matching_pursuit(rows, fast, threshold):
    d = started(MatchingPursuit(n_latents=N, k=6, residual_threshold=threshold), rows)

    def expected(x):
        r, chosen = x - d.b_dec, []
        for _ in range(6):
            hot = torch.nn.functional.one_hot((r @ d.W_dec.T).argmax(1), N).double()
            v = (r * (hot @ d.W_dec)).sum(1, keepdim=True).relu()
            v = torch.where(r.detach().norm(dim=1, keepdim=True) < threshold, 0.0, v)
            r = r - v * (hot @ d.W_dec)
            chosen.append(hot * v)
        e = r.detach()
        hot = torch.nn.functional.one_hot((e @ d.W_dec.T).masked_fill(~DEAD, -torch.inf).argmax(1), N).double()
        left = e - (e * (hot @ d.W_dec)).sum(1, keepdim=True).relu() * (hot @ d.W_dec)
        expected.codes = sum(chosen).detach()
        return fraction(x, x - r) + (left**2).sum() / ((e - e.mean(0)) ** 2).sum() / 32

    loss = compare(d, rows, expected, fast=fast)
    assert torch.allclose(loss.codes.dense(), expected.codes, atol=1e-12)
    # Some atom came twice in a row, or the sums of codes would not be tested.
    assert (loss.codes.dense() > 0).sum(1).min() < 6


@pytest.mark.parametrize("gram", [True, False])
def test_matching_pursuit_codes_equal_a_loop_in_numpy(rows, gram):
    d = started(MatchingPursuit(n_latents=N, k=6, residual_threshold=0.3), rows)
    x = d.normalised(rows)[0] - d.b_dec.detach()
    codes, left = pursued(x.numpy(), d.W_dec.detach().numpy(), 6, 0.3)
    found = pursue(x, d.W_dec.detach(), 6, threshold=0.3, gram=gram)
    assert np.abs(found.codes(N).numpy() - codes).max() < 1e-12
    assert np.abs(found.residual.numpy() - left).max() < 1e-12
    assert np.abs(d.encode(rows).detach().numpy() - codes).max() < 1e-12


def test_matching_pursuit_codes_have_gradients_to_rows_and_atoms(rows):
    W = torch.nn.functional.normalize(rows[100:109], dim=1)

    def f(x, atoms):
        found = pursue(x, atoms, 4, threshold=0.5, gram=False)
        return found.codes(len(W)), found.residual

    x = rows[:3].clone()
    assert (f(x, W)[0] > 0).sum() >= 6
    assert torch.autograd.gradcheck(f, (x.requires_grad_(True), W.requires_grad_(True)))


def test_gram_form_takes_the_same_atoms(rows):
    d = started(MatchingPursuit(n_latents=N, k=6), rows)
    x, W = rows - rows.mean(0), d.W_dec.detach()
    for among in (None, DEAD):
        assert torch.equal(choose(x, W, 8, gram=True, among=among), choose(x, W, 8, gram=False, among=among))


def test_more_steps_never_hurt_and_the_residual_is_at_right_angles_to_the_last_atom(rows):
    W = torch.nn.functional.normalize(
        torch.randn(N, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), dim=1
    )
    norms = [pursue(rows, W, k).residual.norm(dim=1) for k in range(1, 8)]
    assert all((b <= a + 1e-12).all() for a, b in pairwise(norms))
    found = pursue(rows, W, 5)
    took = found.values[-1] > 0
    assert took.any() and ((found.residual * W[found.atoms[-1]]).sum(1)[took].abs() < 1e-12).all()


def test_orthogonal_pursuit_equals_scipy_on_the_selected_support(rows):
    d = started(MatchingPursuit(n_latents=N, k=6, residual_threshold=0.0, solve="nnls"), rows)
    x, W = d.normalised(rows)[0] - d.b_dec.detach(), d.W_dec.detach()
    codes, plain = d.encode(rows).detach(), pursue(x, W, 6)
    found = orthogonal_pursue(x, W, 6)
    clipped = 0
    for b in range(len(x)):
        taken = found.atoms[:, b]
        z, norm = scipy_nnls(W[taken].T.numpy(), x[b].numpy())
        # An atom enters only when it points along the residual, so all of `taken` may have been offered to scipy.
        assert np.abs(codes[b, taken].numpy() - z).max() < 1e-9
        assert float(found.residual[b].norm()) == pytest.approx(norm, abs=1e-9)
        clipped += int((z == 0).any())
    assert clipped > 0, "no coefficient was ever held at zero, so the inequality is not tested"
    assert (codes >= 0).all() and ((codes > 0).sum(1) <= 6).all()
    assert found.residual.norm(dim=1).mean() < plain.residual.norm(dim=1).mean()


def test_orthogonal_pursuit_has_gradients_of_its_last_solution(rows):
    W = torch.nn.functional.normalize(
        torch.randn(N, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), dim=1
    )

    def f(x):
        return orthogonal_pursue(x, W, 3).codes(N)

    assert torch.autograd.gradcheck(f, (rows[:3].clone().requires_grad_(True),))


def test_nnls_equals_scipy(rows):
    generator = np.random.default_rng(0)
    A, b = generator.normal(size=(50, 8, 5)), generator.normal(size=(50, 8))
    z, inside = nnls(torch.as_tensor(A.transpose(0, 2, 1) @ A), torch.as_tensor(np.einsum("bij,bi->bj", A, b)))
    right = np.stack([scipy_nnls(a, y)[0] for a, y in zip(A, b, strict=True)])
    assert np.abs(z.numpy() - right).max() < 1e-10
    assert np.array_equal(inside.numpy(), right > 0) and (right == 0).any()


def test_matching_pursuit_refuses(rows):
    with pytest.raises(RefusedMethod, match="norm one"):
        MatchingPursuit(n_latents=N, k=3, decoder="free")
    with pytest.raises(UnknownName, match="nnls"):
        MatchingPursuit(n_latents=N, k=3, solve="lasso")
    with pytest.raises(RefusedMethod, match="transcoder"):
        sae.start(MatchingPursuit(n_latents=N, k=3), {"a": rows, "b": rows}, reads="a", writes="b")


# -- archetypal ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("select", ["topk", "batch_topk"])
def test_archetypal(rows, fast, select):
    d = started(
        Archetypal(n_latents=N, k=3, candidates=30, select=select, row_limit=None, k_aux=4, bias=True), rows, 0.01
    )

    def expected(x):
        atoms = torch.exp(d.log_scale) * (d.mix @ d.candidates + d.relax)
        pre = (x - d.b_dec) @ d.W_enc.T + d.b_enc
        score = pre * atoms.detach().norm(dim=1)
        if select == "topk":
            kept = torch.zeros_like(pre, dtype=torch.bool).scatter(1, score.topk(3, dim=1).indices, True)
        else:
            kept = flat_largest(score, 3 * ROWS)
        y_hat = torch.where(kept, pre.relu(), 0.0) @ atoms + d.b_dec
        return fraction(x, y_hat) + aux_k(d, atoms, pre, x, y_hat, 4) / 32

    compare(d, rows, expected, fast=fast)


def test_archetypal_projection_keeps_mixtures_and_short_relaxations(rows):
    d = started(Archetypal(n_latents=N, k=3, candidates=12, delta=0.2), rows, 0.5)
    assert (d.mix >= 0).all() and torch.allclose(d.mix.sum(1), torch.ones(N, dtype=torch.float64))
    assert (d.relax.norm(dim=1) <= 0.2 + 1e-12).all() and d.relax.norm(dim=1).max() > 0.19
    before = d.mix.detach().clone()
    project_(d.mix, d.relax, 0.2)
    assert torch.allclose(before, d.mix, atol=1e-14)


def test_archetypal_starts_without_empty_atoms_when_candidates_are_fewer_than_latents(rows):
    d = sae.start(Archetypal(n_latents=N, k=3, candidates=5), {"site": rows})
    assert (d.W_dec.norm(dim=1) > 0).all()


def test_archetypal_folds_once_and_is_usable_from_its_file(rows, tmp_path):
    d = started(Archetypal(n_latents=N, k=3), rows, 0.01)
    folded = d.folded()
    assert torch.allclose(folded.W_dec.norm(dim=1), torch.ones(N, dtype=torch.float64))
    assert torch.allclose(d(rows), folded(rows), atol=1e-12)
    assert torch.equal(folded.folded().W_enc, folded.W_enc)
    again = sae.load(folded.save(tmp_path / "d"))
    assert torch.equal(again(rows), folded(rows))
    made = torch.exp(again.log_scale) * (again.mix @ again.candidates + again.relax) / again.row_norm[:, None]
    assert torch.allclose(made, again.W_dec, atol=1e-12)


def test_archetypal_refuses(rows):
    with pytest.raises(BadData, match="init_rows"):
        sae.start(Archetypal(n_latents=N, k=3, candidates=1000), {"site": rows})
    with pytest.raises(BadData, match="use 'free'"):
        Archetypal(n_latents=N, k=3, decoder="unit")


# -- sparsemax -------------------------------------------------------------------------------------------------------


def sparsemax_by_sorting(s):
    """Martins and Astudillo 2016, with a full sort."""
    ordered = s.sort(dim=1, descending=True).values
    sums = ordered.cumsum(1)
    j = torch.arange(1, s.shape[1] + 1, dtype=s.dtype)
    kappa = ((1 + j * ordered) > sums).sum(1, keepdim=True)
    tau = (sums.gather(1, kappa - 1) - 1) / kappa
    return (s - tau).relu(), tau[:, 0]


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("codes", ["scores", "weights"])
@pytest.mark.parametrize("masked", [False, True])
def test_sparsemax(rows, fast, codes, masked):
    d = started(Sparsemax(n_latents=N, codes=codes, temperature=0.5, cls_weight=3.0), rows, 0.3)
    if masked:
        d.frequency[:5] = 0.5
    types = torch.arange(ROWS) % 4

    def expected(x):
        length = x.norm(dim=1, keepdim=True)
        s = (x / length) @ (d.concepts @ d.to_key).T / 0.5
        s = s.masked_fill(d.frequency > 0.1, -1e9)
        p, _ = sparsemax_by_sorting(s)
        f = torch.where(p > 0, s, 0.0) if codes == "scores" else p
        y_hat = length * (f @ (d.concepts @ d.to_value))
        errors = (y_hat - x) ** 2 / length * torch.where(types == 0, 3.0, 1.0)[:, None]
        expected.codes = (length * f).detach()
        return 10 * errors.mean()

    loss = compare(d, rows, expected, fast=fast, types=types)
    assert torch.allclose(loss.codes.dense(), expected.codes, atol=1e-12)
    assert torch.allclose(d.encode(rows[:ROWS]), expected.codes, atol=1e-12)


@pytest.mark.parametrize("spread", [1.0, 0.1, 0.01, 1e-4])
def test_sparsemax_tau_is_exact_against_a_full_sort(spread):
    s = spread * torch.randn(30, 3000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    p, tau = sparsemax_by_sorting(s)
    support, found = sparsemax_support(s)
    assert torch.allclose(found, tau, rtol=0, atol=1e-13)
    assert torch.equal(support.mask(), p > 0)
    assert ((s - found[:, None]).relu().sum(1) - 1).abs().max() < 1e-10
    # The supports go from within the first look to far beyond it.
    assert (support.counts.max() > 64) == (spread < 0.1)


def test_sparsemax_folds_once_and_is_usable_from_its_file(rows, tmp_path):
    d = started(Sparsemax(n_latents=N), rows, 0.3)
    folded = d.folded()
    assert torch.allclose(folded.W_dec.norm(dim=1), torch.ones(N, dtype=torch.float64))
    assert torch.allclose(d(rows), folded(rows), atol=1e-12)
    assert torch.equal(folded.folded().encode(rows), folded.encode(rows))
    again = sae.load(folded.save(tmp_path / "d"))
    assert torch.equal(again(rows), folded(rows))


@pytest.mark.parametrize("codes", ["scores", "weights"])
def test_sparsemax_codes_have_gradients_to_rows(rows, codes):
    d = started(Sparsemax(n_latents=N, codes=codes, normalise="none"), rows, 0.3)
    assert torch.autograd.gradcheck(d.encode, (rows[:4].clone().requires_grad_(True),))


def test_sparsemax_refuses(rows):
    with pytest.raises(UnknownName, match="weights"):
        Sparsemax(n_latents=N, codes="attention")
    d = started(Sparsemax(n_latents=N), rows)
    d.frequency[:] = 1.0
    with pytest.raises(BadData, match="max_frequency"):
        d.encode(rows)
