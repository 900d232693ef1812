"""What patching says: summary, page, figure; and the command from words to files."""

import importlib
import inspect

import numpy as np
import pytest

import mechvis
from circuits.pairs import scene_swap
from circuits.patching import map_figure, patch, report, summary
from circuits.patching.command import patch as command
from mechvis.errors import BadData, OutOfRange, ResultMismatch


@pytest.fixture(scope="module")
def model():
    return mechvis.load("scenes-vit")


@pytest.fixture(scope="module")
def pairs(model):
    return scene_swap(model, n=12, change="object", seed=5)


@pytest.fixture(scope="module")
def found(model, pairs):
    return patch(model, pairs, units=["heads", "tokens"], layers=[3], metric=["logit_diff", "kl"], progress=False)


def test_summary(found):
    text = summary(found, 2)
    assert "12 pairs," in text and "with one prediction for both halves" in text and "ratios of means" in text
    for metric in ("logit_diff[noise]", "logit_diff[denoise]", "kl[noise]", "kl[denoise]"):
        assert f"{metric}: 2 of 69 units" in text
        first = found.top(1, metric=metric).row(0, named=True)
        assert f"{first['effect']:+.3f}" in text
    with pytest.raises(ResultMismatch, match="no activation patching"):
        summary(mechvis.Result.from_values("x", "else", [{"head": 0, "layer": 0}], {"m": np.ones((1, 3))}))


def test_page(found, tmp_path):
    text = report(found, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Clean and corrupt" in text and "can stand in for each other noising finds nothing" in text
    assert "numerator and denominator resampled together" in text


def test_page_warns_of_pairs_that_say_little(model, tmp_path):
    pairs = scene_swap(model, n=12, change="colour", seed=5)
    found = patch(model, pairs, layers=[3], progress=False, max_undistinguished=1)
    text = report(found, tmp_path / "page.html").read_text(encoding="utf-8")
    count = found.provenance["patching"]["undistinguished"]
    assert count > 3 and f"In {count} of 12 pairs the model predicts one class for both halves" in text


def test_maps_over_pictures(model, pairs, found):
    figure = map_figure(model, pairs, found, metric="logit_diff[denoise]", shown=[0, 5])
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["image", "layer 3"]
    assert figure.axes[0].get_ylabel() == "{clean_class} / {corrupt_class}".format(**found.images.row(0, named=True))
    assert len(figure.axes) == 2 * 2 + 1
    with pytest.raises(OutOfRange, match="the pairs are 0 to 11"):
        map_figure(model, pairs, found, shown=[12])
    with pytest.raises(ResultMismatch, match="not of these 3 pairs"):
        map_figure(model, pairs[:3], found)


def test_every_flag_is_a_parameter_of_a_public_function():
    known = {"model", "images", "out", "top"}
    for called in command.calls:
        module, path = called.split(":")
        thing = importlib.import_module(module)
        for word in path.split("."):
            thing = getattr(thing, word)
        known |= set(inspect.signature(thing).parameters)
    assert not set(inspect.signature(command).parameters) - known
    theirs = inspect.signature(patch).parameters
    for name, parameter in inspect.signature(command).parameters.items():
        if name in theirs and inspect.Parameter.empty not in (theirs[name].default, parameter.default):
            given = parameter.default[0] if name in ("metric", "units") else parameter.default
            assert given == theirs[name].default, name


def test_command(tmp_path, capsys):
    out = tmp_path / "run"
    words = {"model": "scenes-vit", "images": "scenes:16:3", "progress": False, "out": out}
    command(**words, units=("heads", "q"), layers=(3,), max_failing=0.9)
    text = capsys.readouterr().out
    assert "PairCheck('scenes, object swap'" in text and "L3H1.q" in text and "page" not in text
    assert "saved in" in text and (out / "report.html").exists()
    loaded = mechvis.Result.load(out)
    assert loaded.metrics == ["logit_diff[noise]", "logit_diff[denoise]"]
    assert loaded.rows()["n"][0] < 16, "pairs that fail were left out"
    words["out"] = None
    command(**words, change="background", units=("patches",), groups="object", layers=(0,), max_undistinguished=1)
    text = capsys.readouterr().out
    assert "L0 object" in text and "nothing was saved" in text


def test_command_with_a_folder_and_its_aligned_twin(tmp_path, capsys):
    drawn = mechvis.data.scene_pairs(6, seed=9, change="object")
    for part, name in ((drawn.clean, "clean"), (drawn.corrupt, "corrupt")):
        mechvis.data.export(part, tmp_path / name)
    words = {"model": "scenes-vit", "images": str(tmp_path / "clean"), "progress": False, "layers": (3,)}
    command(**words, corrupt=str(tmp_path / "corrupt"), max_undistinguished=1)
    assert "6 pairs" in capsys.readouterr().out
    command(**words, change="grey", max_undistinguished=1)
    assert "grey of the object" in capsys.readouterr().out
    with pytest.raises(BadData, match="leave one of them out"):
        command(**words, corrupt=str(tmp_path / "corrupt"), change="hue")
    with pytest.raises(BadData, match="use --change hue or grey"):
        command(**words, change="colour")
