"""The bundled models open with plain transformers and do what their cards say; their training survives a kill."""

import itertools
import json
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    CLIPModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from mechvis.data.scenes import SHAPES, render, sample_factors
from mechvis.errors import BadData, ResultMismatch, UnknownName
from mechvis.models import zoo
from mechvis.models.training import loop, train
from mechvis.models.training.backbone import BALANCE, MultiTask, multi_task_loss, to_pixels
from mechvis.models.training.clip import CONTEXT, PROMPTS, clip_tokenizer, encode, vocabulary, zero_shot
from mechvis.models.training.loop import TrainingPlan, fit
from mechvis.models.training.measure import GroupScenes, probe_accuracy, shortcut_figures


def figures(name):
    return json.loads((zoo.path(name) / "figures.json").read_text())


@pytest.fixture(scope="module")
def vit():
    return ViTForImageClassification.from_pretrained(zoo.path("scenes-vit")).eval()


@pytest.fixture(scope="module")
def clip():
    return CLIPModel.from_pretrained(zoo.path("scenes-clip")).eval()


def test_names_paths_cards():
    assert zoo.names() == ("scenes-vit", "scenes-clip")
    for name in zoo.names():
        assert zoo.card(name).startswith(f"# {name}\n")
        assert zoo.describe(name).name == name
        assert (zoo.path(name) / "model.safetensors").stat().st_size < 4 * 2**20
    with pytest.raises(UnknownName, match="scenes-vit"):
        zoo.path("scene-vit")


def test_listing_the_models_does_not_import_transformers():
    code = "import sys, mechvis.models.zoo as zoo; zoo.names(); sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["scenes-vit", "scenes-clip"])
def test_the_stored_preprocessing_is_the_one_used_in_training(name):
    images, _ = render(sample_factors(3, seed=1))
    processor = AutoImageProcessor.from_pretrained(zoo.path(name))
    pixels = processor(images=list(images), return_tensors="pt")["pixel_values"]
    assert torch.allclose(pixels, to_pixels(images), atol=1e-6)


def test_labels_are_the_shapes(vit):
    assert tuple(vit.config.id2label[k] for k in range(8)) == SHAPES


def test_probe_accuracies_are_those_of_the_card(vit):
    told = figures("scenes-vit")["probe"]["accuracy"]
    assert told["shape"] >= 0.95 and told["background"] >= 0.99 and told["colour"] >= 0.99
    measured = probe_accuracy(vit.vit, fit=1500, test=500, seed=777_000)
    for name, value in told.items():
        assert measured[name] == pytest.approx(value, abs=0.025), name


def test_the_shortcut_is_that_of_the_card(vit):
    card = figures("scenes-vit")
    told, told_without = card["groups"]["whole"], card["without_heads"]["figures"]
    assert told["consistent"] >= 0.97 and told["conflicting"] <= told["consistent"] - 0.25
    groups = {name: GroupScenes(name, n=200, seed=777_002) for name in ("consistent", "conflicting")}
    whole = shortcut_figures(vit, groups)
    without = shortcut_figures(vit, groups, [tuple(head) for head in card["without_heads"]["heads"]])
    for name in ("consistent", "conflicting", "object_only", "bir"):
        # three standard errors of a fraction near a half, n = 200
        assert whole[name] == pytest.approx(told[name], abs=0.11), name
        assert without[name] == pytest.approx(told_without[name], abs=0.11), name
    for before, after, slack in ((told, told_without, 0.0), (whole, without, 0.1)):
        assert after["conflicting"] >= before["conflicting"] + 0.09
        assert after["consistent"] >= before["consistent"] - 0.05
        assert after["bir"] <= (0.6 + slack) * before["bir"]


def test_zero_shot_accuracies_are_those_of_the_card(clip):
    told = figures("scenes-clip")["zero_shot"]["accuracy"]
    measured = zero_shot(clip, 300, seed=777_004)
    for name, value in told.items():
        assert value >= 0.9
        assert measured[name] == pytest.approx(value, abs=0.04), name


def test_the_stored_tokenizer_is_the_one_used_in_training(clip):
    tokenizer = AutoTokenizer.from_pretrained(zoo.path("scenes-clip"))
    texts = [PROMPTS["shape"][0].format("star"), "a photo of a red star on a striped background"]
    stored = tokenizer(texts, padding="max_length", return_tensors="pt")
    used = encode(texts, vocabulary())
    assert torch.equal(stored["input_ids"], used["input_ids"])
    assert torch.equal(stored["attention_mask"], used["attention_mask"])
    assert stored["input_ids"].shape[1] == CONTEXT
    assert tokenizer.decode(stored["input_ids"][0], skip_special_tokens=True) == texts[0]
    assert tokenizer.eos_token_id == clip.config.text_config.eos_token_id
    # padding does not change what a caption means
    short = tokenizer(texts[:1], return_tensors="pt")
    with torch.no_grad():
        alone = clip.get_text_features(**short).pooler_output
        padded = clip.get_text_features(**stored).pooler_output[:1]
    assert torch.allclose(alone, padded, atol=1e-5)


