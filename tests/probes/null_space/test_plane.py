"""The two figures of these read-outs: any text, any number of points, no trace in matplotlib."""

import io

import matplotlib
import matplotlib._pylab_helpers
import numpy as np
import polars as pl
import pytest

from mechvis.errors import NotFinite, ShapeMismatch, UnknownName
from mechvis.plots.norm_histogram import norm_histogram
from mechvis.plots.null_space import null_space_plane

HOSTILE = r"$\frac{$ _x^ \n & < > % # $$"


def table(n, **change):
    generator = np.random.default_rng(0)
    x, y = generator.uniform(5, 20, n), generator.uniform(1, 8, n)
    columns = {"IS": x, "IS_low": x - 1, "IS_high": x + 1, "AS_size": y, "AS_size_low": y - 1, "AS_size_high": y + 1}
    return pl.DataFrame({**columns, **change})


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("text", ["plain", HOSTILE, ""])
def test_figures_draw_any_text_and_leave_no_trace(n, text):
    before = dict(matplotlib.rcParams)
    lengths = [np.linspace(1, 2 + i, 50) for i in range(n)]
    for figure in (
        null_space_plane([f"{text} {i}" for i in range(n)], table(n), title=text),
        norm_histogram([text] * n, lengths, [None, 1.5, float("nan"), None, None][:n], title=text),
    ):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg")
        assert buffer.tell() > 1000
    assert dict(matplotlib.rcParams) == before and not matplotlib._pylab_helpers.Gcf.figs


def test_points_lie_where_the_numbers_say():
    axes = null_space_plane(["a", "b"], table(2, IS=[6.0, 18.0]), limits=(12.0, 100.0)).axes[0]
    assert [line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 1] == [6.0, 18.0]
    assert 12.0 in [line.get_xdata()[0] for line in axes.lines], "a limit inside the picture is drawn"
    assert axes.get_ylim()[1] < 100, "one outside does not stretch it"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    assert null_space_plane(list(map(str, range(40))), table(40)).axes[0].get_legend() is None


def test_missing_intervals_are_left_out():
    figure = null_space_plane(["a"], table(1, IS_low=[np.nan], IS_high=[np.nan]))
    figure.savefig(io.BytesIO(), format="png")


def test_bad_input():
    with pytest.raises(UnknownName, match="unknown column 'IS_low'"):
        null_space_plane(["a"], pl.DataFrame({"IS": [1.0]}))
    with pytest.raises(ShapeMismatch, match="2 points but 1 names"):
        null_space_plane(["a"], table(2))
    with pytest.raises(NotFinite, match="IS holds Inf"):
        null_space_plane(["a"], table(1, IS=[np.inf]))
    with pytest.raises(ShapeMismatch, match="as many names"):
        norm_histogram(["a", "b"], [np.ones(3)])
