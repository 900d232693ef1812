"""`mechvis harvest` and `mechvis store`: what they print, and with which exit code."""

import pytest

import mechvis
from mechvis import cli
from mechvis.testing import tiny, tiny_preprocess

SITE = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("command")
    tiny("vit").save_pretrained(folder / "model")
    tiny_preprocess().processor.save_pretrained(folder / "model")
    words = ["--model", str(folder / "model"), "--images", "scenes:12:3"]
    command = ["harvest", *words, "--sites", SITE, "blocks.*.attn.hook_z", "--out", str(folder / "acts")]
    assert cli.main([*command, "--tokens", "patches:2", "--dtype", "bfloat16", "--no-progress"]) == 0
    return words, folder / "acts"


def test_what_was_harvested(words, capsys):
    store = mechvis.store.open(words[1])
    assert list(store)[-2:] == [SITE, "blocks.2.attn.hook_z"] and store[SITE].shape == (24, 16)
    assert cli.main(["store", "show", str(words[1])]) == 0
    told = capsys.readouterr().out
    assert "12 images, tokens patches:2" in told and f"Activations('{SITE}', 24 rows of [d_model=16], bfloat16)" in told
    assert store.manifest.plan["model"] in told


def test_verify_and_repair(words, capsys):
    words, folder = words
    assert cli.main(["store", "verify", str(folder), "--no-progress"]) == 0
    assert "all as they were written" in capsys.readouterr().out
    path = mechvis.store.open(folder).paths()[0]
    good = path.read_bytes()
    path.write_bytes(good[:700] + bytes([good[700] ^ 4]) + good[701:])
    assert cli.main(["store", "verify", str(folder), "--no-progress"]) == 1
    told = capsys.readouterr().err
    assert f"{path}: damaged in 1 of 12 blocks" in told and "`mechvis store repair`" in told
    assert cli.main(["store", "repair", str(folder), *words, "--no-progress"]) == 0
    assert f"computed again: {path}\n1 file(s) repaired" in capsys.readouterr().out
    assert path.read_bytes() == good
    assert cli.main(["store", "repair", str(folder), *words, "--no-progress"]) == 0
    assert "nothing to repair" in capsys.readouterr().out


def test_errors_are_sentences(words, capsys, tmp_path):
    words, folder = words
    assert cli.main(["store", "show", str(tmp_path)]) == 1
    assert "holds no store of activations" in capsys.readouterr().err
    assert cli.main(["harvest", *words, "--sites", "blocks.9.hook_resid_post", "--out", str(tmp_path / "x")]) == 1
    assert "this model has layers 0 to 2" in capsys.readouterr().err
    assert cli.main(["harvest", *words, "--sites", SITE, "--out", str(folder), "--no-progress"]) == 1
    assert "holds another job; it differs in: " in capsys.readouterr().err


def test_of_a_clip_model_the_vision_tower(tmp_path, capsys):
    tiny("clip").save_pretrained(tmp_path / "clip")
    tiny_preprocess().processor.save_pretrained(tmp_path / "clip")
    words = ["--model", str(tmp_path / "clip"), "--images", "scenes:4", "--sites", "hook_embedding"]
    assert cli.main(["harvest", *words, "--out", str(tmp_path / "acts"), "--no-progress"]) == 0
    assert "4 rows of [d_embed=8], float32" in capsys.readouterr().out
