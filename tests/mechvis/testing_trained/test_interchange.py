"""The forward with exchanges, against the plain model, against edits of wrapped models, and against itself."""

import pytest
import torch

from mechvis import edits
from mechvis.errors import BadData, OutOfRange, ShapeMismatch, UnknownName
from mechvis.models.load import find, wrap
from mechvis.testing import tiny, tiny_input, tiny_preprocess
from mechvis.testing.trained import TASKS, family, task_of
from mechvis.testing.trained.exact import edge_effects, node_effects
from mechvis.testing.trained.interchange import Donor, all_rows, forward
from mechvis.testing.trained.places import check_place, place
from mechvis.testing.trained.training.model import new_model

N = 12


@pytest.fixture(scope="module", params=list(TASKS))
def case(request):
    """A random model of each layout, in float64, wrapped; and pairs."""
    task = task_of(request.param)
    model = new_model(task, seed=1).double()
    pairs = family(task, task.placement(0), "all", N, seed=0)
    object.__setattr__(pairs, "clean", pairs.clean.double())
    object.__setattr__(pairs, "corrupt", pairs.corrupt.double())
    return task, model, wrap(model, preprocess=tiny_preprocess(32)), pairs


def test_without_exchange_it_is_the_model(case):
    _, bare, model, pairs = case
    with torch.no_grad():
        trace = forward(model.parts, pairs.clean)
        assert torch.allclose(trace.logits, bare(pairs.clean).logits, atol=1e-12)
    # Everything written adds up to what the read-out reads.
    total = trace.embed + sum(h.sum(2) for h in trace.heads) + sum(trace.mlps)
    total = total + sum(block.attn.out_bias() for block in model.parts.blocks)
    assert torch.allclose(total, trace.beside + trace.mlps[-1], atol=1e-12)


def test_a_node_patch_is_the_patch_of_the_wrapped_model(case):
    _, _, model, pairs = case
    with torch.no_grad():
        theirs = model.run(pairs.corrupt, capture=["blocks.*.attn.hook_z", "blocks.*.hook_mlp_out"])
        source = forward(model.parts, pairs.corrupt)
        for layer in range(2):
            ours = forward(model.parts, pairs.clean, [Donor(trace=source, chosen={f"L{layer}H2@all": True})])
            edit = edits.patch(f"blocks.{layer}.attn.hook_z", theirs.cache, heads=[2])
            assert torch.allclose(ours.logits, model.run(pairs.clean, edits=[edit]).logits, atol=1e-10)
        ours = forward(model.parts, pairs.clean, [Donor(trace=source, chosen={"L0MLP@patch": True})])
        patches = list(range(len(model.parts.prefix), model.parts.n_tokens))
        edit = edits.patch("blocks.0.hook_mlp_out", theirs.cache, tokens=patches)
        assert torch.allclose(ours.logits, model.run(pairs.clean, edits=[edit]).logits, atol=1e-10)


def test_the_last_mlp_and_the_path_beside_it_are_the_whole_answer(case):
    _, _, model, pairs = case
    with torch.no_grad():
        source = forward(model.parts, pairs.corrupt)
        donor = Donor(trace=source, chosen=all_rows(["L1MLP@all", "direct->out"]))
        assert torch.allclose(forward(model.parts, pairs.clean, [donor]).logits, source.logits, atol=1e-12)


def test_reading_everything_from_elsewhere_is_writing_from_elsewhere(case):
    _, _, model, pairs = case
    groups = ("cls", "patch", "register")[: 2 + (len(model.parts.prefix) > 1)]
    with torch.no_grad():
        source = forward(model.parts, pairs.corrupt)
        read = Donor(trace=source, chosen=all_rows(f"{group}->L1H0" for group in groups))
        write = Donor(trace=source, chosen={"L1H0@all": True})
        one, other = (forward(model.parts, pairs.clean, [donor]).logits for donor in (read, write))
    assert torch.allclose(one, other, atol=1e-12)
    assert not torch.allclose(one, forward(model.parts, pairs.clean).logits, atol=1e-3)


def test_only_chosen_rows_change_and_the_order_names_the_giver(case):
    _, _, model, pairs = case
    rows = torch.arange(N) % 3 == 0
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        source = forward(model.parts, pairs.clean)
        mixed = forward(model.parts, pairs.clean, [Donor(trace=source, order=order, chosen={"L1MLP@all": rows})])
        whole = forward(model.parts, pairs.clean, [Donor(trace=source, order=order, chosen={"L1MLP@all": True})])
        single = forward(model.parts, pairs.clean[order])
    assert torch.allclose(mixed.logits[~rows], source.logits[~rows], atol=1e-12)
    assert torch.allclose(mixed.logits[rows], whole.logits[rows], atol=1e-12)
    assert torch.allclose(whole.mlps[1], single.mlps[1], atol=1e-12)


