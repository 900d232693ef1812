"""`mechvis concepts` calls the public functions and says what came out."""

import importlib
import inspect

import pytest

import probes.concepts
from mechvis.errors import BadData
from mechvis.record import load_record
from probes.commands.concepts import concepts

QUICK = {"model": "scenes-vit", "images": "scenes:48:21", "n_concepts": 4, "progress": False}


def test_craft(capsys, tmp_path):
    concepts(
        target="star", chosen="all", importance="grad_input", importance_images=6, out=tmp_path / "out", **QUICK
    )  # fmt: skip
    said = capsys.readouterr().out
    assert "importance" in said and "auroc" in said and "random directions" in said and "saved in" in said
    assert load_record(tmp_path / "out").kind == "concepts"
    assert (tmp_path / "out" / "report.html").exists()


def test_a_class_by_number_and_nothing_saved(capsys):
    concepts(target="3", chosen="all", method="kmeans", importance="occlusion", importance_images=3, **QUICK)
    assert "nothing was saved; --out FOLDER" in capsys.readouterr().out


def test_neurons(capsys):
    concepts(method="snmf", layer=1, **QUICK)
    said = capsys.readouterr().out
    assert "speaks for" in said and "m0" in said


def test_segments(capsys):
    concepts(
        target="star", method="ace", random="scenes:5:22", how="grid", chosen="labelled", runs=3,
        **{**QUICK, "images": "scenes:60:21"},
    )  # fmt: skip
    assert "p adjusted" in capsys.readouterr().out


def test_bad_words():
    with pytest.raises(BadData, match="say which with --layer"):
        concepts(method="snmf", **QUICK)
    with pytest.raises(BadData, match="name it with --target"):
        concepts(**QUICK)
    with pytest.raises(BadData, match="needs --random images"):
        concepts(target="star", method="ace", **QUICK)


def test_every_flag_is_a_parameter_of_what_it_calls():
    known = {"model", "images", "device", "metadata", "masks", "out", "progress"}
    for place in concepts.calls:
        module, path = place.split(":")
        thing = importlib.import_module(module)
        for part in path.split("."):
            thing = getattr(thing, part)
        known |= set(inspect.signature(thing).parameters)
    assert not set(inspect.signature(concepts).parameters) - known


def test_defaults_equal_those_of_the_functions():
    flags = inspect.signature(concepts).parameters
    for name, parameter in inspect.signature(probes.concepts.craft).parameters.items():
        if name in flags and parameter.default is not inspect.Parameter.empty:
            assert flags[name].default == parameter.default, name
    for name in ("how", "runs"):
        assert flags[name].default == inspect.signature(probes.concepts.ace).parameters[name].default, name
    assert flags["sparsity"].default == inspect.signature(probes.concepts.mlp_concepts).parameters["sparsity"].default


def test_the_words_of_a_terminal_reach_it(capsys):
    import tyro

    tyro.cli(concepts, args=["--model", "scenes-vit", "--images", "scenes:24:21", "--method", "snmf", "--layer", "1",
                             "--n-concepts", "3", "--no-progress"])  # fmt: skip
    assert "m2" in capsys.readouterr().out


def test_public_names_exist_and_are_documented():
    for name in probes.concepts.__all__:
        thing = getattr(probes.concepts, name)
        assert not inspect.ismodule(thing), name
        assert (thing.__doc__ or "").strip(), name
    assert inspect.isfunction(probes.concepts.craft) and inspect.isfunction(probes.concepts.importance)
