"""The look of figures, measured: colours for colour-blind readers and grey print, contrast, text that is only text.

Colour blindness is simulated with the matrices of Machado, Oliveira and Fernandes (2009) for severity 1.0, which act on
linear RGB; distances are Euclidean in CIE-Lab (D65).
"""

import itertools

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.colors import to_rgb

from mechvis.errors import NotFinite, OutOfRange, ShapeMismatch
from mechvis.plots import look

BLINDNESS = {
    "none": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
OKABE_ITO = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5b5b5b")


def linear(colours) -> np.ndarray:
    rgb = np.array([to_rgb(colour) for colour in colours])
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    ratio = (np.clip(rgb, 0, 1) @ _XYZ.T) / _XYZ.sum(1)
    f = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


def smallest_distance(colours, blindness: str) -> float:
    seen = lab(linear(colours) @ np.array(BLINDNESS[blindness]).T)
    return min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2))


def smallest_grey_step(colours) -> float:
    light = lab(linear(colours))[:, 0]
    return float(np.diff(np.sort(light)).min())


def contrast(first, second) -> float:
    light = linear([first, second]) @ _XYZ[1]
    return float((light.max() + 0.05) / (light.min() + 0.05))


def lightness(name: str, n: int = 257) -> np.ndarray:
    return lab(linear(colormaps[name](np.linspace(0, 1, n))[:, :3]))[:, 0]


def test_the_measure_knows_what_is_known():
    # White, black and the red of sRGB have known Lab values; matrices keep grey grey.
    assert np.allclose(lab(linear(["#ffffff", "#000000"])), [[100, 0, 0], [0, 0, 0]], atol=1e-3)
    assert np.allclose(lab(linear(["#ff0000"])), [[53.24, 80.09, 67.20]], atol=0.02)
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    for matrix in BLINDNESS.values():
        assert np.allclose(np.sum(matrix, axis=1), 1, atol=2e-6)
    # Red and green of one lightness: far apart, but not for a protanope or deuteranope.
    pair = ("#b35a3c", "#6b7f2a")
    assert smallest_distance(pair, "none") > 50
    assert max(smallest_distance(pair, kind) for kind in ("protanopia", "deuteranopia")) < 30


@pytest.mark.parametrize("blindness", BLINDNESS)
def test_series_stay_apart_for_every_eye(blindness):
    assert smallest_distance(look.LINES, blindness) >= 16


def test_series_stay_apart_in_grey_print_and_from_paper():
    assert smallest_grey_step(look.LINES) >= 7
    light = lab(linear(look.LINES))[:, 0]
    # Neighbours in the order of use differ most; the first three far from each other.
    assert np.abs(np.diff(light)).min() >= 15
    assert smallest_grey_step(look.LINES[:3]) >= 8
    assert min(contrast(colour, "#ffffff") for colour in look.LINES) >= 3
    # The test can fail: a palette that is good for colour-blind eyes is not for grey print.
    assert smallest_grey_step(OKABE_ITO) < 1


def test_lines_differ_without_colour():
    styles = [(look.DASHES[i % len(look.DASHES)], look.MARKERS[i % len(look.MARKERS)]) for i in range(28)]
    assert len(set(styles)) == 28 and len({dash for dash, _ in styles[:4]}) == 4


@pytest.mark.parametrize("name", [look.SEQUENTIAL, look.HEAT, look.AMOUNTS])
def test_sequential_maps_are_monotone_in_lightness(name):
    steps = np.diff(lightness(name, 101))
    assert (steps > 0).all() or (steps < 0).all()
    assert np.ptp(lightness(name)) > 70


def test_the_diverging_map_is_symmetric_in_lightness():
    light = lightness(look.DIVERGING)
    middle = len(light) // 2
    assert light[middle] > 96
    assert np.abs(light - light[::-1]).max() < 6
    assert (np.diff(light[: middle + 1]) > -0.2).all() and (np.diff(light[middle:]) < 0.2).all()
    # Red and blue stay apart for everybody: a sign is never lost to colour blindness.
    for blindness in BLINDNESS:
        assert smallest_distance((look.SUPPORTS, look.OPPOSES), blindness) > 40
    # The rainbow would fail both.
    jet = lightness("jet")
    assert np.abs(jet - jet[::-1]).max() > 6


def test_text_has_contrast():
    for ground in ("#ffffff", "#f4f5f7"):
        assert min(contrast(look.INK, ground), contrast(look.GREY, ground)) >= 4.5
    assert contrast(look.INK, look.PALE) >= 4.5
    for name in (look.DIVERGING, look.SEQUENTIAL, look.HEAT, look.AMOUNTS):
        for colour in colormaps[name](np.linspace(0, 1, 201))[:, :3]:
            assert contrast(look.on(colour), colour) >= 4.5, (name, colour)


def test_plain_text_shows_what_there_is():
    assert look.plain("costs $5") == r"costs \$5"
    assert look.plain("_hidden") == " _hidden"
    # Hebrew and Arabic letters are in the font; a fox, an ideograph, a mark that turns the direction and half a
    # surrogate pair are not.
    assert look.plain("שלום سلام") == "שלום سلام"
    assert look.plain("🦊") == "U+1F98A" and look.plain("中") == "U+4E2D"
    assert look.plain("a\u202eb") == "aU+202Eb" and look.plain("\ud800") == "U+D800"
    assert look.plain("a\tb\nc") == "a b\nc" and look.plain("\x00") == "U+0000"


def test_long_text_is_cut_and_keeps_both_ends():
    assert look.short("L3H1") == "L3H1"
    cut = look.short("beginning of a " + "very " * 100 + "long tale", 21)
    assert cut == "beginning … long tale"
    # Wide letters: fewer of them.
    assert len(look.short("W" * 100, 21)) < 15
    with pytest.raises(OutOfRange, match="at least 3 characters, got 2"):
        look.short("abc", 2)
    assert look.fitted("word " * 1000, 3.0, lines=2).count("\n") == 1
    assert max(map(len, look.wrapped("i" * 5000, 20, 3).splitlines())) == 20
    assert look.wrapped("one\ntwo", 20).splitlines() == ["one", "two"]


def test_the_headline_makes_room_for_itself():
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 2), layout="constrained")
    figure.add_subplot()
    look.headline(figure, "a title that is rather long, so that it needs more than one line of the figure", "n = 3")
    assert figure.get_figheight() > 2.4
    figure.draw_without_rendering()
    top = max(axes.get_tightbbox().y1 for axes in figure.axes)
    assert all(text.get_window_extent().y0 >= top - 1 for text in figure.texts)
    empty = Figure(figsize=(4, 2), layout="constrained")
    look.headline(empty, "", "")
    assert empty.get_figheight() == 2 and not empty.texts


def test_numbers_refuses_what_cannot_be_drawn():
    assert look.numbers("x", [1, 2]).tolist() == [1.0, 2.0]
    with pytest.raises(ShapeMismatch, match=r"x needs 2 non-empty axes, got the shape \[2\]"):
        look.numbers("x", [1, 2], ndim=2)
    with pytest.raises(ShapeMismatch, match=r"x has the shape \[2\], it should be \[3\]"):
        look.numbers("x", [1, 2], like=(3,))
    with pytest.raises(NotFinite, match="x holds Inf"):
        look.numbers("x", [np.inf])
    with pytest.raises(NotFinite, match="x holds NaN"):
        look.numbers("x", [np.nan], nan=False)
    assert look.sample(1200) == "; n = 1,200 images" and look.sample("3 to 5", first=True) == "n = 3 to 5 images"
