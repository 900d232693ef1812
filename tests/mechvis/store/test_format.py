"""A store of format version 1, as it was written then (`v1/`): still read, and still written the same way."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import mechvis
from mechvis.errors import BadData, StoreCorrupt
from mechvis.store.shard import Writer

V1 = Path(__file__).with_name("v1")
SITE = "blocks.1.attn.hook_z"


@pytest.fixture(scope="module")
def store():
    return mechvis.store.open(V1)


def test_it_is_read(store):
    store.verify()
    assert list(store) == [SITE, "hook_pooled"] and store.n_images == 6 and store.fingerprint == "18cb12b6fc13ad82"
    rows = store[SITE]
    assert rows.shape == (18, 16) and rows.dtype == torch.bfloat16 and rows.site.kept == {"head": 4, "d_head": 4}
    assert rows[4].tolist()[:6] == [0.44140625, 0.3828125, -0.5546875, 0.1728515625, -1.203125, 0.09423828125]
    assert rows.where(slice(0, 6))[1].tolist() == [0, 5, 7, 0, 1, 6], "drawn tokens"
    assert store["hook_pooled"].shape == (6, 16) and store.images["id"].to_list()[5] == "image 5"
    assert store.types(np.array([0, 3])).tolist() == ["cls", "patch"]


def test_the_order_of_batches_stays(store):
    """A position in a checkpoint of that time means the same rows."""
    batches = list(store.batches(SITE, size=9, seed=1))
    assert [batch.image.tolist() for batch in batches] == [[0, 4, 5, 4, 1, 4, 2, 3, 0], [3, 3, 1, 5, 5, 2, 0, 1, 2]]
    assert store.batches(SITE, size=9, seed=1).state_dict() == {
        "version": 1, "store": "18cb12b6fc13ad82", "sites": [SITE], "images": [0, 6], "size": 9, "seed": 1,
        "pool_images": 2666666, "drop_last": False, "epoch": 0, "row": 0,
    }  # fmt: skip


def test_the_same_rows_are_written_as_the_same_bytes(store):
    for shard in store._disk.shards():
        file = io.BytesIO()
        writer = Writer(shard, file)
        writer.write(store[shard.site.name].of_images(list(shard.images)).flatten(0, 1))
        writer.close()
        assert file.getvalue() == shard.path.read_bytes(), "the format changed: give it a new version"


def test_the_same_manifest_is_written(store, tmp_path):
    shutil.copytree(V1, tmp_path / "acts")
    store.manifest.save(tmp_path / "acts", store.images)
    old, new = (json.loads((folder / "store.json").read_text()) for folder in (V1, tmp_path / "acts"))
    for text in (old, new):
        text.pop("checksum"), text.pop("files")  # how the table of images is compressed is polars' business
    assert new == old


def test_what_a_newer_version_says(tmp_path):
    shutil.copytree(V1, tmp_path / "acts")
    file = tmp_path / "acts" / "store.json"
    file.write_text(file.read_text().replace('"version": 1', '"version": 7'))
    with pytest.raises(BadData, match=r"has version 7; this mechvis reads version 1\. Upgrade"):
        mechvis.store.open(tmp_path / "acts")
    known = json.loads((V1 / "store.json").read_text())
    del known["sites"]
    known.pop("checksum")
    from mechvis import files

    known["checksum"] = files.checksum(files.canonical_json(known).encode())
    file.write_text(json.dumps(known))
    with pytest.raises(StoreCorrupt, match=r"store\.json lacks something that a store has: KeyError\('sites'\)"):
        mechvis.store.open(tmp_path / "acts")
