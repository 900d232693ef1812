"""Heads removed for good: the same logits as hooks give, in plain transformers, without touching the user's model."""

import subprocess
import sys

import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file
from torch.nn.utils import parametrize

import mechvis
from circuits import cigma, prune, save_pruned
from mechvis import testing
from mechvis.errors import BadData, OutOfRange, OutputNotWritable, ResultMismatch, UnsupportedModel
from mechvis.units import Unit, head_units

HEADS = head_units([(0, 1), (0, 3), (2, 2)])

PLAIN = """
import sys, torch
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, ViTForImageClassification
vit, clip, pixels, out = sys.argv[1:]
x = load_file(pixels)["pixels"]
with torch.no_grad():
    logits = ViTForImageClassification.from_pretrained(vit).eval()(x).logits
    embedding = CLIPModel.from_pretrained(clip).eval().get_image_features(x).pooler_output
assert not any(name.split(".")[0] in ("mechvis", "circuits") for name in sys.modules)
save_file({"vit": logits.contiguous(), "clip": embedding.contiguous()}, out)
"""


def wrapped(family="vit", dtype=torch.float64):
    return mechvis.load(
        testing.tiny(family, dtype=dtype), preprocess=testing.tiny_preprocess(), tokenizer=testing.Words()
    )


def zeroed(model, pixels, heads=HEADS):
    return model.run(pixels, edits=[unit.edit("zero") for unit in heads]).logits


def in_plain_transformers(vit, clip, pixels, tmp_path):
    """Logits of one folder and image embedding of the other, from a process that knows nothing of this library."""
    save_file({"pixels": pixels}, tmp_path / "pixels.safetensors")
    places = [str(place) for place in (vit, clip, tmp_path / "pixels.safetensors", tmp_path / "found.safetensors")]
    done = subprocess.run([sys.executable, "-c", PLAIN, *places], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return load_file(tmp_path / "found.safetensors")


def test_pruned_model_equals_hook_zeroing():
    model, pixels = wrapped(), testing.tiny_input("vit", dtype=torch.float64)
    pruned = prune(model, HEADS)
    testing.assert_close(pruned.run(pixels).logits, zeroed(model, pixels), 1e-10, "weights against hooks")
    assert pruned.pruned == tuple(HEADS)
    assert not torch.equal(pruned.run(pixels).logits, model.run(pixels).logits)


def test_the_original_is_untouched():
    model = wrapped()
    before = {name: tensor.clone() for name, tensor in model.bare.state_dict().items()}
    with testing.assert_untouched(model):
        pruned = prune(model, HEADS)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.bare.state_dict().items())
    assert pruned.bare is not model.bare
    shared = {p.data_ptr() for p in model.bare.parameters()} & {p.data_ptr() for p in pruned.bare.parameters()}
    assert not shared


def test_only_the_columns_of_the_heads_change():
    model = wrapped()
    pruned = prune(model, HEADS)
    after = pruned.bare.state_dict()
    changed = {name for name, tensor in model.bare.state_dict().items() if not torch.equal(tensor, after[name])}
    assert changed == {f"vit.layers.{layer}.attention.o_proj.weight" for layer in (0, 2)}
    columns = (after["vit.layers.0.attention.o_proj.weight"] == 0).all(0).unflatten(0, (4, 4)).all(1)
    assert columns.tolist() == [False, True, False, True]


def test_saved_and_opened_in_plain_transformers(tmp_path):
    model, pixels = wrapped(dtype=torch.float32), testing.tiny_input("vit")
    pruned = prune(model, HEADS)
    folder = save_pruned(pruned, tmp_path / "vit", note="For the test.")
    zero_shot = wrapped("clip", torch.float32).classifier(["circle", "star"])
    pruned_clip = prune(zero_shot, HEADS)
    found = in_plain_transformers(folder, save_pruned(pruned_clip, tmp_path / "clip"), pixels, tmp_path)
    assert torch.equal(found["vit"], pruned.bare(pixels).logits.detach())
    testing.assert_close(found["vit"], zeroed(model, pixels), 1e-5, "plain transformers against hooks")
    logits = pruned_clip.parts.head(found["clip"])
    testing.assert_close(logits, zeroed(zero_shot, pixels), 1e-5, "plain embedding with the same prompts")
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert "L0H1, L0H3, L2H2" in readme and "For the test." in readme
    again = mechvis.load(folder)
    assert torch.equal(again.run(pixels).logits, pruned.run(pixels).logits)
    assert again.preprocess.fingerprint == model.preprocess.fingerprint


def test_a_zero_shot_classifier_is_pruned():
    clip, pixels = wrapped("clip"), testing.tiny_input("vit", dtype=torch.float64)
    model = clip.classifier(["circle", "star", "a blue square"])
    with testing.assert_untouched(clip.bare):
        pruned = prune(model, HEADS)
    testing.assert_close(pruned.run(pixels).logits, zeroed(model, pixels), 1e-10, "zero-shot logits")
    assert pruned.parts.class_names == model.parts.class_names


