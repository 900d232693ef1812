"""`mechvis head-roles` calls the public functions and says what came out; the folder lists what is public."""

import inspect

import pytest

import circuits.weights
from circuits.weights.command import head_roles
from mechvis import Result
from mechvis.errors import BadData


def test_the_command_prints_and_saves(capsys, tmp_path):
    head_roles(model="scenes-vit", images="scenes:40:5", out=tmp_path / "roles", layers=(1, 3), progress=False)
    said = capsys.readouterr().out
    assert "L1H0  object" in said and "L3H0  diffuse" in said and "L2H0" not in said
    assert (tmp_path / "roles" / "report.html").exists()
    assert Result.load(tmp_path / "roles").kind == "head_roles"


def test_nothing_is_saved_unasked(capsys):
    head_roles(model="scenes-clip", images="scenes:30:5", layers=(1,), least=0.99, progress=False)
    said = capsys.readouterr().out
    assert "none" in said and "nothing was saved; --out FOLDER" in said


def test_unknown_images():
    with pytest.raises(BadData, match="no images at 'nowhere'"):
        head_roles(model="scenes-vit", images="nowhere")


def test_public_names_exist_and_are_documented():
    for name in circuits.weights.__all__:
        thing = getattr(circuits.weights, name)
        assert not inspect.ismodule(thing), name
        assert (thing.__doc__ or "").strip(), name
    assert inspect.isfunction(circuits.weights.composition) and inspect.isfunction(circuits.weights.directions)


def test_every_flag_of_the_command_is_a_parameter_of_what_it_calls():
    flags = set(inspect.signature(head_roles).parameters)
    known = {"model", "images", "out", "device"}  # where things lie
    for place in head_roles.calls:
        module, name = place.split(":")
        function = __import__(module, fromlist=["x"])
        for part in name.split("."):
            function = getattr(function, part)
        known |= set(inspect.signature(function).parameters)
    assert flags <= known, flags - known
