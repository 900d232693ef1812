"""Losses and their gradients against formulas that are written down here, in plain torch; closed forms of estimators.

Nothing of `sae` computes what is compared with: only parameters and normalised rows are taken from a dictionary.
"""

import pytest
import torch

TOLERANCE = 1e-10
DEAD = torch.arange(96) % 24 == 0


def relu(x):
    return torch.clamp(x, min=0)


def error(y, y_hat):
    return ((y - y_hat) ** 2).sum(1).mean()


def spread(y):
    return ((y - y.mean(0)) ** 2).sum(1).mean()


def aux_k(pre, W_dec, y, y_hat, k):
    """2406.04093, appendix A.2: what the k largest dead latents of a row explain of what is left over."""
    e = (y - y_hat).detach()
    kept = torch.zeros_like(pre)
    among = pre.detach().masked_fill(~DEAD, -torch.inf)
    for row, values in enumerate(among):
        for latent in values.argsort(descending=True)[: min(k, int(DEAD.sum()))]:
            kept[row, latent] = 1
    e_hat = (relu(pre) * kept) @ W_dec
    return ((e - e_hat) ** 2).sum(1).mean() / ((e - e.mean(0)) ** 2).sum(1).mean()


def largest(scores, k):
    kept = torch.zeros_like(scores)
    for row, values in enumerate(scores):
        kept[row, values.argsort(descending=True)[:k]] = 1
    return kept


def written(p, f, x):
    y = f @ p["W_dec"] + p["b_dec"]
    return y + x @ p["W_skip"].T if "W_skip" in p else y


def pre_of(p, x, *, centred=True):
    return (x - p["b_dec"] if centred else x) @ p["W_enc"].T + p["b_enc"]


def norms(p, free):
    return (p["W_dec"] ** 2).sum(1).sqrt() if free else torch.ones(len(p["W_dec"]), dtype=torch.float64)


# -- the formulas: (parameters, rows, what has to be written, is the decoder free, is b_dec taken off, state) ---------


