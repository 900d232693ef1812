"""`mechvis decompose`: what it prints and leaves, and what it refuses."""

import pytest

from mechvis import cli
from mechvis.decompose import Decomposition, ablations, decompose
from mechvis.record import Record


def test_a_table_an_error_and_folders_that_open(tmp_path, capsys):
    import mechvis

    words = ["decompose", "--model", "scenes-vit", "--images", "scenes:24:3", "--reference", "scenes:12:4"]
    assert cli.main([*words, "--layers", "-1", "--no-progress", "--out", str(tmp_path / "d")]) == 0
    said = capsys.readouterr().out
    assert "relative error" in said and "L3H1" in said and "before L3" in said and "forward pass" in said
    found = Decomposition.load(tmp_path / "d")
    model, images = mechvis.load("scenes-vit"), mechvis.data.scenes(24, seed=3, correlation=0.5)
    assert found.table.equals(decompose(model, images, layers=-1, progress=False).table)
    reference = mechvis.data.scenes(12, seed=4, correlation=0.5)
    expected = ablations(model, images, reference=reference, layers=-1, progress=False)
    assert Record.load(tmp_path / "d" / "ablations").table.equals(expected.table)
    assert (tmp_path / "d" / "report.html").is_file() and (tmp_path / "d" / "ablations" / "report.html").is_file()


@pytest.mark.parametrize(
    ("more", "said"),
    [(["--layers", "3"], "negative number"), (["--of", "embedding"], "of='pooled'"), (["--reference", "x"], "scenes")],
)
def test_mistakes_are_one_message(more, said, capsys):
    words = ["decompose", "--model", "scenes-vit", "--images", "scenes:6:3", "--no-progress"]
    assert cli.main([*words, *more]) == 1
    assert said in capsys.readouterr().err