@pytest.mark.parametrize("writer", ["embed", "L0H1", "L0MLP", "L1H2", "L1MLP"])
def test_all_edges_of_a_writer_together_are_the_writer(case, writer):
    _, _, model, pairs = case
    edges = [edge for edge in pairs.truth.edges if edge.startswith(f"{writer}->")]
    with torch.no_grad():
        clean, corrupt = forward(model.parts, pairs.clean), forward(model.parts, pairs.corrupt)
        if writer == "embed":
            more, expected = corrupt.embed - clean.embed, corrupt.logits
        else:
            at = place(f"{writer}@all")
            more = (
                corrupt.mlps[at.layer] - clean.mlps[at.layer]
                if at.kind == "mlp"
                else (corrupt.heads[at.layer] - clean.heads[at.layer])[:, :, at.head]
            )
            donor = Donor(trace=corrupt, chosen={f"{writer}@all": True})
            expected = forward(model.parts, pairs.clean, [donor]).logits
        added = {edge.partition("->")[2]: more for edge in edges}
        found = forward(model.parts, pairs.clean, added=added).logits
    assert torch.allclose(found, expected, atol=1e-10)


def test_effects_are_falls_of_the_logit_difference(case):
    _, _, model, pairs = case
    with torch.no_grad():
        clean, corrupt = (model.run(images).logits for images in (pairs.clean, pairs.corrupt))
    whole = edge_effects(model.parts, pairs, ["L1MLP->out", "L1H0->out"])
    node = node_effects(model.parts, pairs, ["L1MLP"])
    assert torch.allclose(whole["L1MLP->out"], node["L1MLP"], atol=1e-10)
    rows = pairs.flips
    label, contrast = pairs.clean_labels[rows, None], pairs.corrupt_labels[rows, None]
    theirs = [(x[rows].gather(1, label) - x[rows].gather(1, contrast))[:, 0] for x in (clean, corrupt)]
    chosen = all_rows(["L1MLP@all", "direct->out"])
    with torch.no_grad():
        both = forward(model.parts, pairs.clean, [Donor(trace=forward(model.parts, pairs.corrupt), chosen=chosen)])
    ours = (both.logits[rows].gather(1, label) - both.logits[rows].gather(1, contrast))[:, 0]
    assert torch.allclose(theirs[0] - ours, theirs[0] - theirs[1], atol=1e-10)
    back = node_effects(model.parts, pairs, ["L1MLP"], denoise=True)["L1MLP"]
    assert back.shape == (N,) and not torch.allclose(back, node["L1MLP"])


def test_gradients_reach_the_giver(case):
    _, bare, model, pairs = case
    source = forward(model.parts, pairs.corrupt)
    forward(model.parts, pairs.clean, [Donor(trace=source, chosen={"L1MLP@all": True, "direct->out": True})]).logits[
        :, 0
    ].sum().backward()
    with_source = bare.classifier.weight.grad.clone(), next(bare.parameters()).grad.clone()
    bare.zero_grad()
    # Everything that is read came from the other images: their gradient is that of a plain run of them.
    forward(model.parts, pairs.corrupt).logits[:, 0].sum().backward()
    assert torch.allclose(with_source[0], bare.classifier.weight.grad, atol=1e-10)
    assert torch.allclose(with_source[1], next(bare.parameters()).grad, atol=1e-10)
    bare.zero_grad()


def test_bad_input(case):
    _, _, model, pairs = case
    trace = forward(model.parts, pairs.clean)
    with pytest.raises(UnknownName, match=r"'L0H1' is no place\. Places are called like L0H1@cls"):
        place("L0H1")
    with pytest.raises(OutOfRange, match="L2H0@cls: the model has 2 layers of 4 heads"):
        check_place("L2H0@cls", model.parts)
    if len(model.parts.prefix) == 1:
        with pytest.raises(OutOfRange, match="the model has the token groups cls, patch"):
            check_place("L0H0@register", model.parts)
    with pytest.raises(ShapeMismatch, match="12 images, but a donor gives to 3 rows"):
        forward(model.parts, pairs.clean, [Donor(trace=trace, order=torch.arange(3), chosen={"L0H0@all": True})])
    with pytest.raises(ShapeMismatch, match="chooses rows of other lengths for L0H0@all"):
        forward(model.parts, pairs.clean, [Donor(trace=trace, chosen={"L0H0@all": torch.ones(3, dtype=torch.bool)})])
    with pytest.raises(UnknownName, match="'L0X@all' is no place"):
        forward(model.parts, pairs.clean, [Donor(trace=trace, chosen={"L0X@all": True})])
    with pytest.raises(BadData, match="nothing reads under the name 'L9MLP'; readers are L0H0"):
        forward(model.parts, pairs.clean, added={"L9MLP": trace.embed})


def test_models_whose_positions_are_rotations_are_refused():
    model = tiny("dinov3")
    with pytest.raises(BadData, match=r"interchange is for plain ViTs.*DINOv3 is none"):
        forward(find(model)(model), tiny_input("dinov3"))
