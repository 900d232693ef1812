"""`golden/subspace-v1` was written by the first version of the format: today's reader finds what it held."""

import json
import math
from pathlib import Path

import polars as pl
import pytest
import torch

from circuits.subspace import SubspaceStudy, load_subspace_study
from circuits.subspace.place import Place
from mechvis.errors import ResultMismatch

V1 = Path(__file__).parent / "golden" / "subspace-v1"
HALF = math.sqrt(0.5)


def measured(method, k, seed, split, iia):
    chances = {"must_change": iia, "n_must_change": 30, "neither": None, "n_neither": 0, "chance": 0.5}
    counts = {"low": iia - 0.1, "high": min(1.0, iia + 0.1), "n": 60, "destroyed": 2 * iia, "recovered": iia}
    return {"method": method, "k": k, "seed": seed, "split": split, "iia": iia, **counts, **chances}


def golden():
    """What the folder was written from."""
    return SubspaceStudy(
        variable="colour",
        hook="blocks.1.hook_resid_post, token 0",
        place=Place(site="blocks.1.hook_resid_post", tokens=(0,)),
        width=4,
        k=1,
        seed=1,
        subspaces={
            "k=1/seed=0": torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64),
            "k=1/seed=1": torch.tensor([[HALF, -HALF, 0.0, 0.0]], dtype=torch.float64),
        },
        curve=pl.DataFrame(
            [
                measured("DAS", 1, 0, "test", 0.75),
                measured("DAS", 1, 1, "test", 0.875),
                measured("no edit", 0, 0, "test", 0.5),
                measured("full swap", 4, 0, "test", 0.625),
            ]
        ),
        diagnosis=pl.DataFrame(
            {
                "number": ["row share", "stability over seeds"],
                "value": [0.25, 0.5],
                "alarm_when": ["< 0.5", "< 0.5"],
                "alarm": [True, None],
                "note": ["share inside what is read", "mean of 1 pair"],
            }
        ),
        images={"train": 40, "validation": 10, "test": 20, "dropped": 2},
        settings={"ks": [1], "seeds": 2},
        provenance={"model": {"name": "golden"}, "seeds": {"seed": 0}},
    )


def test_version_1_is_read_as_it_was_written():
    found, made = load_subspace_study(V1), golden()
    assert (found.variable, found.hook, found.width, found.k, found.seed) == (
        "colour", "blocks.1.hook_resid_post, token 0", 4, 1, 1,
    )  # fmt: skip
    assert found.place == made.place and found.place.tokens == (0,)
    assert found.iia == 0.875 and found.alarms == ("row share",) and found.verdict == "not flagged"
    assert found.curve.equals(made.curve) and found.diagnosis.equals(made.diagnosis)
    assert list(found.subspaces) == list(made.subspaces) and found.rows.dtype == torch.float64
    assert all(torch.equal(found.subspaces[name], made.subspaces[name]) for name in made.subspaces)
    assert (found.images, found.settings, found.provenance) == (made.images, made.settings, made.provenance)
    assert repr(found) == repr(made) and "k = 1" in repr(found)


def test_version_1_is_written_as_then(tmp_path):
    new = golden().save(tmp_path)
    assert {path.name for path in new.iterdir()} == {path.name for path in V1.iterdir()}
    assert (
        json.loads((new / "subspace.json").read_text()).keys() == json.loads((V1 / "subspace.json").read_text()).keys()
    )


def test_a_later_version_is_refused(tmp_path):
    manifest = json.loads((V1 / "subspace.json").read_text())
    (tmp_path / "subspace.json").write_text(json.dumps({**manifest, "version": 2}))
    with pytest.raises(ResultMismatch, match=r"was written in format version 2; this mechvis reads up to 1"):
        load_subspace_study(tmp_path)