def test_pruning_twice_keeps_count():
    model, pixels = wrapped(), testing.tiny_input("vit", dtype=torch.float64)
    twice = prune(prune(model, HEADS[:1]), HEADS[1:])
    testing.assert_close(twice.run(pixels).logits, prune(model, HEADS).run(pixels).logits, 0, "in steps")
    assert twice.pruned == tuple(HEADS)
    assert twice.title.endswith("without 3 heads") and "1 head" not in twice.title


def test_nothing_to_prune_is_a_copy():
    model, pixels = wrapped(), testing.tiny_input("vit", dtype=torch.float64)
    copied = prune(model, [])
    assert copied.bare is not model.bare and copied.pruned == ()
    assert torch.equal(copied.run(pixels).logits, model.run(pixels).logits)


class _WithSidePath(torch.nn.Linear):
    """What adapters are to us: a linear layer whose weight is not all it does."""

    def forward(self, x):
        return super().forward(x) + 0.1 * x


class _Doubled(torch.nn.Module):
    def forward(self, weight):
        return weight * 2


@pytest.mark.parametrize("kind,words", [("side path", "does more than its weight"), ("made", "weight of its own")])
def test_adapters_are_refused(kind, words):
    bare = testing.tiny("vit")
    layer = bare.vit.layers[0].attention.o_proj
    if kind == "side path":
        layer.__class__ = _WithSidePath
    else:
        parametrize.register_parametrization(layer, "weight", _Doubled())
        bare.eval()
    model = mechvis.load(bare, preprocess=testing.tiny_preprocess())
    with testing.assert_untouched(model), pytest.raises(UnsupportedModel, match=words):
        prune(model, HEADS)
    assert prune(model, HEADS[2:]).pruned == tuple(HEADS[2:]), "other blocks are plain"


def test_heads_that_do_not_exist():
    with pytest.raises(OutOfRange, match="does not exist: heads of layer 0 take index 0 to 3"):
        prune(wrapped(), head_units([(0, 4)]))
    with pytest.raises(OutOfRange, match="does not exist"):
        prune(wrapped(), head_units([(7, 0)]))
    with pytest.raises(BadData, match="only heads can be pruned, got L0 mlp_out"):
        prune(wrapped(), [Unit(0, "mlp_out")])


def test_another_models_folder_is_not_overwritten(tmp_path):
    bare = testing.tiny("vit")
    bare.save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(OutputNotWritable, match="holds another model, which would be overwritten"):
        save_pruned(prune(wrapped(), HEADS), tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_our_own_folder_may_be_written_again(tmp_path):
    model = wrapped(dtype=torch.float32)
    save_pruned(prune(model, HEADS), tmp_path / "m")
    save_pruned(prune(model, HEADS[:1]), tmp_path / "m")
    pixels = testing.tiny_input("vit")
    loaded = mechvis.load(tmp_path / "m")
    testing.assert_close(loaded.run(pixels).logits, zeroed(model, pixels, HEADS[:1]), 1e-5, "second writing")


def test_a_model_of_another_source_is_saved_as_weights(tmp_path):
    model = testing.shortcut_vit()
    pruned = prune(model, head_units([(1, 1)]))
    save_pruned(pruned, tmp_path / "m")
    fresh = testing.ShortcutViT()
    safetensors.torch.load_model(fresh, str(tmp_path / "m" / "model.safetensors"))
    pixels = testing.shortcut_images(9).pixels
    assert torch.equal(fresh(pixels), pruned.bare(pixels))
    assert not torch.equal(fresh(pixels), model.bare(pixels))
    assert "ShortcutViT: make the same architecture" in (tmp_path / "m" / "README.md").read_text()
    save_pruned(pruned, tmp_path / "m")
    (tmp_path / "m" / "README.md").unlink()
    with pytest.raises(OutputNotWritable, match="holds another model"):
        save_pruned(pruned, tmp_path / "m")


def test_study_is_applied_to_its_own_model_only():
    model = testing.shortcut_vit()
    drawn = testing.shortcut_images(90).image_set()
    study = cigma(model, drawn, fill="zero", progress=False, sensitivity=False)
    with testing.assert_untouched(model):
        pruned = study.apply(model)
    conflict = ~testing.shortcut_images(90).agree
    answers = pruned.bare(testing.shortcut_images(90).pixels).argmax(-1)
    assert bool((answers == testing.shortcut_images(90).labels)[conflict].all())
    with pytest.raises(ResultMismatch, match="Pass any_model=True if you know"):
        study.apply(pruned)
    assert study.apply(pruned, any_model=True).pruned == pruned.pruned
    with pytest.raises(ResultMismatch, match="this study is of the model"):
        study.apply(wrapped())


def test_a_model_at_another_image_size():
    model = mechvis.load("scenes-vit", image_size=96)
    pruned = prune(model, head_units([(1, 2)]))
    pixels = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    expected = model.run(pixels, edits=[mechvis.edits.zero("blocks.1.attn.hook_z", heads=[2])]).output
    testing.assert_close(pruned.run(pixels).output, expected, 1e-5, "pruned at 96 pixels")
