"""`mechvis circuit compare` calls the public functions and says what came out; the folder lists what is public."""

import inspect
import json

import pytest
import torch

import circuits.comparison
from circuits.comparison import load_comparison
from circuits.comparison.command import compare
from mechvis import testing
from mechvis.errors import BadData


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Five tiny models as folders, and the options that keep them small."""
    made = []
    for seed in range(5):
        place = tmp_path_factory.mktemp("models") / f"m{seed}"
        testing.tiny("vit", seed=seed, dtype=torch.float32).save_pretrained(place)
        testing.tiny_preprocess().processor.save_pretrained(place)
        made.append(str(place))
    return tuple(made)


def test_models(folders, capsys, tmp_path):
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps({name: 0.1 * (i + 1) for i, name in enumerate(folders)}))
    compare(
        models=folders, images="scenes:12:3", id_images="scenes:12:4", accuracies=truth, bands=(1, 1), progress=False,
        out=tmp_path / "out",
    )  # fmt: skip
    said = capsys.readouterr().out
    assert "DDB out" in said and "accuracy at home" in said and "over 5 models" in said
    assert "saved in" in said and (tmp_path / "out" / "report.html").exists()
    assert load_comparison(tmp_path / "out").table["model"].to_list() == list(folders)


def test_data(folders, capsys):
    compare(models=folders[:1], reference="scenes:32:3", others=("scenes:8:4", "scenes:8:5"), draws=20, progress=False)
    said = capsys.readouterr().out
    assert "matched CSS" in said and "scenes:8:5" in said and "nothing was saved; --out FOLDER" in said
    assert "With 20 draws" in said


def test_a_clip_model_takes_the_classes_of_the_images(capsys):
    compare(models=("scenes-clip",), images="scenes:6:3", steps=2, progress=False)
    assert "scenes-clip" in capsys.readouterr().out


def test_an_alarm_is_set_first(folders, capsys):
    compare(
        models=folders[:1], reference="scenes:32:3", others=("scenes:8:4",), images="scenes:8:6", kinds=("noise",),
        severities=(1, 5), tolerated=0.99, draws=20, progress=False,
    )  # fmt: skip
    said = capsys.readouterr().out
    assert said.startswith("alarm above 0.") and "of 2 sets" in said


def test_bad_words(folders, tmp_path):
    with pytest.raises(BadData, match="which comparison"):
        compare(models=folders)
    with pytest.raises(BadData, match="got 2 models and 1 sets"):
        compare(models=folders[:2], reference="scenes:8", others=("scenes:8:1",))
    with pytest.raises(BadData, match="--tolerated needs labelled --images"):
        compare(models=folders[:1], reference="scenes:8", others=("scenes:8:1",), tolerated=0.5)
    wrong = tmp_path / "wrong.json"
    wrong.write_text("[1]")
    with pytest.raises(BadData, match="one JSON object, model to accuracy"):
        compare(models=folders, images="scenes:8", accuracies=wrong)


def test_public_names_exist_and_are_documented():
    for name in circuits.comparison.__all__:
        thing = getattr(circuits.comparison, name)
        assert not inspect.ismodule(thing), name
        assert (thing.__doc__ or "").strip(), name
    assert inspect.isfunction(circuits.comparison.css) and inspect.isfunction(circuits.comparison.ddb)


def test_every_flag_of_the_command_is_a_parameter_of_what_it_calls():
    flags = set(inspect.signature(compare).parameters)
    known = {"out"}  # where things lie
    for place in compare.calls:
        module, name = place.split(":")
        function = __import__(module, fromlist=["x"])
        for part in name.split("."):
            function = getattr(function, part)
        known |= set(inspect.signature(function).parameters)
    assert flags <= known, flags - known


def test_the_words_of_a_terminal_reach_it(folders, capsys):
    import tyro

    words = ["--models", *folders[:2], "--images", "scenes:8:3", "--bands", "1", "1", "--no-progress"]
    tyro.cli(compare, args=words)
    assert "DDB out" in capsys.readouterr().out
