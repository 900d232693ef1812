"""`mechvis attribute` and `mechvis card`: what they print and leave, and what they refuse."""

import pytest

from mechvis import cli
from mechvis.attribution import Attribution, attribute
from mechvis.cards import FaithfulnessCard


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("cards")
    words = ["--model", "scenes-vit", "--images", "scenes:6:3"]
    assert cli.main(["attribute", *words, "--method", "chefer", "--no-progress", "--out", str(place / "maps")]) == 0
    assert cli.main(["card", "make", str(place / "maps"), *words, "--out", str(place / "first")]) == 0
    assert cli.main(["card", "make", "rollout", *words, "--out", str(place / "second")]) == 0
    return place


def test_maps_are_those_of_the_function(folders):
    import mechvis

    found = Attribution.load(folders / "maps")
    images = mechvis.data.scenes(6, seed=3, correlation=0.5)
    expected = attribute(mechvis.load("scenes-vit"), images, "chefer", progress=False)
    assert (found.maps == expected.maps).all() and (folders / "maps" / "report.html").is_file()


def test_cards_are_left_checked_and_compared(folders, capsys):
    first, second = folders / "first", folders / "second"
    assert FaithfulnessCard.load(first).content["method"]["name"] == "chefer"
    assert "G4" in {gate.id for gate in FaithfulnessCard.load(second).failed}
    assert (first / "card.md").is_file() and (first / "card.html").is_file()
    assert cli.main(["card", "verify", str(first), "--model", "scenes-vit", "--images", "scenes:6:3"]) == 0
    assert "follow from what is stored" in capsys.readouterr().out
    assert cli.main(["card", "compare", str(first), str(second), "--out", str(folders / "both")]) == 0
    assert "chefer beside rollout" in capsys.readouterr().out and (folders / "both" / "report.html").is_file()


def test_mistakes_are_one_message(folders, tmp_path, capsys):
    words = ["--model", "scenes-vit", "--images", "scenes:6:3"]
    assert cli.main(["attribute", *words, "--method", "cheffer"]) == 1
    assert "chefer" in capsys.readouterr().err
    assert cli.main(["card", "make", str(tmp_path), *words]) == 1
    assert "holds no saved result" in capsys.readouterr().err
    assert cli.main(["card", "verify", str(folders / "first"), "--images", "scenes:6:4"]) == 1
    assert "void for these images" in capsys.readouterr().err
