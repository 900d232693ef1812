"""What words on the command line mean: groups of patches, targets, and settings that belong to others."""

import json

import numpy as np
import pytest

from mechvis.commands import only_with, read_groups, read_targets
from mechvis.errors import BadData


def test_groups(tmp_path):
    assert read_groups("4x4") == (4, 4) and read_groups("12x1") == (12, 1)
    assert read_groups("object") == "object"
    labels = np.arange(18).reshape(2, 3, 3)
    np.save(tmp_path / "labels.npy", labels)
    assert np.array_equal(read_groups(str(tmp_path / "labels.npy")), labels)
    named = {"left": [1, 4, 7], "CLS": [0]}
    (tmp_path / "tokens.json").write_text(json.dumps(named))
    assert read_groups(str(tmp_path / "tokens.json")) == named


@pytest.mark.parametrize("word", ["4", "4x", "x4", "4x4x4", "-1x2", "objects", "labels.png", ""])
def test_what_is_no_group_names_what_is(word):
    with pytest.raises(BadData, match=r"expected a grid of cells .* such as 4x4; object, .*\.npy.*\.json"):
        read_groups(word)


def test_files_of_groups_that_cannot_be_read(tmp_path):
    with pytest.raises(BadData, match="there is no such file"):
        read_groups(str(tmp_path / "none.npy"))
    (tmp_path / "short.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "broken.json").write_text("{")
    np.save(tmp_path / "objects.npy", np.array([{"runs": "code"}], dtype=object), allow_pickle=True)
    for name in ("short.npy", "empty.npy", "broken.json", "objects.npy"):
        with pytest.raises(BadData, match=f"{name} cannot be read"):
            read_groups(str(tmp_path / name))


NAMES = ("circle", "star", "7", "a:b", "a", "b", "c:d", "c", "d:e")


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("star", "star"),
        ("3", 3),
        ("7", "7"),
        ("star:circle", ("star", "circle")),
        ("star:3", ("star", 3)),
        ("a:b", "a:b"),
        ("a:b:a", ("a:b", "a")),
        ("moon", "moon"),
        ("star:moon", ("star", "moon")),
    ],
)
def test_targets(word, meant):
    assert read_targets([word], NAMES) == [meant]


def test_targets_of_several_meanings_and_none():
    assert read_targets(None) is None
    with pytest.raises(BadData, match=r"'c:d:e' can be read as \('c', 'd:e'\) or \('c:d', 'e'\); give numbers"):
        read_targets(["c:d:e"], (*NAMES, "e"))


def test_settings_of_a_flag_that_is_not_there():
    def command(*, certified: bool = False, eps: float = 0.1, by: str = "effect"):
        pass

    only_with("certified", True, {"eps": 0.2}, of=command)
    only_with("certified", False, {"eps": 0.1, "by": "effect"}, of=command)
    with pytest.raises(BadData, match=r"^--eps says something about --certified, .* Add it, or leave it out\.$"):
        only_with("certified", False, {"eps": 0.2, "by": "effect"}, of=command)
    with pytest.raises(BadData, match=r"^--eps, --by say something .* leave them out\.$"):
        only_with("certified", False, {"eps": 0.2, "by": "size"}, of=command)
