"""`mechvis timeline` and `mechvis probe`: what they print, save and refuse, and that every flag is a parameter."""

import importlib
import inspect

import pytest

from mechvis.errors import BadData, UnknownName
from mechvis.testing import tiny, tiny_preprocess
from probes.commands.probe import probe
from probes.commands.timeline import timeline
from probes.linear import Erasure, LinearProbes
from probes.timeline import Timeline

QUICK = {"progress": False, "resamples": 50}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny random classifier of the scenes' shapes."""
    from mechvis.data.scene_factors import SHAPES

    names = dict(enumerate(SHAPES))
    folder = tmp_path_factory.mktemp("models") / "tiny-vit"
    tiny("vit", id2label=names, label2id={name: i for i, name in names.items()}).save_pretrained(folder)
    tiny_preprocess().processor.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("command", [probe, timeline])
def test_flags_are_parameters(command):
    known = {"model", "images", "out"}
    for called in command.calls:
        module, path = called.split(":")
        thing = importlib.import_module(module)
        for word in path.split("."):
            thing = getattr(thing, word)
        known |= set(inspect.signature(thing).parameters)
    assert not set(inspect.signature(command).parameters) - known


def test_timeline(folder, tmp_path, capsys):
    out = tmp_path / "t"
    timeline(model=folder, images="scenes:120:3", anchors=("half",), follow=("partner",), corruptions=("noise:1",),
             draws=20, out=out, **QUICK)  # fmt: skip
    said = capsys.readouterr().out
    assert "conflicting" in said and "L0" not in said.split("accuracy at")[0] and "report.html" in said
    found = Timeline.load(out)
    assert len(found.facts["anchors"]) == 7 and "corruption" in found.tables and "following" in found.tables


def test_timeline_refuses(folder):
    with pytest.raises(BadData, match="noise:1"):
        timeline(model=folder, images="scenes:40:3", corruptions=("noise",), **QUICK)
    with pytest.raises(UnknownName, match="column to follow"):
        timeline(model=folder, images="scenes:40:3", follow=("weather",), **QUICK)
    with pytest.raises(BadData, match="is no class"):
        timeline(model=folder, images="scenes:40:3", follow=("colour",), **QUICK)


def test_probe(folder, tmp_path, capsys):
    probe(model=folder, images="scenes:120:3", tokens=("cls", "mean"), target="colour", types="background",
          weight_decays=(1e-2,), out=tmp_path / "p", **QUICK)  # fmt: skip
    said = capsys.readouterr().out
    assert "raw pixels" in said and "commonest class" in said and "blocks.2.hook_resid_post:mean" in said
    found = LinearProbes.load(tmp_path / "p")
    assert found.facts["target"] == "colour" and "random_model" in found.table.columns


def test_probe_erases(folder, tmp_path, capsys):
    probe(model=folder, images="scenes:120:3", site="blocks.1.hook_resid_post", methods=("leace",), randoms=2,
          out=tmp_path / "e", **QUICK)  # fmt: skip
    assert "random subspace (rank of LEACE)" in capsys.readouterr().out
    assert Erasure.load(tmp_path / "e").table.height == 4


def test_nothing_is_saved_unasked(folder, capsys):
    probe(model=folder, images="scenes:80:3", baselines=(), code=False, weight_decays=(1e-2,), **QUICK)
    assert "nothing was saved" in capsys.readouterr().out
