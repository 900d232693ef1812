"""Interchange accuracy and the graded numbers, by hand."""

import math

import pytest
import torch

from circuits.subspace import Draws, Variable, accuracy_of, label_variable, read_tail
from circuits.subspace.accuracy import judge
from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch

EYE = torch.eye(3, dtype=torch.float64)


@pytest.fixture
def tail():
    """The activation is the logits."""
    h = torch.tensor([[2.0, 0, 0], [0, 3, 0], [0, 0, 4]], dtype=torch.float64)
    return read_tail(h, EYE, lambda out: out, name="logits")


@pytest.fixture
def pairs():
    return Draws(base=torch.tensor([0, 0, 1, 2]), source=torch.tensor([1, 2, 0, 2]))


def test_by_hand(tail, pairs):
    variable = label_variable(torch.tensor([0, 1, 2]))
    # Only coordinate 1 is swapped: base 0 gets 3 > 2 (right: 1), stays 0 with source 2 (right: 2), base 1 loses its
    # evidence (argmax of a tie: 0, right), base 2 keeps its own.
    found = accuracy_of(tail, variable, pairs, EYE[1:2])
    assert found.iia == 0.75 and found.n == 4
    assert (found.must_change, found.n_must_change) == (pytest.approx(2 / 3), 3)
    assert found.n_neither == 0 and math.isnan(found.neither)
    assert found.chance == 0.5, "class 2 is right twice"
    # logit of Y(b) minus logit of y*, summed over the three pairs that must change:
    # clean 2 + 2 + 3, changed (2 - 3) + 2 + 0, sources (0 - 3) + (0 - 4) + (0 - 2).
    assert found.destroyed == pytest.approx(1 - 1 / 7)
    assert found.recovered == pytest.approx((7 - 1) / (7 + 9))
    assert found.low <= found.iia <= found.high


def test_full_swap_recovers_everything(tail, pairs):
    variable = label_variable(torch.tensor([0, 1, 2]))
    found = accuracy_of(tail, variable, pairs, EYE)
    assert (found.iia, found.recovered) == (1.0, pytest.approx(1.0))
    nothing = accuracy_of(tail, variable, pairs, EYE[:0])
    assert (nothing.iia, nothing.must_change, nothing.destroyed) == (0.25, 0.0, 0.0)


def test_neither_counts_answers_of_no_image(tail):
    variable = Variable(name="v", values=torch.tensor([0, 1, 0]), answer=lambda b, s: torch.where(b == s, b, 3 - b - s))
    pairs = Draws(base=torch.tensor([0, 1]), source=torch.tensor([1, 2]))
    found = judge(tail, variable, pairs, torch.tensor([[0.0, 0, 1], [0, 1, 0]], dtype=torch.float64))
    assert (found.neither, found.n_neither) == (0.5, 2)


def test_nothing_that_must_change_gives_no_graded_number(tail):
    pairs = Draws(base=torch.tensor([0]), source=torch.tensor([0]))
    found = accuracy_of(tail, label_variable(torch.tensor([0, 1, 2])), pairs, EYE)
    assert found.iia == 1.0 and math.isnan(found.destroyed) and math.isnan(found.must_change)


def test_a_class_that_the_model_lacks_is_refused(tail, pairs):
    with pytest.raises(OutOfRange, match="asks for class 3, the model has 3"):
        accuracy_of(tail, label_variable(torch.tensor([0, 1, 3])), pairs, EYE)


def test_activations_that_cannot_be():
    with pytest.raises(BadData, match=r"float16.*Load the model in float32"):
        read_tail(torch.ones(3, 2).half(), torch.eye(2).half(), lambda out: out)
    with pytest.raises(ShapeMismatch, match=r"are \[image width\]"):
        read_tail(torch.ones(3), torch.eye(2), lambda out: out)
    with pytest.raises(ShapeMismatch, match="with width 2"):
        read_tail(torch.ones(3, 2), torch.eye(3), lambda out: out)
    with pytest.raises(NotFinite, match="hold NaN"):
        read_tail(torch.full((3, 2), float("nan")), torch.eye(2), lambda out: out)


def test_a_tail_that_breaks_says_where(pairs):
    tail = read_tail(torch.ones(3, 2), torch.eye(2), lambda out: out / (out[:, :1] - 1), name="broken")
    with pytest.raises(NotFinite, match="first for row 0"):
        tail.clean
