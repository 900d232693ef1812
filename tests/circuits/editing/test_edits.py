"""Edits in the weights and at run time: they do what they say, are kept, and are taken back bit by bit."""

import json

import pytest
import torch
from safetensors.torch import load_file, load_model, save_file

import mechvis
from circuits import editing
from circuits.circuit import Circuit
from circuits.edges.graph import EdgeGraph
from circuits.editing import keep_only, load_edit, project_out, remove_edges, remove_heads, save_edited
from mechvis import edits, testing
from mechvis.errors import (
    BadData,
    OutOfRange,
    OutputNotWritable,
    RefusedMethod,
    ResultMismatch,
    ShapeMismatch,
    StoreCorrupt,
    UnknownName,
    UnsupportedModel,
)
from mechvis.testing.planted import edge_forward
from mechvis.units import Unit, head_units

HEADS = head_units([(0, 1), (2, 2)])
DIRECTIONS = torch.randn(2, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def made(kind, model, reference):
    """An edit of every kind."""
    if kind in ("zero", "mean", "mean_positional"):
        return remove_heads(model, HEADS, mode=kind, reference=None if kind == "zero" else reference)
    if kind == "edges":
        return remove_edges(model, ["L0H1->L1H2.q", "L0MLP->out"], ablation="mean", reference=reference)
    return project_out(model, DIRECTIONS, at=kind)


FOLDED = ["zero", "mean", "L1H2", "L1 attn_out", "L1MLP", "out"]
AT_RUN_TIME = ["mean_positional", "edges", "blocks.1.hook_resid_pre"]


@pytest.mark.parametrize("kind", FOLDED)
def test_weights_do_what_the_edit_says(kind, tiny, pixels, reference):
    with testing.assert_untouched(tiny):
        edit = made(kind, tiny, reference)
        edited = edit.apply(tiny)
    assert edit.folded and not edit.note and edit.deviation < 1e-12
    testing.assert_close(edited(pixels), edit.change.run(tiny, pixels), 1e-12, "weights against run time")
    assert not torch.equal(edited(pixels), tiny(pixels))
    assert edited.fingerprint == edit.after != tiny.fingerprint == edit.before


@pytest.mark.parametrize("kind", AT_RUN_TIME)
def test_what_no_weight_can_hold_stays_outside(kind, tiny, pixels, reference):
    edit = made(kind, tiny, reference)
    assert not edit.folded and not edit.slices and len(edit.note) > 60
    with testing.assert_untouched(tiny):
        edited = edit.apply(tiny)
        after = edited(pixels)
    assert isinstance(edited, editing.EditedModel)
    assert not torch.allclose(after, tiny(pixels))
    assert edited.fingerprint == edit.after and edit.undo(edited) is tiny
    words = {"mean_positional": "an output bias is the same", "edges": "reaches all readers"}
    assert words.get(kind, "through a LayerNorm") in edit.note
    with pytest.raises(BadData, match="not in the weights, so there is nothing to write"):
        edit.apply(tiny, in_place=True)


@pytest.mark.parametrize("kind", FOLDED)
def test_apply_then_undo_is_bitwise_the_original(kind, reference):
    model = mechvis.load(testing.tiny("vit"), preprocess=testing.tiny_preprocess())
    before = {name: value.clone() for name, value in model.bare.state_dict().items()}
    edit = made(kind, model, reference.float())
    start = model.fingerprint
    edited = edit.apply(model)
    restored = edit.undo(edited)
    assert restored.fingerprint == start
    assert all(torch.equal(before[name], value) for name, value in restored.bare.state_dict().items())
    # In place: the very module of the user changes, and comes back.
    assert edit.apply(model, in_place=True) is model and model.fingerprint == edit.after
    assert torch.equal(model(testing.tiny_input("vit")), edited(testing.tiny_input("vit")))
    assert edit.undo(model, in_place=True) is model and model.fingerprint == start
    assert all(torch.equal(before[name], value) for name, value in model.bare.state_dict().items())


def test_the_mean_goes_into_the_output_bias(tiny, pixels, reference):
    edit = made("mean", tiny, reference)
    means = mechvis.means(tiny, reference, "blocks.*.attn.hook_z")
    plain = tiny.run(pixels, edits=[edits.mean(unit.site, means, heads=[unit.index]) for unit in HEADS]).logits
    testing.assert_close(edit.apply(tiny)(pixels), plain, 1e-12, "bias against edits.mean")
    changed = {part.name.split(".")[-1] for part in edit.slices}
    assert changed == {"weight", "bias"} and len(edit.slices) == 4
    # A mean per token in a bias would be wrong: it is another edit.
    positional = made("mean_positional", tiny, reference).apply(tiny)(pixels)
    assert (positional - plain).abs().max() > 1e-4 * plain.abs().max()


def test_zeros_are_those_of_prune(tiny):
    from circuits import prune

    assert made("zero", tiny, None).after == prune(tiny, HEADS).fingerprint


def test_a_model_at_another_image_size():
    bare = testing.tiny("vit")
    size = testing.tiny_preprocess().at_size(16, 16)
    model = mechvis.load(bare, preprocess=size, image_size=16)
    edit = remove_heads(model, HEADS)
    inputs = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert edit.folded and edit.apply(model).parts.image_size == (16, 16)
    testing.assert_close(edit.apply(model)(inputs), edit.change.run(model, inputs), 1e-6, "another size")


def test_a_layer_scale_is_divided_out():
    model = mechvis.load(testing.tiny("dinov2-classifier", dtype=torch.float64), preprocess=testing.tiny_preprocess())
    inputs = testing.tiny_input("dinov2-classifier", dtype=torch.float64)
    for at in ("L1H2", "L1MLP", "out"):
        edit = project_out(model, DIRECTIONS, at=at, how="weights")
        testing.assert_close(edit.apply(model)(inputs), edit.change.run(model, inputs), 1e-12, at)
    unit = torch.eye(16, dtype=torch.float64)[3]
    written = project_out(model, unit, at="L1MLP").apply(model).run(inputs, capture=["blocks.1.hook_mlp_out"])
    assert written.cache["blocks.1.hook_mlp_out"][..., 3].abs().max() < 1e-15


def test_a_zero_shot_classifier_is_edited():
    clip = mechvis.load(
        testing.tiny("clip", dtype=torch.float64), preprocess=testing.tiny_preprocess(), tokenizer=testing.Words()
    )
    model = clip.classifier(["circle", "star"])
    inputs = testing.tiny_input("vit", dtype=torch.float64)
    edit = project_out(model, DIRECTIONS, at="out", how="weights")
    assert [part.name for part in edit.slices] == ["visual_projection.weight"]
    edited = edit.apply(model)
    testing.assert_close(edited(inputs), edit.change.run(model, inputs), 1e-12, "zero-shot")
    assert edit.undo(edited).fingerprint == model.fingerprint
    assert edited.parts.class_names == ("circle", "star")


def test_edges_are_cut_as_the_slow_truth_says(pixels):
    model = mechvis.load(testing.rand_vit(), preprocess=testing.tiny_preprocess())
    inputs = model.parts.example_batch(model.bare, torch.Generator().manual_seed(1))
    graph = EdgeGraph.of(model)
    gone = ["embed->L1H0.k", "L0H1->L1H2.q", "L0MLP->out"]
    edit = remove_edges(model, gone)
    # An MLP that writes nothing writes no bias either: all of its write is replaced.
    zeros = {name: torch.zeros(1, 1, 1, dtype=torch.float64) for name in graph.writers}
    expected = edge_forward(model, inputs, zeros, set(graph.edges) - set(gone))
    testing.assert_close(edit.apply(model)(inputs), expected, 1e-10, "cut edges")
    assert edit.change.edges == tuple(name for name in graph.edges if name in gone)
    assert len(edit.change.circuit) == graph.n_edges - 3


def test_keep_only_is_the_rest_cut(tiny, pixels, reference):
    graph = EdgeGraph.of(tiny)
    circuit = Circuit.of_nodes(graph, ["L0H1", "L1MLP"])
    kept = keep_only(tiny, circuit, ablation="mean_positional", reference=reference).apply(tiny)
    gone = Circuit(graph=graph, kept=graph.allowed & ~circuit.kept)
    removed = remove_edges(tiny, gone, ablation="mean_positional", reference=reference).apply(tiny)
    assert torch.equal(kept(pixels), removed(pixels))
    assert kept.edit.change.circuit.edges == circuit.edges


def test_cutting_every_edge_of_a_head_points_to_its_removal(tiny, pixels):
    graph = EdgeGraph.of(tiny)
    edit = remove_edges(tiny, [name for name in graph.edges if name.startswith("L1H2->")])
    assert "every edge of L1H2 is cut: remove_heads" in edit.note
    removed = remove_heads(tiny, head_units([(1, 2)])).apply(tiny)
    testing.assert_close(edit.apply(tiny)(pixels), removed(pixels), 1e-12, "all edges against the head")


def test_directions_at_tokens_stay_at_run_time(tiny, pixels):
    edit = project_out(tiny, DIRECTIONS[0], at="L1MLP", tokens=[0])
    assert not edit.folded and "at tokens (0,) only" in edit.note
    everywhere = project_out(tiny, DIRECTIONS[0], at="L1MLP").apply(tiny)(pixels)
    assert not torch.allclose(edit.apply(tiny)(pixels), everywhere)
    with pytest.raises(RefusedMethod, match="weights are the same at every token"):
        project_out(tiny, DIRECTIONS[0], at="L1MLP", tokens=[0], how="weights")


@pytest.mark.parametrize("kind", [*FOLDED, *AT_RUN_TIME])
def test_saved_and_loaded(kind, tiny, pixels, reference, tmp_path):
    edit = made(kind, tiny, reference)
    again = load_edit(edit.save(tmp_path / "edit"), tiny)
    assert (again.before, again.after, again.folded) == (edit.before, edit.after, edit.folded)
    assert again.title == edit.title and repr(again) == repr(edit)
    edited = again.apply(tiny)
    assert torch.equal(edited(pixels), edit.apply(tiny)(pixels)) and edited.fingerprint == edit.after
    assert (tmp_path / "edit" / "undo.safetensors").exists() == edit.folded
    assert again.undo(edited).fingerprint == tiny.fingerprint
    assert again.change.reference_ids == edit.change.reference_ids


def test_an_older_edit_leaves_nothing_behind(tiny, reference, tmp_path):
    made("mean", tiny, reference).save(tmp_path / "e")
    made("edges", tiny, reference).save(tmp_path / "e")
    assert {path.name for path in (tmp_path / "e").iterdir()} == {"edit.json", "change.safetensors"}
    assert not load_edit(tmp_path / "e").folded


def test_a_damaged_undo_is_noticed(tiny, reference, tmp_path):
    folder = made("zero", tiny, reference).save(tmp_path / "e")
    tensors = load_file(folder / "undo.safetensors")
    tensors["0"][0, 0] += 1
    save_file(tensors, folder / "undo.safetensors")
    with pytest.raises(StoreCorrupt, match=r"undo\.safetensors is damaged"):
        load_edit(folder)
    manifest = json.loads((folder / "edit.json").read_text())
    manifest["version"] = 9
    (folder / "edit.json").write_text(json.dumps(manifest))
    with pytest.raises(ResultMismatch, match="format version 9"):
        load_edit(folder)
    with pytest.raises(StoreCorrupt, match="does not exist"):
        load_edit(tmp_path / "nowhere")


def test_edits_do_not_stack_silently(tiny, pixels):
    first = remove_heads(tiny, HEADS[:1])
    edited = first.apply(tiny)
    with pytest.raises(BadData, match="carries 1 edit already"):
        remove_heads(edited, HEADS[1:])
    second = remove_heads(edited, HEADS[1:], stack=True)
    assert second.before == first.after and second.chain == (first.before,)
    assert "on top of 1 earlier edit" in repr(second)
    both = second.apply(edited)
    testing.assert_close(both(pixels), remove_heads(tiny, HEADS).apply(tiny)(pixels), 0, "in steps")
    assert both.pruned == tuple(HEADS)
    with pytest.raises(ResultMismatch, match="edits are undone in the reverse of their order"):
        first.undo(both)
    back = second.undo(both)
    assert back.pruned == (HEADS[0],)
    assert first.undo(back).fingerprint == tiny.fingerprint
    with pytest.raises(ResultMismatch, match="carries the edit already"):
        first.apply(edited)
    with pytest.raises(ResultMismatch, match="does not carry the edit"):
        first.undo(tiny)
    other = mechvis.load(testing.tiny("deit"), preprocess=testing.tiny_preprocess())
    with pytest.raises(ResultMismatch, match="it is another model"):
        first.apply(other)
    with pytest.raises(BadData, match="carries an edit at run time"):
        remove_heads(remove_edges(tiny, ["L0MLP->out"]).apply(tiny), HEADS)


def test_an_edit_that_changes_nothing(shortcut):
    edit = remove_heads(shortcut, head_units([(0, 1)]))
    images = testing.shortcut_images(9).pixels
    assert edit.folded and edit.before == edit.after and "changes nothing" in repr(edit)
    assert torch.equal(edit.apply(shortcut)(images), shortcut(images))


def test_a_model_folder_with_its_undo(tmp_path, shortcut):
    model = mechvis.load(testing.tiny("vit"), preprocess=testing.tiny_preprocess())
    edit = project_out(model, DIRECTIONS, at="L1MLP")
    edited = edit.apply(model)
    folder = save_edited(edited, edit, tmp_path / "m", note="For the test.")
    opened = mechvis.load(folder)
    inputs = testing.tiny_input("vit")
    assert torch.equal(opened(inputs), edited(inputs))
    restored = load_edit(folder / "edit").undo(opened)
    assert restored.fingerprint == model.fingerprint
    assert torch.equal(restored(inputs), model(inputs))
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert "2 directions projected out at L1MLP" in readme and "For the test." in readme
    save_edited(edited, edit, folder)
    (folder / "README.md").unlink()
    with pytest.raises(OutputNotWritable, match="holds another model"):
        save_edited(edited, edit, folder)
    with pytest.raises(ResultMismatch, match="the edit leads to the model"):
        save_edited(model, edit, tmp_path / "n")
    outside = remove_edges(model, ["L0MLP->out"])
    with pytest.raises(BadData, match="a model folder would not have it"):
        save_edited(outside.apply(model), outside, tmp_path / "n")
    gone = remove_heads(shortcut, head_units([(1, 1)]))
    save_edited(gone.apply(shortcut), gone, tmp_path / "s")
    fresh = testing.ShortcutViT()
    load_model(fresh, str(tmp_path / "s" / "model.safetensors"))
    images = testing.shortcut_images(9).pixels
    assert torch.equal(fresh(images), gone.apply(shortcut)(images))


class _WithSidePath(torch.nn.Linear):
    """A linear layer whose weight is not all it does, as adapters are."""

    def forward(self, x):
        return super().forward(x) + 0.1 * x


def test_layers_that_do_more_than_their_weight():
    bare = testing.tiny("vit")
    bare.vit.layers[1].attention.o_proj.__class__ = _WithSidePath
    model = mechvis.load(bare, preprocess=testing.tiny_preprocess())
    for edit in (
        lambda how: remove_heads(model, head_units([(1, 2)]), how=how),
        lambda how: project_out(model, DIRECTIONS, at="L1 attn_out", how=how),
    ):
        with pytest.raises(UnsupportedModel, match="does more than its weight says"):
            edit("weights")
        assert not edit("auto").folded
    assert project_out(model, DIRECTIONS, at="L2MLP").folded, "other layers are plain"


def test_what_is_no_model():
    with pytest.raises(BadData, match="made of a wrapped model, got ViTForImageClassification"):
        remove_heads(testing.tiny("vit"), HEADS)


def test_a_bias_is_needed_for_a_mean(shortcut):
    images = testing.shortcut_images(9).pixels
    with pytest.raises(UnsupportedModel, match="has no bias, and the edit needs one"):
        remove_heads(shortcut, head_units([(1, 1)]), mode="mean", reference=images, how="weights")
    edit = remove_heads(shortcut, head_units([(1, 1)]), mode="mean", reference=images)
    assert not edit.folded and "has no bias" in edit.note


@pytest.mark.parametrize(
    "heads,more,error,words",
    [
        ([Unit(0, "mlp_out")], {}, BadData, "only heads can be removed, got L0 mlp_out"),
        ([], {}, BadData, "no units given"),
        (head_units([(7, 0)]), {}, OutOfRange, "does not exist"),
        (HEADS, {"mode": "median"}, UnknownName, "unknown way to remove heads 'median'"),
        (HEADS, {"mode": "mean"}, BadData, "needs reference= images"),
        (HEADS, {"reference": 3}, BadData, "mode='zero' uses none"),
        (HEADS, {"how": "bias"}, UnknownName, "unknown place of the edit"),
    ],
)
def test_heads_that_cannot_be_removed(heads, more, error, words, tiny):
    with pytest.raises(error, match=words):
        remove_heads(tiny, heads, **more)


@pytest.mark.parametrize(
    "directions,at,error,words",
    [
        (torch.ones(5), "out", ShapeMismatch, "directions have 5 entries, out has 16"),
        (torch.zeros(16), "out", ShapeMismatch, "direction 0 is zero"),
        (torch.full((16,), float("nan")), "out", ShapeMismatch, "finite numbers"),
        (torch.ones(2, 16), "out", ShapeMismatch, "linearly dependent"),
        (torch.ones(16), "L9H0", OutOfRange, "does not exist"),
        (torch.ones(16), "L1H2.q", UnknownName, "neither a writer"),
        (torch.ones(16), "blocks.*.hook_resid_pre", BadData, "matches 3 sites"),
        (torch.ones(16), 3, BadData, "at= names a writer"),
    ],
)
def test_directions_that_do_not_fit(directions, at, error, words, tiny):
    with pytest.raises(error, match=words):
        project_out(tiny, directions, at=at)


@pytest.mark.parametrize(
    "edges,more,error,words",
    [
        ([], {}, BadData, "no edge to cut"),
        (["L0H1-L1H2.q"], {}, BadData, "not the name of an edge"),
        (["L2H1->L1H2.q"], {}, BadData, "does not come before"),
        (["L0MLP->out"], {"ablation": "patch"}, BadData, "an edited model answers to one image alone"),
        (["L0MLP->out"], {"ablation": "median"}, UnknownName, "unknown ablation"),
        (["L0MLP->out"], {"ablation": "mean"}, BadData, "needs reference= images"),
        (["L0MLP->out"], {"reference": 1}, BadData, "ablation='zero' uses none"),
        (["L0MLP->out"], {"how": "weights"}, RefusedMethod, "an edge cannot be written into weights"),
        (Circuit.of(EdgeGraph((2,)), ["L0H1->out"]), {}, ResultMismatch, "no counterpart"),
    ],
)
def test_edges_that_cannot_be_cut(edges, more, error, words, tiny):
    with pytest.raises(error, match=words):
        remove_edges(tiny, edges, **more)


def test_weights_of_another_shape_are_not_touched(tiny):
    edit = remove_heads(tiny, HEADS)
    from circuits.editing.slices import write

    other = testing.tiny("vit", dtype=torch.float32)
    with pytest.raises(ResultMismatch, match="does not fit this model"):
        write(other, edit.slices, "new")
