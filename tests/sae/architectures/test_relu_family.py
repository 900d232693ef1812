"""ReLU, Gated, p-anneal and JumpReLU: recipes, starts, schedules, thresholds, what they refuse, what they find."""

import pytest
import torch

import sae
from mechvis.errors import BadData, MechvisError, UnknownName
from mechvis.testing import planted_dict
from sae.architecture import Step
from sae.architectures import Gated, JumpReLU, PAnneal, ReLU

ROWS = torch.randn(200, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1


def begun(architecture):
    return sae.start(architecture, {"site": ROWS})


# -- recipes: the numbers of sae.md section 2 --------------------------------------------------------------------------

RECIPES = {
    "relu dl": (
        ReLU.dictionary_learning(64),
        {"l1": 0.1, "decoder": "unit", "normalise": "mean_square", "norm_init": 0.1},
    ),
    "relu april": (
        ReLU.anthropic_april_2024(64),
        {"l1": 5.0, "decoder": "free", "normalise": "mean_norm", "centre": False},
    ),
    "relu saelens": (ReLU.saelens(64), {"l1": 1.0, "decoder": "free", "normalise": "mean_norm", "norm_init": 0.1}),
    "gated dl": (Gated.dictionary_learning(64), {"l1": 0.1, "decoder": "unit", "norm_init": 1.0}),
    "p_anneal dl": (
        PAnneal.dictionary_learning(64),
        {"sparsity": 0.1, "p_start": 1.0, "p_end": 0.0, "updates": 10, "window": 10, "norm_init": 0.1},
    ),
    "jumprelu deepmind": (
        JumpReLU.deepmind(64, sparsity=1e-3),
        {"penalty": "l0", "threshold_init": 0.001, "bandwidth": 0.001, "log_threshold": True, "decoder": "unit"},
    ),
    "jumprelu dl": (
        JumpReLU.dictionary_learning(64),
        {"penalty": "target", "l0": 20.0, "sparsity": 1.0, "threshold_init": 0.001, "bandwidth": 0.001},
    ),
    "jumprelu gemma scope 2": (JumpReLU.gemma_scope_2(64, l0=8.0), {"penalty": "quadratic", "l0": 8.0}),
    "jumprelu saelens": (
        JumpReLU.saelens(64),
        {"penalty": "l0", "threshold_init": 0.01, "bandwidth": 0.05, "sparsity": 1.0, "log_threshold": False},
    ),
    "jumprelu january": (
        JumpReLU.anthropic_january_2025(64, sparsity=2.0),
        {
            "penalty": "tanh", "tanh_scale": 4.0, "pre_act": 3e-6, "bandwidth": 2.0, "threshold_init": 0.1,
            "to_input": True, "normalise": "mean_norm", "decoder": "free",
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("key", RECIPES)
def test_recipes_say_what_their_sources_say_and_survive_a_file(key):
    a, known = RECIPES[key]
    assert {name: getattr(a, name) for name in known} == known
    assert a.data_init == 0 and a.b_dec_init == "zero"
    d = begun(a)
    assert d.b_dec.eq(0).all()
    assert type(a).from_json(a.to_json()) == a


@pytest.mark.parametrize(
    ("architecture", "encoder", "decoder"),
    [
        (ReLU.dictionary_learning(64), 0.1, 1.0),
        (ReLU.saelens(64), 0.1, 0.1),
        (Gated(n_latents=64), 1.0, 1.0),
        (PAnneal(n_latents=64, decoder="free"), 0.1, 0.1),
        (JumpReLU.deepmind(64, sparsity=1.0), 1.0, 1.0),
        (JumpReLU.anthropic_january_2025(64, sparsity=1.0), (12 / (3 * 64)) ** 0.5, (12 / (3 * 64)) ** 0.5),
    ],
    ids=lambda value: getattr(value, "NAME", None),
)
def test_rows_start_at_their_norms_in_one_direction(architecture, encoder, decoder):
    d = begun(architecture)
    assert torch.allclose(d.W_enc.norm(dim=1), torch.tensor(encoder, dtype=torch.float64))
    assert torch.allclose(d.W_dec.norm(dim=1), torch.tensor(decoder, dtype=torch.float64))
    assert torch.allclose(torch.cosine_similarity(d.W_enc, d.W_dec), torch.ones(64, dtype=torch.float64))


@pytest.mark.parametrize("architecture", [ReLU(n_latents=64), ReLU(n_latents=64, centre=False), JumpReLU(n_latents=64)])
def test_the_encoder_starts_with_centred_rows_with_and_without_b_dec(architecture):
    d = begun(architecture)
    x, _ = d.normalised(ROWS)
    pre = d.encoder(x, fast=False).pre
    assert torch.allclose(pre, (x - d.b_dec) @ d.W_enc.T)
    assert d.b_dec.norm() > 0.1


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: ReLU(n_latents=8, l1=-1), "l1=-1"),
        (lambda: ReLU(n_latents=8, l1=float("nan")), "l1=nan"),
        (lambda: ReLU(n_latents=8, norm_init=0), "norm above 0"),
        (lambda: ReLU(n_latents=8, b_dec_init="mode"), "median"),
        (lambda: Gated(n_latents=8, aux=-0.1), "neither is negative"),
        (lambda: PAnneal(n_latents=8, p_end=2.0), "p falls"),
        (lambda: PAnneal(n_latents=8, anneal_start=0.9, anneal_end=0.5), "before the second"),
        (lambda: PAnneal(n_latents=8, updates=1), "at least 2 values"),
        (lambda: PAnneal(n_latents=8, epsilon=0.0), "ε above 0"),
        (lambda: JumpReLU(n_latents=64, penalty="l1"), "l0"),
        (lambda: JumpReLU(n_latents=64, pre_act_of="some"), "dead"),
        (lambda: JumpReLU(n_latents=8), "l0=20"),
        (lambda: JumpReLU(n_latents=64, bandwidth=0), "above 0"),
        (lambda: JumpReLU(n_latents=64, pre_act=float("inf")), "pre_act=inf"),
    ],
)
def test_settings_that_cannot_be(make, told):
    with pytest.raises((BadData, UnknownName), match=told):
        make()


# -- p-anneal ----------------------------------------------------------------------------------------------------------


def test_p_falls_at_equal_distances_and_does_not_reach_its_end():
    a = PAnneal(n_latents=8, anneal_start=0.2, anneal_end=1.0)
    levels = [a.level_at(number / 1000) for number in range(1000)]
    changes = [i for i in range(1, 1000) if levels[i] != levels[i - 1]]
    assert changes == [-(-(1800 + 800 * j) // 9) for j in range(1, 9)]
    assert levels[0] == levels[200] == 0 and levels[-1] == 8
    assert [a.p_of(level) for level in (0, 9)] == [1.0, 0.0]


def test_lambda_keeps_the_penalty_when_p_changes():
    a = PAnneal(n_latents=64, anneal_start=0.0, updates=3, window=2)
    d = begun(a)
    seen = []
    for number, progress in enumerate((0.0, 0.1, 0.2, 0.6)):
        step = Step(number=number, progress=progress)
        x, y = d.normalised(ROWS[number * 50 : (number + 1) * 50])
        with torch.no_grad():
            a.before(d, step)
            f = (d.encoder(x, fast=False).pre).relu()
            seen.append([float(((f + a.epsilon) ** p * (f > 0)).sum(1).mean()) for p in (1.0, 0.5)])
            loss = a.loss(d, x, y, step)
            a.after(d, loss, step)
    assert int(d.level) == 1
    expected = (seen[1][0] + seen[2][0]) / (seen[1][1] + seen[2][1])  # the last two batches before the change
    assert float(d.factor) == pytest.approx(expected)
    assert float(loss.parts["sparsity"]) == pytest.approx(seen[3][1])
    assert d.recent[0].eq(0).all() and d.recent[1].gt(0).all(), "batches with the old p do not count any more"


def test_p_changes_by_one_value_per_step_in_a_short_run():
    a = PAnneal(n_latents=64, anneal_start=0.0)
    d = begun(a)
    for expected in (1, 2, 3, 3):
        a.before(d, Step(progress=0.35))
        assert int(d.level) == expected
    assert float(d.factor) == 1.0, "no batch was seen, so there is nothing to compare"


def test_penalties_of_codes_near_zero_have_finite_gradients():
    a = PAnneal(n_latents=64, p_end=0.1)
    d = begun(a)
    d.level.fill_(9)
    with torch.no_grad():
        d.W_enc *= 1e-12
        d.b_enc.fill_(1e-14)
    x, y = d.normalised(ROWS)
    for fast in (True, False):
        d.zero_grad()
        a.loss(d, x, y, Step(fast=fast)).total.backward()
        slope = 0.1 * 1e-4**-0.9
        assert d.b_enc.grad.abs().max() < 2 * slope


class Stop(Exception):
    """Raised in the middle of a run."""


def test_p_and_lambda_go_on_after_a_crash(tmp_path):
    settings = sae.Training(tokens=64 * 60, batch=64, lr=1e-3, save_every=25, log_every=10)
    a = PAnneal(n_latents=32, anneal_start=0.1)

    def stop(line):
        if line["step"] == 40:
            raise Stop

    with pytest.raises(Stop):
        sae.train(ROWS, a, settings, out=tmp_path / "run", trackers=[stop], progress=False)
    resumed = sae.train(ROWS, a, settings, out=tmp_path / "run", progress=False).dictionary
    whole = sae.train(ROWS, a, settings, progress=False).dictionary
    assert int(whole.level) > 3 and float(whole.factor) != 1.0
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


# -- JumpReLU ----------------------------------------------------------------------------------------------------------


def test_entries_in_the_window_belong_to_the_support_with_value_zero(make_case, make_step):
    case = make_case("jumprelu", penalty="l0", bandwidth=0.05)
    d = case.dictionary()
    x, y = d.normalised(case.rows())
    codes = d.architecture.loss(d, x, y, make_step()).codes
    z, theta = d.encoder(x, fast=False).pre, d.threshold
    near = (z > theta - 0.025) & (z <= theta)
    assert near.sum() > 3 and codes.mask is None
    assert codes.support.mask()[near].all() and codes.dense()[near].eq(0).all()
    assert int(codes.positive().sum()) == int((z > theta).sum()), "what is not above θ does not fire"


@pytest.mark.parametrize("log", [True, False])
def test_folding_moves_theta_with_the_norm_of_its_row(log, make_case):
    case = make_case("jumprelu", decoder="free", log_threshold=log)
    d = case.dictionary()
    folded = d.folded()
    norms = d.W_dec.norm(dim=1)
    assert torch.allclose(folded.architecture.thresholds(folded), d.architecture.thresholds(d) * norms)
    assert torch.equal(folded.encode(case.rows()) > 0, d.encode(case.rows()) > 0)


def test_target_is_about_the_mean_and_quadratic_about_every_row(make_case, make_step):
    """Rows with 0 and 2 l0 active: the mean is right, no row is."""
    rows = torch.eye(4, dtype=torch.float64)[:2]
    for penalty, expected in (("target", 0.0), ("quadratic", 2 / 2 * 4.0)):
        a = JumpReLU(n_latents=4, penalty=penalty, l0=2.0, normalise="none")
        d = sae.start(a, {"site": rows})
        with torch.no_grad():
            d.W_enc.zero_()[:, 1] = 1
            d.b_enc.zero_(), d.b_dec.zero_()
        found = a.loss(d, rows, rows, Step())
        assert float(found.parts["sparsity"]) == pytest.approx(expected)


def test_pre_activation_loss_of_all_latents(make_case, make_step):
    case = make_case("jumprelu", decoder="free", penalty="tanh", pre_act=1.0, pre_act_of="all")
    d = case.dictionary()
    x, y = d.normalised(case.rows())
    found = d.architecture.loss(d, x, y, make_step())
    short = (d.threshold - d.encoder(x, fast=False).pre).relu() * d.W_dec.norm(dim=1)
    assert float(found.parts["pre_act"]) == pytest.approx(float(short.sum(1).mean().detach()))


# -- Gated -------------------------------------------------------------------------------------------------------------


def test_the_last_term_of_gated_does_not_move_the_decoder(make_case, make_step):
    """With no row for magnitudes to write, only that term is left, and it holds W_dec and b_dec fixed."""
    case = make_case("gated", l1=0.0)
    d = case.dictionary()
    with torch.no_grad():
        d.b_mag.fill_(-100.0)
    x, y = d.normalised(case.rows())
    loss = d.architecture.loss(d, x, y, make_step())
    assert loss.codes.dense().eq(0).all() and float(loss.parts["gate_error"]) > 0
    loss.total.backward()
    assert d.W_dec.grad.eq(0).all()
    assert torch.allclose(d.b_dec.grad, -2 * (y - d.b_dec).mean(0) - d.W_enc.T @ d.b_gate.grad)
    assert d.b_gate.grad.abs().sum() > 0


# -- what they find ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "architecture",
    [
        ReLU(n_latents=256),
        ReLU.saelens(256, l1=3.0),
        Gated(n_latents=256, l1=0.6),
        PAnneal(n_latents=256),
        JumpReLU(n_latents=256, l0=4.0),
        JumpReLU(n_latents=256, l0=4.0, penalty="quadratic", bandwidth=0.05, threshold_init=0.01),
    ],
    ids=["relu", "relu_free", "gated", "p_anneal", "jumprelu_target", "jumprelu_quadratic"],
)
def test_planted_directions_are_found(architecture):
    planted = planted_dict(20000, concepts=128, width=64, active=4, noise=0.05, equal=False)
    rows = torch.as_tensor(planted.vectors).float()
    settings = sae.Training(tokens=300_000, batch=512, lr=2e-3, log_every=500)
    d = sae.train(rows, architecture, settings, progress=False).dictionary
    truth = torch.nn.functional.normalize(torch.as_tensor(planted.concepts).float(), dim=1)

    def mean_max_cosine(directions):
        return float((torch.nn.functional.normalize(directions, dim=1) @ truth.T).max(0).values.mean().detach())

    assert mean_max_cosine(d.directions) >= 0.95
    untrained = sae.start(architecture, {"site": rows})
    assert mean_max_cosine(untrained.directions) < 0.9


def test_an_architecture_says_what_it_refuses():
    with pytest.raises(MechvisError, match="at least one latent"):
        ReLU(n_latents=0)


@pytest.mark.parametrize("architecture", [ReLU(n_latents=16, centre=True), JumpReLU.saelens(16, l0=4.0)])
def test_a_transcoder_cannot_take_off_a_bias_of_another_width(architecture):
    rows = {"in": ROWS, "out": ROWS[:, :5]}
    with pytest.raises(BadData, match="leave centre out"):
        sae.start(architecture, rows, reads="in", writes="out").encode(ROWS)
