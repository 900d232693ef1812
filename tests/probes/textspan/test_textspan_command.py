"""`mechvis textspan` calls the public functions and says what came out; figures hold the numbers; what is public."""

import numpy as np
import pytest

import probes.textspan
from mechvis.errors import BadData, BadImages, ShapeMismatch
from mechvis.plots.property_heads import property_heads
from mechvis.plots.token_heat import token_heat
from probes.commands.textspan import textspan
from probes.textspan import TextSpan

IMAGE = np.zeros((8, 8, 3), np.uint8)


def test_heads_and_their_texts(tmp_path, capsys):
    textspan(
        model="scenes-clip", images="scenes:48:41", bank="scenes", m=5, permutations=999, layers=-3,
        out=tmp_path / "out", texts=("a red shape", "a star"), heads=("L1H0", "L3H2"), progress=False,
    )  # fmt: skip
    said = capsys.readouterr().out
    assert "L1H0" in said and "colour" in said and "The texts are a basis, not names" in said
    assert "saved in" in said and "heat.png" in said
    assert TextSpan.load(tmp_path / "out").heads[0] == "L1H0"
    assert (tmp_path / "out" / "heat.png").stat().st_size > 10_000 and (tmp_path / "out" / "report.html").exists()


def test_named_heads_are_confirmed(tmp_path, capsys):
    textspan(
        model="scenes-clip", images="scenes:32:41", bank="scenes", m=5, permutations=999, test="scenes:16:42",
        draws=1, out=tmp_path / "out", progress=False,
    )  # fmt: skip
    said = capsys.readouterr().out
    assert "Heads ablated in the forward pass" in said and "random heads" in said and "shape (lies along)" in said
    assert (tmp_path / "out" / "confirmed" / "report.html").exists()


def test_nothing_is_kept_without_a_folder(capsys):
    textspan(model="scenes-clip", images="scenes:16:41", bank="scenes", m=2, permutations=99, layers=-1, progress=False)
    assert "nothing was saved; --out FOLDER" in capsys.readouterr().out


def test_settings_that_say_nothing_are_refused(tmp_path):
    with pytest.raises(BadData, match="--heads says something about --texts"):
        textspan(model="scenes-clip", images="scenes:16:41", heads=("L1H0",))
    with pytest.raises(BadData, match="--allow-overlap says something about --test"):
        textspan(model="scenes-clip", images="scenes:16:41", allow_overlap=True)
    with pytest.raises(BadData, match="say where with --out"):
        textspan(model="scenes-clip", images="scenes:16:41", texts=("a star",))
    with pytest.raises(BadData, match="has no text tower"):
        textspan(model="scenes-vit", images="scenes:16:41", bank="scenes")
    with pytest.raises(BadData, match="no text bank 'nothing'"):
        textspan(model="scenes-clip", images="scenes:16:41", bank="nothing")


def test_every_public_name_is_there():
    for name in probes.textspan.__all__:
        assert getattr(probes.textspan, name).__doc__
    assert callable(probes.textspan.inside)


# figures


def test_the_map_of_properties_and_heads():
    scores = np.array([[0.9, 0.1], [np.nan, 0.4]])
    figure = property_heads(scores, ["colour", "$x"], ["L1H0", "L1H1"], significant=scores > 0.5, title="Heads")
    written = [text.get_text() for text in figure.axes[0].texts]
    assert written == ["0.90", "0.10", "0.40"]
    assert len(figure.axes[0].patches) == 1
    wide = property_heads(np.zeros((1, 48)), ["colour"], [f"L{i}H0" for i in range(48)])
    assert not wide.axes[0].texts


def test_heat_over_images():
    maps = np.arange(16.0).reshape(2, 2, 2, 2)
    masks = [np.eye(8, dtype=bool)] * 2
    figure = token_heat([IMAGE, IMAGE], maps, ["a star", "a ring"], masks=masks, captions=["one", "two"], title="Heat")
    names = [axes.get_xlabel() for axes in figure.axes[:6]]
    assert names == ["one", "a star", "a ring", "two", "a star", "a ring"]
    shown = figure.axes[4].images[1].get_array()
    np.testing.assert_array_equal(shown, maps[1, 0])


def test_figures_of_what_does_not_fit():
    with pytest.raises(ShapeMismatch, match="need 1 rows and 2 columns"):
        property_heads(np.zeros((2, 2)), ["a"], ["x", "y"])
    with pytest.raises(ShapeMismatch, match="1 images, 2 texts"):
        token_heat([IMAGE], np.zeros((1, 1, 2, 2)), ["a", "b"])
    with pytest.raises(ShapeMismatch, match="captions need one entry per image"):
        token_heat([IMAGE], np.zeros((1, 1, 2, 2)), ["a"], captions=[])
    with pytest.raises(BadImages):
        token_heat([IMAGE.astype(float)], np.zeros((1, 1, 2, 2)), ["a"])
