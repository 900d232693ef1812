"""Defects that other libraries have (or had), each shown not to be here: gradients, thresholds, dead latents, files.

Matryoshka, matching pursuit, archetypal and sparsemax: `test_known_defects_more.py`. No test for resampling through
chained indexing (dictionary_learning): dead latents are not drawn anew here, `aux` is what brings them back.
"""

from dataclasses import replace

import pytest
import torch

import sae
from mechvis.kernels.support import Support
from sae import sparse
from sae.architecture import Step
from sae.data import Rows
from sae.select import batch_support
from sae.training.job import Learner

ALIVE_ROW, DEAD_ROW = 1, 24
"""Latents that the moment of training of conftest says are alive, and dead."""


def gradients(case, step):
    d = case.dictionary()
    x, y = d.normalised(case.rows())
    loss = d.architecture.loss(d, x, y, step)
    loss.total.backward()
    return d, loss, {name: p.grad.clone() for name, p in d.named_parameters()}


# -- dead latents ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fast", [True, False])
def test_sparsify_aux_k_reaches_the_encoder(fast, make_case, make_step):
    """`fused_encoder.py:53` drops the gradient of pre-activations: AuxK's gradient to the encoder was exactly zero."""
    _, _, without = gradients(make_case("topk", k=3, aux=0.0), make_step(fast=fast))
    _, loss, found = gradients(make_case("topk", k=3, aux=1.0), make_step(fast=fast))
    assert float(loss.parts["aux"]) > 0
    for name in ("W_enc", "b_enc", "W_dec"):
        assert (found[name] - without[name])[DEAD_ROW].abs().sum() > 1e-3, name


@pytest.mark.parametrize("name", ["topk", "batch_topk", "relu", "gated", "p_anneal", "jumprelu"])
def test_overcomplete_auxiliary_loss_is_about_dead_latents_only(name, make_case, make_step):
    """Its `top_k_auxiliary_loss` takes the next largest latents, dead or not."""
    k = {"k": 3} if "topk" in name else {}
    step = make_step()
    _, _, without = gradients(make_case(name, aux=0.0, **k), step)
    d, _, found = gradients(make_case(name, aux=1.0, **k), step)
    changed = {n: (found[n] - without[n]).abs() for n in found if len(found[n]) == d.n_latents}
    for parameter, change in changed.items():
        assert change[~step.dead].max() < 1e-12, parameter
    assert changed["W_enc"][step.dead].sum() > 1e-3


def test_no_dead_latents_no_auxiliary_loss(make_case, make_step):
    """Also where the host still knows of some that have come alive since."""
    step = make_step(dead=torch.zeros(96, dtype=torch.bool), n_dead=5)
    _, _, found = gradients(make_case("topk", k=3, aux=1.0), step)
    _, _, without = gradients(make_case("topk", k=3, aux=0.0), step)
    assert all((found[n] - without[n]).abs().max() < 1e-12 for n in found)


@pytest.mark.parametrize("fast", [True, False])
def test_a_batch_whose_error_does_not_vary_has_finite_gradients(fast, make_case, make_step):
    """AuxK divides by the variance of the error, zero for one row: the loss is left out, and no NaN comes in."""
    case = make_case("topk", k=3, aux=1.0)
    d = case.dictionary()
    x, y = d.normalised(case.rows(n=1))
    loss = d.architecture.loss(d, x, y, make_step(fast=fast, types=None))
    loss.total.backward()
    assert float(loss.parts["aux"]) == 0
    assert all(torch.isfinite(p.grad).all() for p in d.parameters())


@pytest.mark.parametrize(
    ("name", "power"), [("topk", 0), ("batch_topk", 0), ("relu", 2), ("gated", 2), ("jumprelu", 2)]
)
def test_d6_the_auxiliary_loss_has_the_scale_of_the_error(name, power, make_case, make_step):
    """dictionary_learning #36: error and auxiliary loss on different scales. Here longer rows change both alike."""
    case = make_case(name, normalise="none", aux=1.0, **({"k": 3} if "topk" in name else {}))
    parts = []
    for c in (1.0, 10.0):
        d = case.dictionary()
        with torch.no_grad():
            for parameter, tensor in d.named_parameters():
                if parameter not in ("W_enc", "W_dec", "r_mag"):
                    tensor *= c
        x, y = d.normalised({site: c * rows for site, rows in case.rows().items()})
        architecture = (
            replace(d.architecture, bandwidth=c * d.architecture.bandwidth) if name == "jumprelu" else d.architecture
        )
        parts.append(architecture.loss(d, x, y, make_step()).parts)
    for part in ("error", "aux"):
        assert float(parts[1][part]) == pytest.approx(10.0**power * float(parts[0][part]), rel=1e-9)


# -- thresholds --------------------------------------------------------------------------------------------------------


