"""How many heads to remove, on hand-made outcomes whose right answer is known."""

from types import SimpleNamespace

import numpy as np
import pytest

import circuits.choose as module
from circuits.choose import choose
from circuits.outcome import Outcome
from mechvis.units import head_units

HEADS = head_units([(0, 0), (0, 1), (0, 2)])
N = 100
GROUPS = np.array(["agree"] * (N // 2) + ["conflict"] * (N // 2))


def outcome(removed, *, agree=1.0, conflict=0.5, big=0.10, fig=0.10, damage=0.0, groups=GROUPS):
    """The first so many images of each group are right; gains and damage vary a little around their mean."""
    half = N // 2
    correct = np.concatenate([np.arange(half) < agree * half, np.arange(half) < conflict * half]).astype(float)
    wave = 1 + 0.1 * np.sin(np.arange(N))
    ones = np.ones(N)
    return Outcome(
        heads=tuple(unit.name for unit in HEADS[:removed]), big=big * wave, fig=fig * ones, correct=correct,
        object_only=ones, context_only=ones, confidence=ones, nll=ones, damage=damage * ones, groups=groups,
    )  # fmt: skip


def chosen(monkeypatch, found, *, recommended, k="auto", max_cost=0.05):
    """Names of the chosen heads, and the curve, when removing 0, 1, 2, ... heads has these outcomes."""

    def outcomes(model, images, masks, sets, **options):
        return [found[len(heads)] for heads, _ in sets]

    monkeypatch.setattr(module, "outcomes", outcomes)
    validate = SimpleNamespace(images=None, masks=SimpleNamespace(masks=None))
    options = {"mode": "zero", "fill": "mean", "tau": 1.0, "means": None}
    heads, others = HEADS[:recommended], HEADS[recommended : len(found) - 1]
    curve, units = choose(None, validate, heads, others, k, range(len(found)), max_cost, options, seed=0)
    return [unit.name for unit in units], curve


def test_other_heads_join_if_the_worst_group_is_reliably_better(monkeypatch):
    found = [outcome(0), outcome(1, conflict=0.6, big=0.08), outcome(2, conflict=0.9, big=0.05)]
    assert chosen(monkeypatch, found, recommended=1)[0] == ["L0H0", "L0H1"]
    slightly = [outcome(0), outcome(1, conflict=0.6, big=0.08), outcome(2, conflict=0.62, big=0.05)]
    assert chosen(monkeypatch, slightly, recommended=1)[0] == ["L0H0"], "one image more is not reliable"
    assert chosen(monkeypatch, slightly, recommended=2)[0] == ["L0H0", "L0H1"], "recommended heads need no more"


def test_a_set_may_be_good_where_no_head_is_recommended(monkeypatch):
    found = [outcome(0), outcome(1, big=0.099, damage=0.01), outcome(2, conflict=0.9, big=0.05)]
    names, curve = chosen(monkeypatch, found, recommended=0)
    assert names == ["L0H0", "L0H1"]
    assert curve["validated"].to_list() == [True, False, True]


def test_a_set_that_costs_a_group_too_much_is_not_taken(monkeypatch):
    found = [outcome(0), outcome(1, agree=0.9, conflict=0.9, big=0.05)]
    assert chosen(monkeypatch, found, recommended=1)[0] == []
    assert chosen(monkeypatch, found, recommended=1, max_cost=0.1)[0] == ["L0H0"]


def test_a_collapse_is_not_validated(monkeypatch):
    """Everything flat: less BIG, but the object's evidence is destroyed too, and nobody gains."""
    found = [outcome(0), outcome(1, conflict=0.5, big=0.01, damage=0.2)]
    names, curve = chosen(monkeypatch, found, recommended=1)
    assert names == [] and curve["joint guarded"][1] < 0
    # The same without damage is validated by the guarded score alone, though no answer changes.
    assert chosen(monkeypatch, [outcome(0), outcome(1, big=0.01)], recommended=1)[0] == ["L0H0"]


def test_a_higher_ratio_is_never_taken(monkeypatch):
    found = [outcome(0), outcome(1, conflict=0.9, big=0.09, fig=0.05)]
    assert found[1].bir > found[0].bir
    assert chosen(monkeypatch, found, recommended=1)[0] == []


@pytest.mark.parametrize(("big", "names"), [(0.049, ["L0H0"]), (0.03, ["L0H0", "L0H1"])])
def test_at_a_tie_more_heads_only_for_a_noticeably_lower_ratio(monkeypatch, big, names):
    found = [outcome(0), outcome(1, conflict=0.9, big=0.05), outcome(2, conflict=0.9, big=big)]
    assert chosen(monkeypatch, found, recommended=2)[0] == names


def test_without_groups_all_images_count(monkeypatch):
    found = [outcome(0, groups=None), outcome(1, agree=0.98, conflict=0.9, big=0.05, groups=None)]
    assert chosen(monkeypatch, found, recommended=1)[0] == ["L0H0"]
    worse = [outcome(0, groups=None), outcome(1, conflict=0.3, big=0.05, groups=None)]
    assert chosen(monkeypatch, worse, recommended=1)[0] == []


def test_a_given_number_is_taken_as_it_is(monkeypatch):
    found = [outcome(0), outcome(1, agree=0.5), outcome(2, agree=0.1)]
    assert chosen(monkeypatch, found, recommended=0, k=2)[0] == ["L0H0", "L0H1"]
