"""Metrics by hand-computed examples and by their laws."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechvis import metrics
from mechvis.errors import OutOfRange, ShapeMismatch, UnknownName

LOGITS = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]], dtype=torch.float64)
CLEAN = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 2.0]], dtype=torch.float64)
TARGET, CONTRAST = torch.tensor([0, 2]), torch.tensor([2, 1])


def softmax(row):
    total = sum(math.exp(v) for v in row)
    return [math.exp(v) / total for v in row]


def kl_by_hand(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


P, Q = [softmax(row) for row in CLEAN.tolist()], [softmax(row) for row in LOGITS.tolist()]
M = [[(a + b) / 2 for a, b in zip(p, q, strict=True)] for p, q in zip(P, Q, strict=True)]
BY_HAND = {
    "logit": [2.0, 0.0],
    "logit_diff": [1.0, -3.0],
    "log_odds": [2 - math.log(1 + math.e), -math.log(1 + math.e**3)],
    "logprob": [math.log(Q[0][0]), math.log(Q[1][2])],
    "prob": [Q[0][0], Q[1][2]],
    "accuracy": [1.0, 0.0],
    "kl": [-kl_by_hand(p, q) for p, q in zip(P, Q, strict=True)],
    "js": [-(kl_by_hand(p, m) + kl_by_hand(q, m)) / 2 for p, q, m in zip(P, Q, M, strict=True)],
}


def test_every_metric_has_an_example():
    assert set(BY_HAND) == set(metrics.METRICS)


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name):
    _, function = metrics.get(name)
    found = function(LOGITS, TARGET, CONTRAST, CLEAN)
    assert found.tolist() == pytest.approx(BY_HAND[name], abs=1e-12)
    # `[unit image class]` against the same targets and the same clean run.
    stacked = function(torch.stack([LOGITS, CLEAN]), TARGET, CONTRAST, CLEAN)
    assert stacked.shape == (2, 2)
    assert stacked[0].tolist() == pytest.approx(BY_HAND[name], abs=1e-12)


@pytest.mark.parametrize("name", ["kl", "js"])
def test_unchanged_is_zero(name):
    _, function = metrics.get(name)
    assert function(CLEAN, TARGET, CONTRAST, CLEAN).tolist() == pytest.approx([0, 0], abs=1e-15)


@pytest.mark.parametrize("name", ["log_odds", "logit_diff", "logprob", "prob", "accuracy", "kl", "js"])
def test_adding_a_constant_to_all_logits_changes_nothing(name):
    _, function = metrics.get(name)
    shifted = function(LOGITS + 7.5, TARGET, CONTRAST, CLEAN - 2)
    assert shifted.tolist() == pytest.approx(BY_HAND[name], abs=1e-12)


def test_log_odds_is_the_log_of_the_odds():
    p = metrics.prob(LOGITS, TARGET, CONTRAST, CLEAN)
    torch.testing.assert_close(metrics.log_odds(LOGITS, TARGET, CONTRAST, CLEAN), (p / (1 - p)).log())


def test_kl_is_a_sum_over_classes():
    """Splitting a class in two equal halves leaves it as it is; a mean over classes would fall."""
    halves = torch.cat([LOGITS, LOGITS], -1), torch.cat([CLEAN, CLEAN], -1)
    assert metrics.kl(halves[0], TARGET, CONTRAST, halves[1]).tolist() == pytest.approx(BY_HAND["kl"])


rows = st.lists(st.floats(-60, 60), min_size=4, max_size=4)


@settings(max_examples=100, deadline=None)
@given(rows, rows)
def test_jensen_shannon_laws(a, b):
    p, q = torch.tensor([a, b], dtype=torch.float64).softmax(-1)
    there, back = metrics.jensen_shannon(p, q), metrics.jensen_shannon(q, p)
    assert float(there) == float(back)
    assert 0 <= float(there) <= math.log(2) + 1e-12
    assert float(metrics.jensen_shannon(p, p)) == 0


def test_jensen_shannon_limits():
    p = torch.tensor([0.5, 0.5, 0.0, 0.0])
    assert float(metrics.jensen_shannon(p, p.flip(0))) == pytest.approx(math.log(2))
    close = torch.tensor([0.5, 0.5]), torch.tensor([0.5 + 1e-6, 0.5 - 1e-6])
    assert 0 < float(metrics.jensen_shannon(*close)) < 1e-11


def test_classes_are_fixed_by_labels_or_the_clean_run():
    clean = torch.tensor([[3.0, 1.0, 2.0], [0.0, 1.0, 5.0]])
    target, contrast = metrics.classes_of(clean, None)
    assert (target.tolist(), contrast.tolist()) == ([0, 2], [2, 1])
    target, contrast = metrics.classes_of(clean, torch.tensor([2, 0]))
    assert (target.tolist(), contrast.tolist()) == ([2, 0], [0, 2])


@pytest.mark.parametrize(("labels", "bad"), [([0, 3], 3), ([-1, 0], -1), ([1000, 0], 1000)])
def test_labels_out_of_range(labels, bad):
    with pytest.raises(OutOfRange, match=rf"label {bad} is outside the head's 3 classes"):
        metrics.classes_of(CLEAN, torch.tensor(labels))


def test_one_class_has_no_contrast():
    with pytest.raises(ShapeMismatch, match="at least two classes"):
        metrics.classes_of(torch.zeros(2, 1), None)


def test_names():
    def mine(logits, target, contrast, clean):
        return logits.sum(-1)

    assert metrics.get(mine) == ("mine", mine)
    with pytest.raises(UnknownName, match=r"unknown metric 'logit_dif'. Nearest: logit_diff"):
        metrics.get("logit_dif")