def test_overcomplete_theta_gradient_is_minus_50_not_minus_50000():
    """Its kernels divide by ε, and the backward pass divides again."""
    from sae.jump import jump

    theta = torch.tensor([0.05], dtype=torch.float64, requires_grad=True)
    jump(torch.tensor([0.0501], dtype=torch.float64), theta, 0.001, False).sum().backward()
    assert float(theta.grad) == pytest.approx(-50.0)


@pytest.mark.parametrize("fast", [True, False])
def test_dictionary_learning_l0_counts_in_the_lower_half_of_the_window(fast):
    """Its L0 step is taken at the gated f, which is 0 below θ: only the upper half of the window gave a gradient."""
    rows = torch.eye(4, dtype=torch.float64)
    a = sae.architectures.JumpReLU(n_latents=4, penalty="l0", threshold_init=0.5, bandwidth=0.2, normalise="none")
    d = sae.start(a, {"site": rows})
    with torch.no_grad():
        d.W_enc.copy_(torch.diag(torch.tensor([0.45, 0.55, 0.35, 0.65])))
        d.b_enc.zero_(), d.W_dec.zero_(), d.b_dec.zero_()
    a.loss(d, rows, rows, Step(fast=fast)).total.backward()
    assert d.threshold.grad.tolist() == pytest.approx([-1 / 0.2 / 4, -1 / 0.2 / 4, 0, 0])


def test_theta_at_zero_can_leave_it_again(make_case, make_step):
    """Clamped inside the graph, θ = 0 has no gradient and stays for ever; projected outside it moves."""
    case = make_case("jumprelu", penalty="l0", sparsity=1.0, bandwidth=1.0, to_input=False)
    d = case.dictionary()
    with torch.no_grad():
        d.threshold.fill_(-0.3)
    d.architecture.before(d, make_step())
    assert d.threshold.eq(0).all()
    x, y = d.normalised(case.rows())
    d.architecture.loss(d, x, y, make_step()).total.backward()
    assert d.threshold.grad.lt(0).any(), "a step against the gradient makes θ positive"


def test_overcomplete_batch_topk_keeps_k_per_row_of_the_batch(make_case, make_step):
    """Its `top_k` is a total: not multiplied with the rows of the batch."""
    case = make_case("batch_topk", k=3, row_limit=None)
    _, loss, _ = gradients(case, make_step())
    assert len(loss.codes.support) == 3 * len(case.rows()["a"])


@pytest.mark.parametrize("name", ["batch_topk", "batch_topk_crosscoder", "matryoshka"])
def test_overcomplete_running_threshold_is_saved(name, make_case, make_step, tmp_path):
    """Its threshold is a plain attribute, lost with the file."""
    case = make_case(name, ends="crosscoder" if "crosscoder" in name else "autoencoder", k=3)
    d = case.dictionary()
    x, y = d.normalised(case.rows())
    with torch.no_grad():
        d.architecture.after(d, d.architecture.loss(d, x, y, make_step()), make_step())
    states = {n: t for n, t in d.named_buffers() if "threshold" in n}
    assert states and all((t > 0).all() for t in states.values())
    loaded = sae.load(d.save(tmp_path / "d"))
    for n, t in states.items():
        assert torch.equal(dict(loaded.named_buffers())[n], t)
    codes = d.encode(case.rows())
    assert (codes > 0).any() and torch.equal(loaded.encode(case.rows()) > 0, codes > 0)


def test_clt_training_batch_selection_is_exact_where_row_norms_differ():
    """Largest 4k of each row first: on rows of very different norms, 17 % of rows were cut off there."""
    draw = torch.Generator().manual_seed(0)
    scores = torch.randn(256, 512, generator=draw) * torch.randn(256, 1, generator=draw).exp()
    support, least = batch_support(scores, 4)
    expected = scores.flatten().sort(descending=True).values[4 * 256 - 1]
    assert least == expected and torch.equal(support.mask(), scores >= expected)
    assert support.counts.max() > 16, "no row went over the quota, so nothing was tested"


def test_saelens_lists_of_codes_with_a_free_decoder(make_case):
    """`use_sparse_activations` with codes weighted by decoder norms raises NotImplementedError there."""
    case = make_case("topk", decoder="free", k=3)
    d, (rows,) = case.dictionary(), case.rows().values()
    support, values = d.active(rows)
    assert torch.equal(support.dense(values), d.encode(rows)) and len(support) <= 3 * len(rows)
    assert torch.allclose(sparse.decode_at(values, support, d.directions) + d.b_dec * d.scale_out, d(rows))


# -- gradients of biases, places of parameters -------------------------------------------------------------------------