def topk_loss(p, x, y, free, centred, state):
    z = pre_of(p, x, centred=centred)
    f = relu(z) * largest((z * norms(p, free)).detach(), 3)
    y_hat = written(p, f, x)
    return error(y, y_hat) / spread(y) + 0.3 * aux_k(z, p["W_dec"], y, y_hat, y.shape[1] // 2)


def batch_topk_loss(p, x, y, free, centred, state):
    z = pre_of(p, x, centred=centred)
    scores = (relu(z) * norms(p, free)).detach()
    least = scores.flatten().sort(descending=True).values[3 * len(x) - 1]
    y_hat = written(p, relu(z) * (scores >= least), x)
    return error(y, y_hat) / spread(y) + 0.3 * aux_k(z, p["W_dec"], y, y_hat, y.shape[1] // 2)


def relu_loss(p, x, y, free, centred, state):
    z = pre_of(p, x, centred=centred)
    f = relu(z)
    y_hat = written(p, f, x)
    penalty = (f * norms(p, free)).sum(1).mean()
    aux = aux_k(z, p["W_dec"], y, y_hat, y.shape[1] // 2) * spread(y)
    return error(y, y_hat) + 0.7 * 0.3 * penalty + 0.2 * aux


def p_anneal_loss(p, x, y, free, centred, state):
    z = pre_of(p, x, centred=centred)
    f = relu(z)
    y_hat = written(p, f, x)
    power = 1 + (0 - 1) * 3 / 9
    inside = torch.where(z > 0, f * norms(p, free) + 1e-4, 1.0)
    penalty = torch.where(z > 0, inside**power, 0.0).sum(1).mean()
    aux = aux_k(z, p["W_dec"], y, y_hat, y.shape[1] // 2) * spread(y)
    return error(y, y_hat) + 0.7 * 0.3 * 1.3 * penalty + 0.2 * aux


def gated_loss(p, x, y, free, centred, state):
    pi = (x - p["b_dec"] if centred else x) @ p["W_enc"].T
    gate = pi + p["b_gate"]
    f = (gate > 0) * relu(torch.exp(p["r_mag"]) * pi + p["b_mag"])
    y_hat = written(p, f, x)
    fixed = {name: t.detach() for name, t in p.items()}
    by_gates = written(fixed, relu(gate), x)
    penalty = (relu(gate) * norms(p, free)).sum(1).mean()
    aux = aux_k(gate, p["W_dec"], y, y_hat, y.shape[1] // 2) * spread(y)
    return error(y, y_hat) + 0.7 * 0.3 * penalty + error(y, by_gates) + 0.2 * aux


def jumprelu_loss(penalty, *, to_input=False, pre_act=0.0, aux=0.0, sparsity=1.0, goal=3.0, width=0.05):
    """The estimators are linear stand-ins with the slopes of 2407.14435, equation 11, and no value of their own."""

    def loss(p, x, y, free, centred, state):
        theta = p["threshold"] if "threshold" in p else torch.exp(p["log_threshold"])
        z = pre_of(p, x, centred=False)
        window = (((z - theta) / width).abs() < 0.5).double().detach()
        slope = window / width
        stand_in = slope * ((z if to_input else z.detach()) - theta)
        stand_in = stand_in - stand_in.detach()
        step = (z > theta).double().detach() + stand_in
        f = z * (z > theta).detach() + theta.detach() * stand_in
        y_hat = written(p, f, x)
        active = step.sum(1)
        value = {
            "l0": lambda: active.mean(),
            "target": lambda: (active.mean() / goal - 1) ** 2,
            "quadratic": lambda: (2 / goal * (active - goal) ** 2).mean(),
            "tanh": lambda: torch.tanh(4 * f * norms(p, free)).sum(1).mean(),
        }[penalty]()
        total = error(y, y_hat) + 0.7 * sparsity * value
        if pre_act:
            total = total + pre_act * (relu(theta - z) * norms(p, free))[:, DEAD].sum(1).mean()
        if aux:
            total = total + aux * aux_k(z, p["W_dec"], y, y_hat, y.shape[1] // 2) * spread(y)
        return total

    return loss


JUMP = {"bandwidth": 0.05}
FORMULAS = {
    "topk": (topk_loss, {"k": 3, "aux": 0.3}),
    "batch_topk": (batch_topk_loss, {"k": 3, "aux": 0.3, "row_limit": None}),
    "relu": (relu_loss, {"l1": 0.3, "aux": 0.2}),
    "p_anneal": (p_anneal_loss, {"sparsity": 0.3, "aux": 0.2}),
    "gated": (gated_loss, {"l1": 0.3, "aux": 0.2}),
    "jumprelu l0": (
        jumprelu_loss("l0", sparsity=0.3, aux=0.2),
        {"penalty": "l0", "sparsity": 0.3, "aux": 0.2, **JUMP},
    ),
    "jumprelu log": (
        jumprelu_loss("l0", sparsity=0.3),
        {"penalty": "l0", "sparsity": 0.3, "log_threshold": True, **JUMP},
    ),
    "jumprelu target": (jumprelu_loss("target"), {"penalty": "target", "l0": 3.0, **JUMP}),
    "jumprelu quadratic": (jumprelu_loss("quadratic"), {"penalty": "quadratic", "l0": 3.0, **JUMP}),
    "jumprelu to_input": (
        jumprelu_loss("quadratic", to_input=True),
        {"penalty": "quadratic", "l0": 3.0, "to_input": True, **JUMP},
    ),
    "jumprelu tanh": (
        jumprelu_loss("tanh", to_input=True, pre_act=0.2),
        {"penalty": "tanh", "to_input": True, "pre_act": 0.2, **JUMP},
    ),
}
ENDS = ["autoencoder", "transcoder", "crosscoder"]


def ours(d, x, y, step):
    loss = d.architecture.loss(d, x, y, step)
    loss.total.backward()
    return loss.total.detach(), {name: p.grad for name, p in d.named_parameters()}


@pytest.mark.parametrize("fast", [False, True], ids=["plain", "fast"])
@pytest.mark.parametrize("decoder", ["unit", "free"])
@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("key", FORMULAS)
def test_loss_and_gradients_are_the_formula(key, ends, decoder, fast, make_case, make_step):
    formula, settings = FORMULAS[key]
    case = make_case(key.split()[0], ends=ends, decoder=decoder, **settings)
    d = case.dictionary()
    x, y = d.normalised(case.rows())
    value, gradients = ours(d, x, y, make_step(fast=fast, n_dead=int(DEAD.sum())))
    parameters = {name: p.detach().clone().requires_grad_() for name, p in d.named_parameters()}
    expected = formula(parameters, x, y, decoder == "free", ends != "transcoder", None)
    expected.backward()
    assert value == pytest.approx(float(expected.detach()), abs=TOLERANCE)
    furthest = max(
        float((gradients[name] - p.grad).abs().max() / (1 + p.grad.abs().max())) for name, p in parameters.items()
    )
    assert furthest < TOLERANCE
    assert all(p.grad.abs().sum() > 0 for p in parameters.values()), "nothing was compared"


# -- finite differences, where no estimator stands in --------------------------------------------------------------


@pytest.mark.parametrize("name", ["topk", "batch_topk", "relu", "p_anneal", "gated"])
@pytest.mark.parametrize("decoder", ["unit", "free"])
def test_gradients_are_finite_differences(name, decoder, make_case, make_step):
    """No dead latents, since their loss holds the error fixed; of Gated, what its last term does not hold fixed."""
    case = make_case(name, decoder=decoder, **({"k": 3} if "topk" in name else {}))
    d, step = case.dictionary(), make_step(n_dead=0)
    x, y = d.normalised(case.rows())
    _, gradients = ours(d, x, y, step)
    fixed = {"W_dec", "b_dec"} if name == "gated" else set()
    draw = torch.Generator().manual_seed(3)
    size = 1e-7
    for parameter, gradient in gradients.items():
        if parameter in fixed:
            continue
        p = dict(d.named_parameters())[parameter]
        direction = torch.randn(p.shape, generator=draw, dtype=p.dtype)
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                p += sign * size * direction
            ends.append(d.architecture.loss(d, x, y, step).total.detach())
            with torch.no_grad():
                p -= sign * size * direction
        slope = (ends[0] - ends[1]) / (2 * size)
        assert float(slope) == pytest.approx(float((gradient * direction).sum()), rel=1e-5, abs=1e-7), parameter


# -- closed forms of the estimators ------------------------------------------------------------------------------------


@pytest.mark.parametrize("to_input", [False, True])
@pytest.mark.parametrize(
    ("z", "inside", "active"),
    [(0.0501, 1, 1), (0.0499, 1, 0), (0.0506, 0, 1), (0.0494, 0, 0), (-1.0, 0, 0), (3.0, 0, 1)],
)
def test_closed_forms_of_the_estimators(z, inside, active, to_input):
    from sae.jump import above, jump

    theta, width = 0.05, 0.001
    for function, of_theta, of_z in (
        (jump, -theta / width * inside, active),
        (above, -inside / width, 0),
    ):
        value = torch.tensor([z], dtype=torch.float64, requires_grad=True)
        place = torch.tensor([theta], dtype=torch.float64, requires_grad=True)
        out = function(value, place, width, to_input)
        assert float(out.detach()) == (active if function is above else z * active)
        out.backward()
        assert float(place.grad) == pytest.approx(of_theta)
        found = 0.0 if value.grad is None else float(value.grad)
        assert found == pytest.approx(of_z - of_theta * to_input)


def test_log_thresholds_get_theta_times_the_gradient(make_case, make_step):
    found = {}
    for log in (False, True):
        case = make_case("jumprelu", penalty="l0", log_threshold=log, **JUMP)
        d = case.dictionary()
        if log:
            with torch.no_grad():
                for name, tensor in found["parameters"].items():
                    getattr(d, name if name != "threshold" else "log_threshold").copy_(
                        tensor.log() if name == "threshold" else tensor
                    )
        else:
            found["parameters"] = {name: p.detach().clone() for name, p in d.named_parameters()}
        x, y = d.normalised(case.rows())
        _, found[log] = ours(d, x, y, make_step())
    theta = found["parameters"]["threshold"]
    assert torch.allclose(found[True]["log_threshold"], theta * found[False]["threshold"], atol=TOLERANCE, rtol=1e-10)