def test_words_outside_the_vocabulary_become_the_unknown_token():
    ids = clip_tokenizer()("a photo of a Dog")["input_ids"]
    assert ids[-2] == vocabulary()["<|unknown|>"]


def tiny_training(seed=4):
    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=64,
        patch_size=8,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    plan = TrainingPlan(steps=6, batch=4, learning_rate=1e-2, seed=seed)
    return MultiTask(config), multi_task_loss(BALANCE, seed=seed, batch=4, device="cpu"), plan


def test_resumed_training_equals_uninterrupted(tmp_path):
    whole, loss, plan = tiny_training()
    assert fit(whole, loss, plan, checkpoint=tmp_path / "a", progress=False) == 6
    parts, loss, plan = tiny_training()
    assert fit(parts, loss, plan, checkpoint=tmp_path / "b", progress=False, stop_after=3) == 3
    again, loss, plan = tiny_training()
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()  # everything must come from the checkpoint
    assert fit(again, loss, plan, checkpoint=tmp_path / "b", progress=False) == 6
    for (name, one), other in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


KILLED = """
import os, signal, sys, torch
from pathlib import Path
from torch import nn
from mechvis.models.training.loop import TrainingPlan, fit

def run(path, kill_at):
    def loss(module, step):
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        x = torch.linspace(-1, 1, 8).reshape(4, 2) * (step + 1)
        value = (module(x) - x.sum(1, keepdim=True)).pow(2).mean()
        return value, {"loss": value.detach()}

    torch.manual_seed(0)
    module = nn.Linear(2, 1)
    plan = TrainingPlan(steps=9, batch=4, learning_rate=0.1)
    fit(module, loss, plan, checkpoint=path, progress=False, checkpoint_every=2)
    return module.weight.tolist(), module.bias.tolist()

if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]))
"""


def test_a_killed_process_resumes_to_the_same_weights(tmp_path):
    here = {"__name__": "here"}
    exec(KILLED, here)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "killed"), "5"], check=False)
    assert killed.returncode == -signal.SIGKILL and (tmp_path / "killed").exists()
    assert here["run"](tmp_path / "killed", -1) == here["run"](tmp_path / "whole", -1)


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    module, loss, plan = tiny_training()
    checkpoint = tmp_path / "state.safetensors"
    fit(module, loss, plan, checkpoint=checkpoint, progress=False, stop_after=2)
    before = checkpoint.read_bytes()

    def torn(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(loop, "save_file", torn)
    with pytest.raises(OSError, match="disk full"):
        fit(module, loss, plan, checkpoint=checkpoint, progress=False)
    assert checkpoint.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


def test_a_checkpoint_of_another_plan_is_refused(tmp_path):
    module, loss, plan = tiny_training()
    fit(module, loss, plan, checkpoint=tmp_path / "a", progress=False, stop_after=1)
    other = TrainingPlan(steps=7, batch=4, learning_rate=1e-2, seed=4)
    with pytest.raises(ResultMismatch, match="another plan"):
        fit(module, loss, other, checkpoint=tmp_path / "a", progress=False)


def test_learning_rate_rises_then_falls_to_zero():
    plan = TrainingPlan(steps=100, batch=1, learning_rate=1.0, warmup=0.1)
    rates = [plan.rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[9:]))
    assert rates[-1] < 0.01


def test_every_recipe_runs_to_a_folder_that_opens(tmp_path):
    quick = {"images": 128, "progress": False, "measure": False, "bf16": False}
    backbone = train("scenes-backbone", tmp_path / "backbone", **quick)
    assert ViTModel.from_pretrained(backbone, add_pooling_layer=False).config.num_hidden_layers == 4
    folder = train("scenes-vit", tmp_path / "vit", backbone=backbone, **quick)
    assert isinstance(ViTForImageClassification.from_pretrained(folder).classifier, nn.Linear)
    folder = train("scenes-clip", tmp_path / "clip", backbone=backbone, **quick)
    assert CLIPModel.from_pretrained(folder).config.projection_dim == 64
    again = train("scenes-clip", tmp_path / "clip", backbone=backbone, **quick)
    assert again == folder


def test_bad_recipe_settings_are_refused(tmp_path):
    with pytest.raises(UnknownName, match="scenes-vit"):
        train("scenes-vot", tmp_path)
    with pytest.raises(BadData, match="128"):
        train("scenes-vit", tmp_path, images=10)
