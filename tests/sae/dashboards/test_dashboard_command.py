"""`mechvis sae dashboard`: from a saved dictionary to an HTML file."""

import importlib
import inspect

import pytest

import mechvis
import sae
from mechvis.errors import BadData, OutputNotWritable
from sae.commands.dashboard import dashboard as command
from sae.dashboards import LatentPages, latent_pages

SITE = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = mechvis.load("scenes-vit")
    rows = model.run(mechvis.data.scenes(8, seed=3), capture=[SITE]).cache[SITE].flatten(0, 1)
    return sae.start(sae.TopK(n_latents=32, k=4), {SITE: rows}).save(tmp_path_factory.mktemp("d") / "d")


def test_it_writes_a_page_and_its_data(folder, tmp_path, capsys):
    out = tmp_path / "new" / "latents.html"
    command(
        folder, model="scenes-vit", images="scenes:12:5", out=out, latents=6, n_top=3, n_quantile=2,
        groups="background", title="What they see", pages=tmp_path / "pages", progress=False,
    )  # fmt: skip
    told = capsys.readouterr().out
    assert str(out) in told and "6 latents, 12 images" in told and "not what they do" in told
    assert "<title>What they see</title>" in out.read_text(encoding="utf-8")
    found = LatentPages.load(tmp_path / "pages")
    assert found.table.height == 6 and "top_group" in found.table.columns


def test_every_flag_is_a_parameter_of_what_it_calls():
    known = {"model", "images", "device", "out", "metadata", "progress"}
    for called in command.calls:
        module, path = called.split(":")
        thing = importlib.import_module(module)
        for word in path.split("."):
            thing = getattr(thing, word)
        known |= set(inspect.signature(thing).parameters)
    flags, theirs = inspect.signature(command).parameters, inspect.signature(latent_pages).parameters
    assert not set(flags) - known
    for name in set(flags) & set(theirs) - {"model", "images"}:
        assert flags[name].default == theirs[name].default, name


def test_wrong_places_are_refused_first(folder, tmp_path):
    with pytest.raises(OutputNotWritable, match="it is a folder"):
        command(folder, model="no-such-model", images="scenes:4", out=tmp_path)
    with pytest.raises(BadData, match="no images at"):
        command(folder, model="scenes-vit", images="nowhere", out=tmp_path / "p.html")
