"""Atomic files: old or new, never half; names that stay inside; JSON that is strict both ways."""

import contextlib
import hashlib
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechvis import files
from mechvis.errors import NotFinite, OutputNotWritable, ShapeMismatch, StoreCorrupt

NASTY = [
    "..",
    ".",
    "",
    "/etc/passwd",
    "..\\..\\x",
    "C:\\x",
    "a/b",
    "a\0b",
    "CON",
    "con",
    "nul.txt",
    "x" * 300,
    "Ａ",
    "é",
    "A",
    "a ",
    "a.",
    "-rf",
    "~root",
    "$HOME",
    "a\nb",
    "\ud800",
    "com1",
    "L3H1",
    "L3h1",
    "l3H1",
    "x.new",
    ".hidden",
    "a:b",
    "a*b?",
    "%2e%2e%2f",
    "…/…",
    "а",
]


def listing(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def fail_at(monkeypatch: pytest.MonkeyPatch, name: str, number: int, owner=os) -> None:
    """Make the `number`-th call (from 0) of a system function fail as a full disk does."""
    real, seen = getattr(owner, name), [0]

    def call(*args, **kwargs):
        seen[0] += 1
        if seen[0] == number + 1:
            raise OSError(28, "No space left on device")
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)


def test_write_replaces_and_returns_the_checksum(tmp_path):
    assert files.write_bytes(tmp_path / "a", b"old") == hashlib.sha256(b"old").hexdigest()
    assert files.write_text(tmp_path / "a", "néw") == hashlib.sha256("néw".encode()).hexdigest()
    assert (tmp_path / "a").read_text(encoding="utf-8") == "néw"
    assert files.file_checksum(tmp_path / "a") == files.checksum("néw".encode())
    assert listing(tmp_path) == ["a"]


def test_new_files_have_the_permissions_of_any_other_file(tmp_path):
    files.write_bytes(tmp_path / "a", b"")
    (tmp_path / "b").write_bytes(b"")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.parametrize(("name", "owner"), [("open", os), ("fsync", os), ("replace", Path)])
def test_a_full_disk_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, name, owner):
    files.write_bytes(tmp_path / "a", b"old")
    fail_at(monkeypatch, name, 0, owner)
    with pytest.raises(OutputNotWritable, match=r"cannot write .*a: No space left on device\. Choose another place"):
        files.write_bytes(tmp_path / "a", b"new")
    monkeypatch.undo()
    assert (tmp_path / "a").read_bytes() == b"old"
    assert listing(tmp_path) == ["a"]


def test_an_error_in_the_block_leaves_the_old_file_and_keeps_its_own_kind(tmp_path):
    files.write_bytes(tmp_path / "a", b"old")
    with pytest.raises(KeyboardInterrupt), files.replacing(tmp_path / "a") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    with pytest.raises(FileNotFoundError, match=r"missing\.png"), files.replacing(tmp_path / "a"):
        (tmp_path / "missing.png").read_bytes()
    assert (tmp_path / "a").read_bytes() == b"old"
    assert listing(tmp_path) == ["a"]


def test_a_link_is_replaced_not_followed(tmp_path):
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / "a").symlink_to(tmp_path / "victim")
    files.write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "victim").read_bytes() == b"precious"
    assert not (tmp_path / "a").is_symlink()


def test_ensure_writable_makes_the_folder_and_leaves_it_empty(tmp_path):
    assert files.ensure_writable(tmp_path / "x" / "y") == tmp_path / "x" / "y"
    assert listing(tmp_path / "x" / "y") == []


def test_ensure_writable_names_the_folder(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputNotWritable, match=rf"cannot write into {re.escape(str(place))}: "):
            files.ensure_writable(place)
    fail_at(monkeypatch, "write", 0)
    with pytest.raises(OutputNotWritable, match="No space left"):
        files.ensure_writable(tmp_path / "full")
    monkeypatch.undo()
    assert listing(tmp_path / "full") == []


def test_writing_over_a_folder_or_into_a_missing_one_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(OutputNotWritable, match="there is a folder of this name"):
        files.write_bytes(tmp_path / "a", b"")
    with pytest.raises(OutputNotWritable, match="No such file or directory"):
        files.write_bytes(tmp_path / "nowhere" / "a", b"")


def test_canonical_json_is_one_text():
    value = {"b": [1, np.int64(2), (3.5,)], "a": {"é": np.float32(0.25), "n": None, "t": np.True_}, "p": Path("x")}
    assert files.canonical_json(value) == '{"a":{"n":null,"t":true,"\\u00e9":0.25},"b":[1,2,[3.5]],"p":"x"}'
    assert files.canonical_json({"a": 1, "b": 2}) == files.canonical_json({"b": 2, "a": 1})


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ({"a": [1.0, float("nan")]}, NotFinite, r"value\['a'\]\[1\] is nan"),
        (np.array([np.inf]), NotFinite, r"value\[0\] is inf"),
        ({1: 2}, ShapeMismatch, "key 1 of type int"),
        ({"a": {1, 2}}, ShapeMismatch, r"value\['a'\] is a set"),
        (b"bytes", ShapeMismatch, "value is a bytes"),
    ],
)
def test_canonical_json_refuses(value, error, message):
    with pytest.raises(error, match=message):
        files.canonical_json(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a": 1, "a": 2}', "same key twice"),
        (b"[NaN]", "NaN is not JSON"),
        (b'{"a"', "cannot be read as JSON"),
        (b"\xff\xfe", "cannot be read as JSON"),
        (b"", "cannot be read as JSON"),
        (b"[" * 100_000, "cannot be read as JSON"),
    ],
)
def test_read_json_refuses_and_names_the_file(tmp_path, text, message):
    (tmp_path / "m.json").write_bytes(text)
    with pytest.raises(StoreCorrupt, match=rf"m\.json.*{message}"):
        files.read_json(tmp_path / "m.json")


