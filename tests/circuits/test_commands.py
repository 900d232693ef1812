"""`mechvis cigma` from words to files."""

import numpy as np
import torch

from mechvis import cli


def test_cigma_saves_study_report_and_pruned_model(tmp_path, capsys):
    out, pruned = tmp_path / "study", tmp_path / "pruned"
    words = ["cigma", "--model", "scenes-vit", "--images", "scenes:60", "--k", "2", "--no-sensitivity", "--no-progress"]
    words += ["--out", str(out), "--save-model", str(pruned)]
    assert cli.main(words) == 0
    text = capsys.readouterr().out
    assert text.startswith("CIGMA")
    assert str(out / "report.html") in text
    assert "<html" in (out / "report.html").read_text(encoding="utf-8")

    from circuits import load_study
    from mechvis.models import zoo

    study = load_study(out)
    assert len(study.chosen) == 2

    from transformers import ViTForImageClassification

    loaded, whole = (ViTForImageClassification.from_pretrained(folder) for folder in (pruned, zoo.path("scenes-vit")))
    for unit in study.chosen:
        layer, head = (int(number) for number in unit.removeprefix("L").split("H"))
        columns = slice(32 * head, 32 * (head + 1))
        weight = loaded.vit.layers[layer].attention.o_proj.weight
        assert not weight[:, columns].any()
        assert whole.vit.layers[layer].attention.o_proj.weight[:, columns].any()
    pixels = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32))
    with torch.no_grad():
        assert not torch.equal(loaded.eval()(pixels).logits, whole.eval()(pixels).logits)

    page = tmp_path / "again.html"
    assert cli.main(["report", str(out), "--out", str(page)]) == 0
    assert "CIGMA" in page.read_text(encoding="utf-8")


def test_selftest_finds_the_checks_of_this_package():
    from circuits.selftest import checks

    found = checks(0)
    assert len(found) >= 7
    assert all(check.ok for check in found), [check for check in found if not check.ok]


def test_what_says_something_about_another_flag_is_refused(capsys):
    words = ["cigma", "--model", "scenes-vit", "--images", "scenes:60"]
    assert cli.main([*words, "--top", "3"]) == 1
    assert "--top says something about --certified" in capsys.readouterr().err
    assert cli.main([*words, "--certified", "--top", "3", "--greedy"]) == 1
    assert "Leave one of them out" in capsys.readouterr().err
    assert cli.main([*words, "--launch", "local:2"]) == 1
    assert "give --out FOLDER" in capsys.readouterr().err
