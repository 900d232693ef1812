"""What the diagnostics measure, one by one, and when the word is used."""

import pytest
import torch

from circuits.subspace import Tail, diagnose, label_variable, read_tail, split_images
from circuits.subspace.diagnosis import KINDS, stability_of, verdict_of
from mechvis.errors import ShapeMismatch

EYE = torch.eye(4, dtype=torch.float64)


@pytest.fixture(scope="module")
def case():
    """Coordinate 0 decides the class; nothing else is read."""
    h = torch.randn(400, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    h[:, 0] = h[:, 0].sign()
    read = torch.zeros(4, 2, dtype=torch.float64)
    read[0] = torch.tensor([-1.0, 1.0])
    tail = read_tail(h, read, lambda out: out, name="one coordinate")
    variable = label_variable((h[:, 0] > 0).long(), name="sign")
    return tail, variable, split_images(variable, tail.clean.argmax(1), held_out=h[:, 1] > 1)


@pytest.mark.parametrize(
    ("alarms", "word"),
    [
        ([], "not flagged"),
        (["off-manifold"], "not flagged"),
        (["off-manifold", "implausible units"], "not flagged"),
        (["row share", "component test"], "not flagged"),
        (["component test", "off-manifold"], "illusion possible"),
        (["stability over seeds", "row share"], "illusion possible"),
        (["variance on row part"], "illusion possible"),
    ],
)
def test_one_kind_of_evidence_is_not_enough(alarms, word):
    assert verdict_of(alarms) == word
    assert verdict_of(alarms, gain=0.01) == "no effect to judge"


def test_every_number_that_can_alarm_has_a_kind(case):
    tail, variable, splits = case
    found = diagnose(tail, variable, EYE[:1], splits).table
    assert set(found.filter(found["alarm_when"] != "")["number"]) == set(KINDS)


def test_the_right_coordinate(case):
    tail, variable, splits = case
    found = diagnose(tail, variable, EYE[:1], splits, others=[EYE[:1], EYE[1:2]])
    assert found.iia == 1.0 and 0.4 < found.no_edit < 0.6
    assert found["row share"] == pytest.approx(1.0) and found["component test"] == pytest.approx(0.0)
    assert found["off-manifold"] < 0.6 and found["implausible units"] == 0.0
    assert found["generalisation drop"] == 0.0 and found["mean-difference cosine"] > 0.98
    assert found["stability over seeds"] == pytest.approx(1 / 3) and found.alarms == ("stability over seeds",)
    assert found.verdict == "not flagged" and "lowest pair 0.000 of 3 seeds" in repr(found)


def test_a_drop_on_unseen_images_alarms():
    """The direction is right only where coordinate 1 is small: elsewhere the class is read from coordinate 2."""
    h = torch.randn(600, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    h[:, 0], h[:, 2] = h[:, 0].sign(), h[:, 0].sign()
    far = h[:, 1] > 1

    def logits(rows, images):
        read = torch.where(far[images], rows[:, 2], rows[:, 0])
        return torch.stack([-read, read], 1)

    tail = Tail(name="two ways", h=h, logits_of=logits)
    variable = label_variable((h[:, 0] > 0).long())
    splits = split_images(variable, tail.clean.argmax(1), held_out=far)
    found = diagnose(tail, variable, torch.eye(3, dtype=torch.float64)[:1], splits)
    assert found["generalisation drop"] == pytest.approx(0.5, abs=0.05) and "generalisation drop" in found.alarms
    missing = found.table.filter(found.table["value"].is_null())["number"].to_list()
    assert {"row share", "component test", "implausible units", "stability over seeds"} <= set(missing)
    assert "not known what is read" in repr(found) and "not known which units follow" in repr(found)


def test_a_drop_of_what_doing_nothing_scores_does_not_alarm(case):
    """Unseen images of which nearly all differ in the variable: the same subspace, fewer pairs that ask for nothing."""
    tail, variable, _ = case
    weak = torch.tensor([[0.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    within = torch.zeros(400, dtype=torch.int64)
    held_out = torch.zeros(400, dtype=torch.bool)
    held_out[(variable.values == 1).nonzero().flatten()[:100]] = True
    held_out[(variable.values == 0).nonzero().flatten()[:100]] = True
    # In the held-out part sources are mostly of the other value: one of each makes a group.
    ones, zeros = ((held_out & (variable.values == v)).nonzero().flatten() for v in (1, 0))
    within[ones], within[zeros] = torch.arange(1, 101), torch.arange(1, 101)
    splits = split_images(variable, tail.clean.argmax(1), held_out=held_out)
    found = diagnose(tail, variable, weak, splits, within=within)
    assert found["generalisation drop"] > 0.4 and "generalisation drop" not in found.alarms
    assert "(without 0.000)" in repr(found)


def test_stability_by_hand():
    half = torch.tensor([[0.5**0.5, 0.5**0.5, 0, 0]], dtype=torch.float64)
    assert stability_of([EYE[:1], half]) == (pytest.approx(0.5), pytest.approx(0.5))
    assert stability_of([EYE[:2], EYE[1:3]])[0] == pytest.approx(0.5)
    assert stability_of([EYE[:2], EYE[[1, 0]]])[0] == pytest.approx(1.0), "the span counts"
    assert stability_of([EYE[:1]]) == (None, None)


def test_rows_that_are_no_subspace_are_refused(case):
    tail, variable, splits = case
    with pytest.raises(ShapeMismatch, match="orthonormal"):
        diagnose(tail, variable, 2 * EYE[:1], splits)
