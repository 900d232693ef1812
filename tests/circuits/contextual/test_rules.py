"""The rules and the small functions under them, against formulas written out by hand."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from circuits.contextual import PRESETS, Rules
from circuits.contextual.affine import shape_of
from circuits.contextual.batched import Batched, Pair, cancelled, remainder, share
from circuits.contextual.rules import rules_of
from circuits.contextual.walk import through
from mechvis.errors import BadData, UnknownName


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def ops(rules, n=1):
    return Batched(
        rules,
        [],
        values=lambda site: None,
        watch=frozenset(),
        see=lambda *a: None,
        direct=False,
        known={},
        images=range(n),
    )


def pair(beta, gamma):
    beta, gamma = torch.tensor(beta).double(), torch.tensor(gamma).double()
    return Pair((beta + gamma)[None], beta[None, None])


def test_presets():
    assert rules_of("default") == Rules() == PRESETS["default"]
    assert rules_of("published") == Rules(bias="share", ln="total", pattern="total", act="rest", cancel=False)
    assert rules_of("all_rest") == Rules(bias="rest", ln="rest", pattern="rest", act="rest", cosine="rest")
    mine = replace(PRESETS["published"], pattern="source")
    assert rules_of(mine) is mine


@pytest.mark.parametrize(
    ("bad", "error", "text"),
    [
        (lambda: Rules(bias="shared"), UnknownName, "unknown rule for bias 'shared'. Nearest: share"),
        (lambda: Rules(cancel=True), UnknownName, "unknown rule for cancel True.*Valid: False, maps, mlp"),
        (lambda: Rules(cancel=0), UnknownName, "unknown rule for cancel 0"),
        (lambda: Rules(pattern="published"), UnknownName, "Valid: total, source, rest"),
        (lambda: rules_of("all-rest"), UnknownName, "unknown preset of rules 'all-rest'. Nearest: all_rest"),
        (lambda: rules_of(3), BadData, "rules are a name .* got int"),
    ],
)
def test_rules_that_do_not_exist(bad, error, text):
    with pytest.raises(error, match=text):
        bad()


def test_shares():
    beta, gamma = torch.tensor([3.0, -1.0, 0.0, 0.0, 2.0]), torch.tensor([1.0, 3.0, 0.0, 5.0, 0.0])
    assert share(beta, gamma).tolist() == [0.75, 0.25, 0.0, 0.0, 1.0]


def test_a_remainder_of_rounding_is_nothing():
    total = torch.tensor([1.0, 2.0, 3.0])
    beta = torch.tensor([1.0 + 1e-7, 2.0, 1.0])
    assert remainder(total, beta).tolist() == [0.0, 0.0, 2.0]
    assert remainder(total.double(), beta.double())[0] != 0  # seven digits are no rounding there


def test_cancellation():
    beta, gamma = torch.tensor([1.0, 2.0, -3.0, 1.0, 0.0]), torch.tensor([2.0, -5.0, 1.0, -1.0, -2.0])
    assert [half.tolist() for half in cancelled(beta, gamma)] == [[1, 0, -2, 0, 0], [2, -3, 0, 0, -2]]


def test_a_linear_map_by_hand():
    linear = nn.Linear(2, 2, dtype=torch.float64)
    linear.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    linear.bias.copy_(torch.tensor([4.0, -8.0]))
    x = pair([1.0, 1.0], [3.0, -3.0])
    kept = through(ops(Rules()), "map", linear, x)
    assert kept.beta.tolist() == [[[1.0, 2.0]]] and kept.total.tolist() == [[8.0, -12.0]]
    shared = through(ops(Rules(bias="share", ln="total")), "map", linear, x)
    # 4 * 1 / (1 + 3) and -8 * 2 / (2 + 6)
    assert shared.beta.tolist() == [[[2.0, 0.0]]]


def test_cancellation_after_a_map_by_hand():
    linear = nn.Linear(2, 2, bias=False, dtype=torch.float64)
    linear.weight.copy_(torch.eye(2))
    x = pair([5.0, 1.0], [-2.0, -3.0])
    assert through(ops(Rules(cancel="maps")), "map", linear, x).beta.tolist() == [[[3.0, 0.0]]]
    assert through(ops(Rules(cancel="mlp")), "map", linear, x).beta.tolist() == [[[5.0, 1.0]]]
    assert through(ops(Rules(cancel="mlp")), "map", linear, x, mlp=True).beta.tolist() == [[[3.0, 0.0]]]


def test_a_layer_norm_by_hand():
    norm = nn.LayerNorm(2, eps=0.0, dtype=torch.float64)
    norm.weight.copy_(torch.tensor([10.0, 10.0]))
    norm.bias.copy_(torch.tensor([1.0, 2.0]))
    x = pair([3.0, 0.0], [1.0, 2.0])  # total (4, 2): mean 3, standard deviation 1
    held = through(ops(Rules(ln="total")), "ln", norm, x)
    assert held.total.tolist() == [[11.0, -8.0]] and held.beta.tolist() == [[[15.0, -15.0]]]
    shared = through(ops(Rules(ln="total", bias="share")), "ln", norm, x)
    assert shared.beta.tolist() == [[[15.75, -15.0]]]  # shares 3 : 1 and 0 : 2 of the input
    rest = through(ops(Rules(ln="rest")), "ln", norm, x)  # gamma (1, 2) becomes (-10, 10) + bias
    assert rest.beta.tolist() == [[[20.0, -20.0]]]


def test_an_rms_norm_keeps_its_mean():
    norm = nn.RMSNorm(2, eps=0.0, elementwise_affine=False)
    x = pair([3.0, 0.0], [0.0, 3.0])
    assert through(ops(Rules(ln="total")), "ln", norm, x).beta.tolist() == [[[1.0, 0.0]]]


def test_activations_by_hand():
    x = pair([2.0, -1.0], [-1.0, 3.0])
    relu, rest, shapley = torch.relu, ops(Rules()), ops(Rules(act="shapley"))
    rest.begun = shapley.begun = 1
    assert rest.act(relu, (x,)).beta.tolist() == [[[1.0, -1.0]]]
    assert shapley.act(relu, (x,)).beta.tolist() == [[[1.5, -0.5]]]
    gate = pair([1.0, 1.0], [1.0, 1.0])
    product = rest.act(lambda a, b: a * b, (x, gate))  # (1 * 2) - (-1 * 1) and (2 * 2) - (3 * 1)
    assert product.beta.tolist() == [[[3.0, 1.0]]]


@pytest.mark.parametrize(
    ("f", "affine"),
    [
        (nn.Linear(6, 3), True),
        (nn.Identity(), True),
        (lambda x: x * torch.arange(6.0) + torch.arange(5.0)[:, None], True),
        (nn.LayerNorm(6), False),
        (torch.relu, False),
        (lambda x: x.amax(1), False),
        (lambda x: x.mean(1), True),
        (lambda x: x @ x.transpose(1, 2), False),
    ],
    ids=["linear", "identity", "affine per place", "norm", "relu", "max", "mean", "product"],
)
@pytest.mark.parametrize("n", [1, 3])
def test_what_is_affine(f, affine, n):
    x = torch.randn(n, 5, 6, generator=torch.Generator().manual_seed(0))
    assert shape_of(f, x).affine == (affine,)


def test_several_outputs_each_for_itself():
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    found = shape_of(lambda x: (x.tanh(), 2 * x + 1), x)
    assert found.affine == (False, True) and (found.zero[1] == 1).all()
