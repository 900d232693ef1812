"""The check of a manifest's format, and the bytes of tables."""

import io
from pathlib import Path

import polars as pl
import pytest

from mechvis import files
from mechvis.errors import ResultMismatch, StoreCorrupt

PLACE = Path("run") / "thing.json"


@pytest.fixture
def check():
    return files.only_format(PLACE, "mechvis.thing", 3, "a thing")


@pytest.mark.parametrize("version", [1, 2, 3])
def test_known_versions_pass(check, version):
    assert check({"format": "mechvis.thing", "version": version}) is None


@pytest.mark.parametrize("form", ["mechvis.result", "mechvis.Thing", "", None, 3, ["mechvis.thing"]])
def test_another_format(check, form):
    with pytest.raises(ResultMismatch) as error:
        check({"format": form, "version": 1})
    assert str(error.value) == f"run does not hold a thing: its format is {form!r}, not 'mechvis.thing'."


def test_no_format_at_all(check):
    with pytest.raises(ResultMismatch, match="its format is None"):
        check({"version": 1})


@pytest.mark.parametrize("version", [4, 99])
def test_a_later_version_says_to_upgrade(check, version):
    with pytest.raises(ResultMismatch) as error:
        check({"format": "mechvis.thing", "version": version})
    expected = f"run was written in format version {version}; this mechvis reads up to 3. Upgrade mechvis to read it."
    assert str(error.value) == expected


@pytest.mark.parametrize("version", [0, -1, True, False, None, "1", 1.0, [1]])
def test_a_version_that_is_none(check, version):
    with pytest.raises(StoreCorrupt, match=r"thing\.json has the format version .*, which is none"):
        check({"format": "mechvis.thing", "version": version})


def test_the_format_is_checked_before_the_checksum(tmp_path):
    """A later version may have other rules for checksums: to upgrade is the answer, not to restore the file."""
    files.write_json(tmp_path / "thing.json", {"format": "mechvis.thing", "version": 9, "files": {}, "checksum": "new"})
    check = files.only_format(tmp_path / "thing.json", "mechvis.thing", 1, "a thing")
    with pytest.raises(ResultMismatch, match="Upgrade mechvis"):
        files.read_manifest(tmp_path, "thing.json", check=check)
    files.write_json(tmp_path / "thing.json", {"format": "mechvis.thing", "version": 1, "files": {}, "checksum": "new"})
    with pytest.raises(StoreCorrupt, match="its checksum does not fit"):
        files.read_manifest(tmp_path, "thing.json", check=check)


TABLES = {
    "numbers": pl.DataFrame({"x": [1.0, None, float("nan")], "n": [1, 2, 3], "yes": [True, None, False]}),
    "text and lists": pl.DataFrame({"name": ["é", "", None], "top": [["a"], [], None]}),
    "no rows": pl.DataFrame({"x": pl.Series([], dtype=pl.Float64), "name": pl.Series([], dtype=pl.String)}),
}


@pytest.mark.parametrize("name", list(TABLES))
def test_a_table_comes_back_as_it_was(name):
    table = TABLES[name]
    data = files.parquet_bytes(table)
    assert isinstance(data, bytes) and data[:4] == data[-4:] == b"PAR1"
    again = pl.read_parquet(io.BytesIO(data))
    assert again.equals(table) and again.schema == table.schema
    assert files.parquet_bytes(table) == data, "equal tables give equal bytes"


def test_tables_are_written_together_with_their_manifest(tmp_path):
    table = TABLES["numbers"]
    files.write_together(tmp_path, {"t.parquet": files.parquet_bytes(table)}, "m.json", {"format": "f", "version": 1})
    manifest = files.read_manifest(tmp_path, "m.json", check=files.only_format(tmp_path / "m.json", "f", 1, "an f"))
    assert pl.read_parquet(io.BytesIO(files.read_together(tmp_path, manifest, "t.parquet"))).equals(table)
    (tmp_path / "t.parquet").write_bytes(files.parquet_bytes(table.head(1)))
    with pytest.raises(StoreCorrupt, match=r"t\.parquet is damaged"):
        files.read_together(tmp_path, manifest, "t.parquet")