def test_clt_training_bias_gradient_is_the_sum_over_a_column():
    """`FusedEncoderCOO` scatters with row indices."""
    mask = torch.tensor([[True, False, True, False], [True, False, False, True]])
    support = Support.from_mask(mask)
    x, weight = torch.ones(2, 3, dtype=torch.float64), torch.ones(4, 3, dtype=torch.float64)
    bias = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    upstream = torch.tensor([1.0, 10.0, 100.0, 1000.0], dtype=torch.float64)
    (sparse.encode_at(x, None, weight, bias, support) * upstream).sum().backward()
    assert bias.grad.tolist() == [101.0, 0.0, 10.0, 1000.0]


def distinct(d) -> bool:
    places = [t.untyped_storage().data_ptr() for t in d.state_dict().values()]
    return len(set(places)) == len(places)


def test_saev_weights_share_no_memory(dictionary_case, make_step, tmp_path):
    """W_enc as a view of W_dec: renormalising or loading one changed the other."""
    d = dictionary_case.start()
    assert distinct(d)
    with torch.no_grad():
        one_step(d, dictionary_case, make_step())
    assert distinct(d.folded()) and distinct(sae.load(d.save(tmp_path / "d")))


# -- the decoder on the sphere, and files ------------------------------------------------------------------------------


def one_step(d, case, step):
    """What a step leaves of state, so that the dictionary can be used."""
    a = d.architecture
    step = replace(step, dead=step.dead.repeat(d.n_codes // len(step.dead)))
    for seed in (1, 0):  # two, since the first threshold is exactly where an entry is
        a.before(d, step)
        x, y = d.normalised(case.rows(seed))
        with torch.enable_grad():
            loss = a.loss(d, x, y, step)
        a.after(d, loss, step)
    return loss


def test_d6_decoder_rows_are_unit_after_every_step(unit_case):
    """dictionary_learning #36: normalised before the step, so that saved rows were not unit."""
    d = unit_case.dictionary()
    learner = Learner(d, sae.Training(tokens=32 * 10, batch=32, lr=0.05, lr_warm_up=0))
    for number in range(3):
        before = {n: getattr(d, n).detach().clone() for n in d.architecture.UNIT if hasattr(d, n)}
        learner.step(number, Rows(activations=unit_case.rows(number)))
        for name, rows in before.items():
            now = getattr(d, name)
            assert (now.norm(dim=1) - 1).abs().max() < 1e-12
            assert (now - rows).abs().max() > 1e-4, "nothing was learned, so nothing was tested"


def test_d1_a_saved_dictionary_reconstructs_as_it_did_in_training(dictionary_case, make_step, tmp_path):
    """SAELens #212, #354, #381: scaling or norms folded into some of the weights only."""
    d = dictionary_case.dictionary()
    rows = dictionary_case.rows()
    with torch.no_grad():
        one_step(d, dictionary_case, make_step())
        before = d(rows)
        for fold in (True, False):
            after = sae.load(d.save(tmp_path / str(fold), fold=fold))(rows)
            assert (after - before).abs().max() < 1e-9 * (1 + before.abs().max())
        learner = Learner(d, sae.Training(tokens=320, batch=32))
        other = Learner(dictionary_case.start(), sae.Training(tokens=320, batch=32))
        other.load({n: t.clone() for n, t in learner.tensors().items()}, learner.numbers())
        assert torch.equal(other.dictionary(rows), before), "a checkpoint in the middle of training"


@pytest.mark.parametrize("name", ["topk", "relu", "gated", "p_anneal", "jumprelu"])
@pytest.mark.parametrize("decoder", ["unit", "free"])
@pytest.mark.parametrize("normalise", ["none", "mean_square", "mean_norm", "token_norm", "layer_norm"])
def test_d1_what_the_loss_saw_is_what_comes_out_in_units_of_the_model(
    name, decoder, normalise, make_case, make_step, tmp_path
):
    """The scaling is undone by hand here; for architectures that choose row by row, in training as later."""
    case = make_case(name, decoder=decoder, normalise=normalise, **({"k": 3} if name == "topk" else {}))
    d = case.dictionary()
    (rows,) = case.rows().values()
    with torch.no_grad():
        y_hat = one_step(d, case, make_step()).y_hat
    scale, shift = {
        "none": (1.0, 0.0),
        "mean_square": ((rows**2).sum(1).mean().sqrt(), 0.0),
        "mean_norm": (rows.norm(dim=1).mean() / 8**0.5, 0.0),
        "token_norm": (rows.norm(dim=1, keepdim=True) / 8**0.5, 0.0),
        "layer_norm": (rows.std(1, keepdim=True), rows.mean(1, keepdim=True)),
    }[normalise]
    loaded = sae.load(d.save(tmp_path / "d"))
    assert torch.allclose(loaded(rows), y_hat * scale + shift, atol=1e-10, rtol=1e-10)
    assert (loaded.W_dec.norm(dim=1) - 1).abs().max() < 1e-12
    # Folding changes how long codes are, and nothing else.
    assert torch.allclose(loaded.encode(rows), d.encode(rows) * d.W_dec.norm(dim=1), atol=1e-10)
