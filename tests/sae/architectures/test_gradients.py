"""Every architecture, both forms of its loss: over active latents alone, and over all with autograd for everything."""

from dataclasses import replace

import pytest
import torch

from mechvis.errors import MechvisError

TOLERANCE = 1e-10

ALWAYS_PLAIN: set[str] = set()
"""Architectures whose codes are matrices in both forms."""
ALWAYS_LISTS = {"matching_pursuit", "cross_layer_transcoder"}
"""Architectures whose codes are lists in both forms."""

WITHOUT_GRADIENT = {"universal": {"W_enc_0", "b_enc_0"}, "archetypal": {"b_dec"}}
"""Parameters that do not learn in this step: of the model that is not read, of a bias that is not asked for."""


def run(d, case, step, seed=0):
    """Loss, gradients and state after a step."""
    a = d.architecture
    step = replace(step, dead=step.dead.repeat(d.n_codes // len(step.dead)))
    with torch.no_grad():
        a.before(d, step)
        x, y = d.normalised(case.rows(seed))
    d.zero_grad()
    loss = a.loss(d, x, y, step)
    loss.total.backward()
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in d.named_parameters()}
    with torch.no_grad():
        a.after(d, loss, step)
    return loss, gradients, {name: b.clone() for name, b in d.named_buffers()}


def furthest(one, other):
    """Largest difference, beside the size of what is compared."""
    return max(float((one[name] - other[name]).abs().max() / (1 + one[name].abs().max())) for name in one)


def compare(plain, fast):
    """The largest differences of loss, gradients, state and codes."""
    (loss, gradients, state), (other, others, later) = plain, fast
    return {
        "loss": float((loss.total - other.total).detach().abs() / (1 + loss.total.detach().abs())),
        "gradient": furthest(gradients, others),
        "state": furthest(state, later) if state else 0.0,
        "codes": float((loss.codes.dense() - other.codes.dense()).abs().max()),
        "y_hat": float((loss.y_hat - other.y_hat).abs().max()),
        "parts": furthest(dict(loss.parts), dict(other.parts)),
    }


def test_fast_is_plain_and_every_parameter_learns(dictionary_case, make_step):
    plain = run(dictionary_case.dictionary(), dictionary_case, make_step(fast=False))
    fast = run(dictionary_case.dictionary(), dictionary_case, make_step(fast=True))
    found = compare(plain, fast)
    assert max(found.values()) < TOLERANCE, found
    if dictionary_case.name not in ALWAYS_LISTS:
        assert plain[0].codes.mask is not None
    if dictionary_case.name not in ALWAYS_PLAIN:
        assert fast[0].codes.mask is None, "the fast form was not taken, so nothing was compared"
    gradients = fast[1]
    assert all(torch.isfinite(g).all() for g in gradients.values())
    still = [name for name, g in gradients.items() if not g.abs().sum() > 0]
    assert set(still) <= WITHOUT_GRADIENT.get(dictionary_case.name, set()), f"no gradient for {still}"


def test_what_cannot_be_is_refused(refused_case):
    with pytest.raises(MechvisError):
        refused_case.start()


@pytest.mark.parametrize("name", ["relu", "gated", "p_anneal", "jumprelu"])
@pytest.mark.parametrize("ends", ["autoencoder", "transcoder"])
@pytest.mark.parametrize("bf16", [False, True])
def test_many_active_latents_take_the_plain_form_and_say_the_same(name, ends, bf16, make_case, make_step):
    case = make_case(name, ends=ends, aux=0.2)
    plain = run(case.dictionary(active=0.4), case, make_step(fast=False))
    fast = run(case.dictionary(active=0.4), case, make_step(fast=True, bf16=bf16))
    assert fast[0].codes.mask is not None
    assert max(compare(plain, fast).values()) < TOLERANCE


@pytest.mark.parametrize("limit", [None, 0.1])
def test_the_rule_is_a_share_of_the_batch(limit, make_case):
    from sae.density import CPU_LIMIT, settled

    case = make_case("relu")
    d = case.dictionary()
    x, _ = d.normalised(case.rows())
    encoded = d.encoder(x, fast=True)
    order = encoded.pre.flatten().sort(descending=True).values
    most = int((limit or CPU_LIMIT) * order.numel())
    exactly, one_more = order[most - 1], order[most]
    assert settled(encoded, lambda pre: pre >= exactly, limit)[0].fast
    assert not settled(encoded, lambda pre: pre >= one_more, limit)[0].fast


@pytest.mark.parametrize("name", ["relu", "gated", "p_anneal", "jumprelu", "topk", "batch_topk"])
def test_bf16_chooses_and_full_precision_computes(name, make_case, make_step):
    settings = {"k": 3} if "topk" in name else {}
    case = make_case(name, **settings)
    plain, *_ = run(case.dictionary(), case, make_step(fast=False))
    fast, *_ = run(case.dictionary(), case, make_step(fast=True, bf16=True))
    both = fast.codes.dense().ne(0) & plain.codes.dense().ne(0)
    assert both.sum() > 0.8 * plain.codes.dense().ne(0).sum()
    assert (fast.codes.dense() - plain.codes.dense())[both].abs().max() < TOLERANCE


def test_the_matrix_gets_the_history_that_it_did_not_have(make_case):
    """Also for rows that want a gradient."""
    from sae.active import encoder
    from sae.density import settled

    d = make_case("relu").dictionary()
    x = torch.randn(20, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = []
    for fast in (False, True):
        rows = x.clone().requires_grad_()
        e = encoder(rows, d.b_dec, d.W_enc, d.b_enc, fast=fast)
        e, support = settled(e, lambda pre: pre > -10, limit=0.0)
        assert len(support) == 20 * d.n_latents and not e.fast
        wanted = [rows, d.b_dec, d.W_enc, d.b_enc]
        found.append(torch.autograd.grad((e.pre.sin() * e.pre).sum(), wanted))
    assert all((a - b).abs().max() < TOLERANCE for a, b in zip(*found, strict=True))
