"""`mechvis sweep`: every option of the function can be typed, gives the function's numbers, and is refused where it
says nothing."""

import json

import numpy as np
import pytest
import torch

import mechvis
from mechvis import cli
from mechvis.patches import patch_maps

IMAGES = "scenes:12:3"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from mechvis.testing import tiny, tiny_preprocess

    folder = tmp_path_factory.mktemp("model")
    tiny("vit").save_pretrained(folder)
    tiny_preprocess().processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def sweep(folder, tmp_path, capsys):
    """Runs the command; gives what was saved and what was said."""

    def run(*words, images=IMAGES, code=0):
        out = tmp_path / "out"
        typed = ["sweep", "--model", folder, "--images", images, "--out", str(out), "--no-progress", *map(str, words)]
        assert cli.main(typed) == code, capsys.readouterr().err
        told = capsys.readouterr()
        return (mechvis.Result.load(out), told.out) if code == 0 else told.err

    return run


def same(folder, found, **settings):
    """The numbers of the function."""
    images = mechvis.data.scenes(12, seed=3, correlation=0.5)
    expected = mechvis.sweep(mechvis.load(folder), images, progress=False, **settings)
    assert found.table.equals(expected.table)
    assert all(np.array_equal(found.values[m], expected.values[m], equal_nan=True) for m in expected.values)


def test_targets(sweep, folder):
    found, said = sweep("--metric", "logit_diff", "prob", "--targets", "1", "LABEL_2:LABEL_0", "--layers", "1")
    same(folder, found, metric=["logit_diff", "prob"], targets=[1, (2, 0)], layers=[1])
    assert "effect on logit_diff[LABEL_1]" in said and "effect on prob[LABEL_2 vs LABEL_0]" in said
    err = sweep("--targets", "LABEL_1:LABLE_2", code=1)
    assert "LABLE_2" in err and "LABEL_2" in err, "the nearest name is told"
    assert "pass one of them" in sweep("--targets", "1", "--labels", "given", code=1)


@pytest.mark.parametrize("kind", ["grid", "object", "labels", "tokens"])
def test_groups_of_patches(sweep, folder, tmp_path, kind):
    labels = torch.randint(0, 3, (12, 3, 3), generator=torch.Generator().manual_seed(0)).numpy()
    tokens = {"row": [1, 2, 3], "CLS": [0]}
    np.save(tmp_path / "labels.npy", labels)
    (tmp_path / "tokens.json").write_text(json.dumps(tokens))
    word, groups = {
        "grid": ("1x3", (1, 3)),
        "object": ("object", "object"),
        "labels": (tmp_path / "labels.npy", labels),
        "tokens": (tmp_path / "tokens.json", tokens),
    }[kind]
    found, said = sweep("--units", "patches", "--groups", word)
    same(folder, found, units="patches", groups=groups)
    assert patch_maps(found).shape == (12, 3, 3, 3)
    assert "patch_maps" in said, "how to see the maps"


def test_heads_of_a_pooling(sweep):
    err = sweep("--units", "pool_heads", code=1)
    assert "has no attention pooling" in err


def test_screening(sweep, folder):
    found, said = sweep("--screen", "bf16", "--recheck", "3", "--screen-share", "0.5")
    assert "screened in bf16 on 6 of 12 images, 3 of 12 units measured again in float32" in said
    assert found.rows()["precision"].to_list().count("float32") == 3
    same(folder, found, screen="bf16", recheck=3, screen_share=0.5)


def test_recheck_is_a_number_or_a_share(sweep):
    _, said = sweep("--screen", "bf16", "--recheck", "0.5")
    assert "6 of 12 units measured again" in said


def test_certified_with_targets_and_groups(sweep):
    found, said = sweep(
        "--certified", "--top", 2, "--eps", 0.3, "--units", "patches", "--groups", "3x3", "--layers", "1",
        "--targets", "1", "--metric", "logit", images="scenes:90:3",
    )  # fmt: skip
    assert found.provenance["certificate"]["metric"] == "logit[LABEL_1]"
    assert "none of the 2 returned units lies more than 0.3 of it below" in said


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--units", "patches"], "--units patches needs --groups, e.g. --groups 4x4"),
        (["--groups", "4x4"], "with --units heads leave it out, or add --units patches"),
        (["--groups", "4", "--units", "patches"], "--groups 4: expected a grid of cells"),
        (["--groups", "9x9", "--units", "patches"], "a grid of 9 x 9 cells does not fit 3 x 3 patches"),
        (["--recheck", "3"], "--recheck says something about --screen"),
        (["--screen-share", "0.5", "--recheck", "0.1"], "--recheck, --screen-share say something about --screen"),
        (["--eps", "0.3", "--tails", "student"], "--eps, --tails say something about --certified"),
        (["--by", "size"], "--by says something about --certified"),
        (["--certified", "--control-images", "9"], "--control-images says something about --control"),
        (["--certified", "--screen", "bf16"], "Leave one of them out"),
    ],
)
def test_what_makes_no_sense_is_refused(sweep, words, text, tmp_path):
    assert text in sweep(*words, code=1)
    assert not (tmp_path / "out" / "pieces").exists()
