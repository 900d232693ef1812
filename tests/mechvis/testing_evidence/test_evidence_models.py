"""The bundled models: their certificates hold when they are measured again, and a wrong model has none."""

import pytest
import torch

import mechvis
from mechvis.errors import FailedCheck, OutOfRange, UnknownName
from mechvis.testing import evidence
from mechvis.testing.evidence.model import new_model
from mechvis.testing.evidence.names import VARIANTS, variant
from mechvis.testing.evidence.train import main, train

MODELS = [(name, seed) for name in VARIANTS for seed in evidence.seeds_of(name)]


@pytest.mark.parametrize(("name", "seed"), MODELS)
def test_certificate_holds_when_measured_again(name, seed):
    planted = evidence.load(name, seed)
    again = evidence.certify(planted.model, variant(name), n=100, seed=9)
    failed = [row for row in again["checks"] if not row["holds"]]
    assert again["certified"], failed
    assert planted.certificate["certified"] and planted.certificate["accuracy"] >= 0.99


def test_every_variant_has_two_models_of_less_than_300_kilobytes():
    assert {name for name, _ in MODELS} == set(VARIANTS)
    for name in VARIANTS:
        assert len(evidence.seeds_of(name)) >= 2
        for seed in evidence.seeds_of(name):
            folder = evidence.folder_of(name, seed)
            assert sum(file.stat().st_size for file in folder.iterdir()) < 300_000
            assert not [file for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pkl")]


def test_an_untrained_model_has_no_certificate():
    found = evidence.certify(new_model(variant("object"), seed=0), variant("object"), n=100)
    assert not found["certified"] and found["accuracy"] < 0.6


def test_a_model_of_another_variant_has_no_certificate():
    """The same classes and shapes, but one that takes the shape is not one that takes the cue."""
    found = evidence.certify(evidence.load("object").model, variant("shortcut"), n=100)
    assert not found["certified"]
    assert {row["name"]: row["holds"] for row in found["checks"]}["another cue: the answer is the cue's"] is False


def test_models_open_as_ordinary_folders():
    folder = str(evidence.folder_of("object", 0))
    pixels = evidence.load("object").ask(4).pixels
    import transformers

    bare = transformers.ViTForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(mechvis.load(folder)(pixels), bare(pixels).logits)


def test_training_too_short_writes_nothing(tmp_path, capsys):
    with pytest.raises(FailedCheck, match="Train longer"):
        train("object", tmp_path, steps=1, images=50)
    assert not list(tmp_path.iterdir())
    assert main(["--variant", "object", "--out", str(tmp_path), "--steps", "1", "--images", "50"]) == 1
    assert "Train longer" in capsys.readouterr().out


@pytest.mark.slow
def test_a_model_can_be_trained_again(tmp_path):
    folder = train("object", tmp_path, seed=11)
    assert evidence.certify(mechvis.load(str(folder)), variant("object"))["certified"]


def test_bad_inputs_say_what_there_is(tmp_path):
    with pytest.raises(OutOfRange, match="there are"):
        evidence.load("object", 99)
    with pytest.raises(UnknownName, match="redundant"):
        evidence.load("redundnat")
    with pytest.raises(OutOfRange, match="at least 1"):
        train("object", tmp_path, steps=0)
    with pytest.raises(OutOfRange, match="at least one image"):
        evidence.load("object").ask(0)