def test_read_json_refuses_what_is_too_large_or_missing(tmp_path, monkeypatch):
    files.write_json(tmp_path / "m.json", {"a": [1, 2]})
    assert files.read_json(tmp_path / "m.json") == {"a": [1, 2]}
    monkeypatch.setattr(files, "JSON_LIMIT", 3)
    with pytest.raises(StoreCorrupt, match=r"m\.json has \d+ bytes"):
        files.read_json(tmp_path / "m.json")
    with pytest.raises(StoreCorrupt, match="does not exist"):
        files.read_json(tmp_path / "none.json")


@pytest.mark.parametrize("name", NASTY)
def test_safe_names_stay_in_their_folder(tmp_path, name):
    safe = files.safe_name(name)
    assert re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", safe)
    assert (tmp_path / safe).resolve().parent == tmp_path.resolve()
    assert safe.split(".")[0] not in files._RESERVED
    files.write_bytes(tmp_path / safe, b"x")


def test_safe_names_never_collide():
    # The safe form of another name, given as a name itself, must not land on that other name's file.
    names = [*NASTY, *(files.safe_name(name) for name in NASTY), "plain", "scenes-vit"]
    assert len({files.safe_name(name).lower() for name in set(names)}) == len(set(names))
    assert files.safe_name("scenes-vit") == "scenes-vit"


@given(st.lists(st.text(max_size=80), unique=True, max_size=20))
def test_safe_names_never_collide_property(names):
    assert len({files.safe_name(name) for name in names}) == len(names)


def write(folder: Path, version: int, **data: bytes) -> None:
    files.write_together(folder, {f"{name}.bin": content for name, content in data.items()}, "m.json", {"v": version})


def read(folder: Path) -> tuple[int, dict[str, bytes]]:
    manifest = files.read_manifest(folder, "m.json")
    return manifest["v"], {name: files.read_together(folder, manifest, name) for name in manifest["files"]}


OLD, NEW = (1, {"a.bin": b"one", "b.bin": b"uno"}), (2, {"a.bin": b"two", "b.bin": b"dos"})


@pytest.mark.parametrize(("name", "owner", "calls"), [("open", os, 12), ("fsync", os, 10), ("replace", Path, 6)])
def test_files_that_belong_together_are_all_old_or_all_new(tmp_path, monkeypatch, name, owner, calls):
    outcomes = set()
    for number in range(calls):
        folder = tmp_path / f"{name}{number}"
        write(folder, 1, a=b"one", b=b"uno")
        assert read(folder) == OLD
        fail_at(monkeypatch, name, number, owner)
        with contextlib.suppress(OutputNotWritable):
            write(folder, 2, a=b"two", b=b"dos")
        monkeypatch.undo()
        found = read(folder)
        assert found in (OLD, NEW)
        outcomes.add(found[0])
        # Whatever the crash left behind, the next writer starts from it and ends with a clean folder.
        write(folder, 3, a=b"three", b=b"tres")
        assert read(folder) == (3, {"a.bin": b"three", "b.bin": b"tres"})
        assert listing(folder) == ["a.bin", "b.bin", "m.json"]
    assert outcomes == {1, 2}


def test_an_interrupted_set_survives_a_second_interruption(tmp_path, monkeypatch):
    write(tmp_path, 1, a=b"one", b=b"uno")
    # Replacements: a.new, b.new, manifest, a, b. The fourth fails, so the new set is true but not yet in place.
    fail_at(monkeypatch, "replace", 3, Path)
    with pytest.raises(OutputNotWritable):
        write(tmp_path, 2, a=b"two", b=b"dos")
    monkeypatch.undo()
    assert "a.bin.new" in listing(tmp_path) and read(tmp_path) == NEW
    fail_at(monkeypatch, "replace", 2, Path)
    with pytest.raises(OutputNotWritable):
        write(tmp_path, 3, a=b"three", b=b"tres")
    monkeypatch.undo()
    assert read(tmp_path) == NEW


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: (f / "a.bin").write_bytes(b"onf"), r"a\.bin is damaged: its checksum"),
        (lambda f: (f / "a.bin").write_bytes(b"on"), r"a\.bin is damaged: 2 bytes where 3 were written"),
        (lambda f: (f / "a.bin").unlink(), r"a\.bin is missing"),
        (
            lambda f: (f / "m.json").write_text((f / "m.json").read_text().replace('"v": 1', '"v": 2')),
            r"m\.json was changed",
        ),
        (lambda f: (f / "m.json").write_text("[]"), r"m\.json holds a list"),
        (lambda f: (f / "m.json").write_text("{}"), r"m\.json does not list"),
        (lambda f: (f / "m.json").write_text('{"files": {"a": 3}}'), r"m\.json does not list"),
    ],
)
def test_damage_is_found_and_named(tmp_path, harm, message):
    write(tmp_path, 1, a=b"one")
    harm(tmp_path)
    with pytest.raises(StoreCorrupt, match=message):
        read(tmp_path)


def test_every_bit_of_the_manifest_counts(tmp_path):
    write(tmp_path, 1, a=b"one")
    text = bytearray((tmp_path / "m.json").read_bytes())
    for place in range(len(text)):
        changed = bytes(text[:place] + bytes([text[place] ^ 1]) + text[place + 1 :])
        (tmp_path / "m.json").write_bytes(changed)
        try:
            found = read(tmp_path)
        except StoreCorrupt:
            continue
        # White space between the fields may change; what is read may not.
        assert found == (1, {"a.bin": b"one"})
