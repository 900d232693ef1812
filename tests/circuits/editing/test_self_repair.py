"""Pairs of heads: the planted backup is found once the head that it stands in for is gone."""

import numpy as np
import pytest
import torch

from circuits.editing import SelfRepair, after_removal, remove_heads, self_repair
from mechvis import edits, metrics, testing
from mechvis.errors import BadData, OutOfRange, SplitOverlap, UnknownName
from mechvis.units import head_units

P, R = "L0H0", "L1H1"


@pytest.fixture(scope="module")
def found(backup, evidence):
    with testing.assert_untouched(backup):
        return self_repair(backup, evidence, first=1, progress=False)


def test_the_backup_is_named_after_the_removal(found):
    singles = {row["unit"]: row["effect"] for row in found.singles.table.iter_rows(named=True)}
    assert singles[P] > 0.7 and abs(singles[R]) < 1e-6, "R looks like nothing by itself"
    (row,) = found.backups.iter_rows(named=True)
    assert (row["removed"], row["head"], row["role"]) == (P, R, "backup")
    # R copies 0.6 of what P copies: what P's removal costs is 0.4 of it.
    assert row["synergy"] == pytest.approx(1.5 * singles[P], rel=1e-6) and row["low"] > 0
    assert f"{R} is a backup of {P}" in repr(found)


def test_the_second_look_after_an_edit(backup, evidence):
    edit = remove_heads(backup, head_units([(0, 0)]))
    again = after_removal(backup, evidence, edit.change.heads, progress=False)
    assert again.backups["head"].to_list() == [R]
    both = after_removal(backup, evidence, head_units([(0, 0), (1, 1)]), progress=False)
    assert both.backups.height == 0 and both.table()["removed"].unique().to_list() == [f"{P} {R}"]


def test_two_heads_of_which_each_is_enough(evidence, request):
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("editing_models", request.path.parent / "conftest.py")
    spec.loader.exec_module(models := module_from_spec(spec))
    model = models.or_net()
    effects = self_repair(model, evidence, first="all", progress=False)
    assert np.abs(effects.singles.values["logit_diff"]).max() < 1e-5, "neither has an effect alone"
    rows = {(row["removed"], row["head"]): row for row in effects.backups.iter_rows(named=True)}
    assert set(rows) == {("L0H0", "L0H1"), ("L0H1", "L0H0")}
    assert all(row["role"] == "backup" and row["synergy"] > 1.9 for row in rows.values())
    assert effects.table().height == 6, "every pair from both sides, run once"


def test_numbers_are_those_of_plain_runs(backup, evidence):
    found = self_repair(backup, evidence, first=head_units([(0, 0), (1, 1)]), metric="logprob", progress=False)
    pixels = evidence.pixels
    clean = backup.run(pixels).logits
    classes = metrics.classes_of(clean, evidence.label_tensor)

    def score(*heads):
        gone = [edits.zero(f"blocks.{layer}.attn.hook_z", heads=[head]) for layer, head in heads]
        return metrics.logprob(backup.run(pixels, edits=gone).logits if gone else clean, *classes, clean)

    one, other, joint = score() - score((0, 0)), score() - score((1, 1)), score() - score((0, 0), (1, 1))
    rows = found.pairs.rows("joint")["unit"].to_list()
    for name, wanted in (
        ("joint", joint),
        ("synergy", joint - one - other),
        ("conditional", joint - one),
        ("single", other),
    ):
        own = found.pairs.values[name][rows.index(f"{P} {R}")]
        assert np.abs(own - wanted.numpy()).max() < 1e-12, name
    own = found.pairs.values["conditional"][rows.index(f"{R} {P}")]
    assert np.abs(own - (joint - other).numpy()).max() < 1e-12


@pytest.mark.parametrize("edit", ["zero", "mean", "mean_positional"])
def test_the_wave_front_agrees_with_its_plain_twin(edit, tiny, pixels, reference):
    more = {"edit": edit, "first": 2, "progress": False, "reference": None if edit == "zero" else reference}
    images = torch.cat([pixels, reference.flip(0)]) + 0.01
    fast, slow = (self_repair(tiny, images, engine=engine, **more) for engine in ("wave", "plain"))
    for name in ("joint", "synergy"):
        assert np.abs(fast.pairs.values[name] - slow.pairs.values[name]).max() < 1e-10


def test_saved_and_loaded(found, tmp_path):
    again = SelfRepair.load(found.save(tmp_path / "s"))
    assert repr(again) == repr(found) and again.table().equals(found.table())


@pytest.mark.parametrize(
    "more,error,words",
    [
        ({"first": 0}, OutOfRange, "first=0: the model has 1 to 4 heads"),
        ({"first": "some"}, UnknownName, "unknown choice of heads"),
        ({"first": []}, BadData, "no head is removed first"),
        ({"first": head_units([(5, 0)])}, BadData, "L5H0' is no head of this model"),
        ({"first": head_units([(0, 0), (0, 0)])}, BadData, "listed twice"),
        ({"edit": "resample"}, UnknownName, "unknown edit 'resample'"),
    ],
)
def test_what_is_refused(more, error, words, backup, evidence):
    with pytest.raises(error, match=words):
        self_repair(backup, evidence, progress=False, **more)


def test_reference_images_are_other_ones(backup, evidence):
    with pytest.raises(SplitOverlap, match="must not share images"):
        self_repair(backup, evidence, edit="mean", reference=evidence, progress=False)


def test_nothing_is_left(backup, evidence):
    every = head_units([(layer, head) for layer in (0, 1) for head in (0, 1)])
    with pytest.raises(BadData, match="no other one can take over"):
        after_removal(backup, evidence, every, progress=False)
