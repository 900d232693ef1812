"""Before and after an edit: F2's numbers, what is refused, what may not be believed."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from circuits.editing import EditCard, edit_card, matched_directions, project_out, remove_edges, remove_heads
from circuits.editing.matched import second_moment, tilted
from circuits.editing.measures import worst
from mechvis import metrics, testing
from mechvis.errors import BadData, OutOfRange, ResultMismatch, SplitOverlap, StoreCorrupt, UnknownName
from mechvis.units import head_units

QUIET = {"progress": False, "fill": "zero"}


@pytest.fixture(scope="module")
def background(shortcut, shortcut_sets):
    """The removal of the planted background head, judged."""
    selection, evaluation = shortcut_sets
    edit = remove_heads(shortcut, head_units([(1, 1)]))
    with testing.assert_untouched(shortcut):
        card = edit_card(shortcut, edit, evaluation, chosen_on=selection, gain="worst group", **QUIET)
    return edit, card


def test_removing_the_background_head(background):
    """benchmark_apps.md B.2: BIR -91 %, worst group 0 -> 1."""
    _, card = background
    assert card.status == 0 and not card.reasons and not card.harmed
    worst_group, bir = card.row("worst group"), card.row("BIR")
    assert (worst_group["before"], worst_group["after"], worst_group["low"]) == (0.0, 1.0, 1.0)
    assert -0.94 < bir["change"] / bir["before"] < -0.89 and bir["high"] < 0
    assert card.row("accuracy")["before"] == 0.675 and card.row("accuracy")["after"] == 1.0
    assert card.row("group: conflict")["p_holm"] < 0.01 and card.row("group: agree")["p_holm"] == 1.0
    assert card.gain["controls"] == 7, "all other single heads, each once"
    assert card.gain["improvement"] == 1.0 > card.gain["control_95"]


def test_the_rows_are_what_they_say(background, shortcut, shortcut_sets):
    """The slow truth: plain runs, plain means."""
    edit, card = background
    images = shortcut_sets[1]
    pixels, labels = images.pixels, images.label_tensor
    with torch.no_grad():
        before, after = shortcut(pixels), edit.apply(shortcut)(pixels)
    target, contrast = metrics.classes_of(before, labels)
    change = metrics.logit_diff(after, target, contrast, before) - metrics.logit_diff(before, target, contrast, before)
    assert card.row("logit_diff")["change"] == pytest.approx(float(change.mean()), abs=1e-12)
    kl = -metrics.kl(after, target, contrast, before)
    assert card.row("KL to before, untouched classes (nats)")["after"] == pytest.approx(float(kl.mean()), abs=1e-12)
    own = after.argmax(-1) == labels
    for index, name in enumerate("abc"):
        row = card.row(f"class: {name}")
        assert row["after"] == float(own[labels == index].double().mean()) and row["n"] == int((labels == index).sum())
    assert card.images["correct after"].to_list() == own.double().tolist()


def test_a_head_that_breaks_everything_is_not_believed(shortcut, shortcut_sets):
    """methods.md 1.4, pitfall 1: BIG falls, and nothing is left."""
    selection, evaluation = shortcut_sets
    edit = remove_heads(shortcut, head_units([(0, 0)]))
    card = edit_card(shortcut, edit, evaluation, chosen_on=selection, gain="BIR", **QUIET)
    assert card.status == 4 and card.row("BIG (nats)")["change"] < -0.05 and card.row("BIR")["change"] > 0
    assert "interval does not lie above 0" in card.reasons[0] and "95th percentile" in card.reasons[1]
    assert "group: agree" in card.harmed


def test_harm_to_a_class_is_an_alarm(shortcut, shortcut_sets):
    edit = remove_heads(shortcut, head_units([(0, 0)]))
    more = {"gain": "class: b", "controls": 0, **QUIET}
    card = edit_card(shortcut, edit, shortcut_sets[1], **more)
    assert card.status == 3 and set(card.harmed) == {"class: a", "class: c", "group: agree"}
    assert card.reasons == ("group: agree, class: a, class: c lose more than 0.05 of accuracy",)
    assert edit_card(shortcut, edit, shortcut_sets[1], max_harm=1.0, **more).status == 0
    assert "No random control" in str(card)


def test_an_edit_that_changes_nothing_changes_exactly_nothing(shortcut, shortcut_sets):
    edit = remove_heads(shortcut, head_units([(0, 1)]))
    card = edit_card(shortcut, edit, shortcut_sets[1], **QUIET)
    assert (card.table["change"] == 0).all() and (card.table["low"] == 0).all() and (card.table["high"] == 0).all()
    assert card.status == 4


def test_directions_against_directions_of_equal_norm(shortcut, shortcut_sets):
    """Without the context marker, head (1, 1) reads all tokens alike, and the object wins: no random direction that
    removes as much does that."""
    selection, evaluation = shortcut_sets
    marker = torch.eye(14, dtype=torch.float64)[1]
    edit = project_out(shortcut, marker, at="blocks.1.hook_resid_pre")
    card = edit_card(shortcut, edit, evaluation, chosen_on=selection, gain="worst group", **QUIET)
    assert not edit.folded and card.row("worst group")["after"] == 1.0
    assert card.status == 0 and card.gain["controls"] == 20 and card.gain["control_95"] < 0.5
    away = project_out(shortcut, torch.eye(14, dtype=torch.float64)[12], at="blocks.1.hook_resid_pre")
    assert edit_card(shortcut, away, evaluation, gain="worst group", **QUIET).status == 4


def test_edges_against_edges(shortcut, shortcut_sets):
    edit = remove_edges(shortcut, ["L1H1->out"])
    card = edit_card(shortcut, edit, shortcut_sets[1], gain="worst group", **QUIET)
    assert card.row("worst group")["after"] == 1.0
    assert card.gain["controls"] == 3, "the other heads of that layer"
    assert card.edit["folded"] is False and "reaches all readers" in card.edit["note"]


def test_matched_directions_remove_as_much():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 12, generator=generator, dtype=torch.float64) * torch.linspace(0.01, 5, 12)
    moment = x.T @ x / len(x)
    for rows in (torch.eye(12, dtype=torch.float64)[[1]], torch.eye(12, dtype=torch.float64)[[9, 3]]):
        wanted = torch.einsum("rd,de,re->", rows, moment, rows)
        for drawn in tilted(moment, rows, 5, seed=1):
            assert torch.allclose(drawn @ drawn.T, torch.eye(len(rows), dtype=torch.float64), atol=1e-10)
            removed = torch.einsum("rd,de,re->", drawn, moment, drawn)
            assert abs(float(removed / wanted) - 1) < 1e-6
            assert (drawn @ rows.T).abs().max() < 0.99
    with pytest.raises(BadData, match="nothing to match"):
        tilted(torch.zeros(3, 3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)[:1], 1, 0)


def test_the_moment_of_chosen_tokens(tiny, pixels):
    whole = tiny.run(pixels, capture=["blocks.1.hook_resid_pre"]).cache["blocks.1.hook_resid_pre"]
    for tokens, part in ((None, whole), ("cls", whole[:, :1]), ([2, 3], whole[:, 2:4])):
        x = part.reshape(-1, whole.shape[-1])
        found = second_moment(tiny, pixels, "blocks.1.hook_resid_pre", None, tokens, batch_size=1)
        testing.assert_close(found, x.T @ x / len(x), 1e-12, f"tokens {tokens}")
    drawn = matched_directions(tiny, pixels, torch.eye(16, dtype=torch.float64)[:1], "blocks.1.attn.hook_result", 2, 2)
    assert len(drawn) == 2 and drawn[0].shape == (1, 16)


def test_saved_and_loaded(background, tmp_path):
    _, card = background
    again = EditCard.load(card.save(tmp_path / "card"))
    assert str(again) == str(card) and again.status == 0 and again.images.equals(card.images)
    page = (tmp_path / "card" / "edit_card.md").read_text(encoding="utf-8")
    assert "| worst group | 200 | 0 | 1 | +1 | [+1, +1] |" in page and "Status 0" in page
    assert card._repr_html_().startswith("<pre>EditCard(")
    (tmp_path / "card" / "table.parquet").write_bytes(b"x")
    with pytest.raises(StoreCorrupt, match=r"table\.parquet is damaged"):
        EditCard.load(tmp_path / "card")
    with pytest.raises(UnknownName, match="unknown measure 'worst'"):
        card.row("worst")


def test_images_that_chose_the_edit_are_refused(shortcut, shortcut_sets):
    selection, evaluation = shortcut_sets
    edit = remove_heads(shortcut, head_units([(1, 1)]))
    with pytest.raises(SplitOverlap, match="images that chose an edit"):
        edit_card(shortcut, edit, evaluation, chosen_on=[selection, evaluation], **QUIET)
    mean = remove_heads(shortcut, head_units([(1, 1)]), mode="mean", reference=selection)
    with pytest.raises(SplitOverlap, match="90 of the images made the means"):
        edit_card(shortcut, mean, selection, **QUIET)
    assert edit_card(shortcut, mean, selection, controls=0, allow_overlap=True, **QUIET).table.height


@pytest.mark.parametrize(
    "more,error,words",
    [
        ({"gain": "worst"}, UnknownName, "unknown measure 'worst'"),
        ({"controls": 5}, OutOfRange, "at least 20 random edits"),
        ({"max_harm": 5.0}, OutOfRange, "a share of images"),
        ({"touched": ["d"]}, UnknownName, "unknown class 'd'"),
        ({"touched": ["a", "b", "c"]}, BadData, "nothing is left to see"),
        ({"metric": "logits"}, UnknownName, "unknown metric"),
    ],
)
def test_what_is_refused(more, error, words, shortcut, shortcut_sets):
    edit = remove_heads(shortcut, head_units([(1, 1)]))
    with pytest.raises(error, match=words):
        edit_card(shortcut, edit, shortcut_sets[1][:20], **{"controls": 0, **QUIET, **more})


def test_images_that_cannot_be_judged(shortcut, shortcut_sets, tiny):
    edit, images = remove_heads(shortcut, head_units([(1, 1)])), shortcut_sets[1]
    with pytest.raises(BadData, match="has no labels"):
        edit_card(shortcut, edit, replace(images, labels=None, groups=None), **QUIET)
    with pytest.raises(BadData, match="judged on an ImageSet with labels, got Tensor"):
        edit_card(shortcut, edit, images.pixels, **QUIET)
    other = remove_heads(tiny, head_units([(0, 1)]))
    with pytest.raises(ResultMismatch, match="it is another model"):
        edit_card(shortcut, other, images, **QUIET)


def test_only_touched_classes_are_left_out_of_the_collateral(shortcut, shortcut_sets):
    edit = remove_heads(shortcut, head_units([(1, 1)]))
    card = edit_card(shortcut, edit, shortcut_sets[1], touched="a", controls=0, **QUIET)
    row = card.row("KL to before, untouched classes (nats)")
    kept = np.asarray(shortcut_sets[1].labels) != 0
    assert row["n"] == kept.sum() and card.settings["touched"] == ["a"]
    assert row["after"] == pytest.approx(float(card.images["kl"].to_numpy()[kept].mean()), abs=1e-12)


def test_without_masks_or_groups(backup, evidence):
    plain = replace(evidence, groups=None)
    card = edit_card(backup, remove_heads(backup, head_units([(0, 0)])), plain, progress=False)
    assert card.row("accuracy")["after"] == 1.0 and "BIR" not in card.table["measure"].to_list()
    assert "worst group" not in card.table["measure"].to_list()


def test_worst_of_groups_that_are_there():
    assert worst(np.array([1.0, 0.0, 0.0]), np.array([2.0, 2.0, 5.0])) == 0.0
