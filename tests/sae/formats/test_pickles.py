"""Pickles that want to run something: all refused, nothing run. Pickles of state dicts: read as torch reads them."""

import io
import os
import pickle
import random
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path, PurePosixPath

import pytest
import torch
from torch import nn

from mechvis.errors import BadData, MechvisError, StoreCorrupt
from sae.formats import load_pt
from sae.formats.machine import Inert
from sae.formats.pickles import tensors_in


def saved(value) -> bytes:
    data = io.BytesIO()
    torch.save(value, data)
    return data.getvalue()


def archive(program: bytes, *, compression: int = zipfile.ZIP_STORED, storages: dict | None = None) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", compression) as found:
        found.writestr("a/data.pkl", program)
        for key, value in (storages or {}).items():
            found.writestr(f"a/data/{key}", value)
    return data.getvalue()


class Runs:
    """Writes a file when Python's own module loads it."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


HOSTILE = {
    "os.system": lambda place: Runs(os.system, f"touch {place}"),
    "builtins.eval": lambda place: Runs(eval, f"open({str(place)!r}, 'w').close()"),
    "builtins.exec": lambda place: Runs(exec, f"open({str(place)!r}, 'w').close()"),
    "builtins.getattr": lambda place: Runs(getattr, "x", "upper"),
    "torch.load": lambda place: Runs(torch.load, str(place)),
    "pathlib's method": lambda place: Runs(Path.touch, place),
    "in a list": lambda place: [1, {"a": Runs(os.system, f"touch {place}")}],
    "an argument": lambda place: Runs(OrderedDict, [("a", Runs(os.system, f"touch {place}"))]),
    "beside tensors": lambda place: {"W": torch.zeros(2), "cfg": Runs(os.system, f"touch {place}")},
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_hostile_pickle_is_refused_and_runs_nothing(name, protocol, tmp_path):
    place = tmp_path / "ran"
    value = HOSTILE[name](place)
    data = io.BytesIO()
    torch.save(value, data, pickle_protocol=max(2, protocol))
    bad = data.getvalue() if name == "beside tensors" else archive(pickle.dumps(value, protocol=protocol))
    with pytest.raises(BadData, match="It is not read"):
        load_pt(bad)
    assert not place.exists()


def test_the_hostile_pickles_of_these_tests_would_run(tmp_path):
    """The control: Python's own module runs them."""
    place = tmp_path / "ran"
    pickle.loads(pickle.dumps(HOSTILE["os.system"](place)))
    assert place.exists()


def test_what_to_do_is_said(tmp_path):
    with pytest.raises(BadData, match=r"posix.system.*safetensors.torch.save_file"):
        load_pt(archive(pickle.dumps(Runs(os.system, "true"))))


def test_written_instructions_are_refused_too(tmp_path):
    """Instructions that no `dumps` makes: INST, OBJ, a call of a call, attributes of a name, extensions."""
    place = tmp_path / "ran"
    for program in (
        b"(S'touch %s'\nios\nsystem\n." % str(place).encode(),
        b"(cos\nsystem\nS'true'\no.",
        b"ccollections\nOrderedDict\n(tR(S'a'\ntR.",
        b"ccollections\nOrderedDict\n}S'a'\nS'b'\nsb.",
        b"cvit_prisma.x\nA\n)R(tR.",
        b"\x80\x02\x82\x01.",
        b"Pos.system\n.",
        b"ctorch.nn.modules.linear\nLinear.__init__\n)R)R.",
    ):
        with pytest.raises(MechvisError):
            load_pt(archive(program))
    assert not place.exists()


def test_names_of_our_libraries_are_never_imported(monkeypatch):
    """A package called vit_prisma that is installed, and would do harm when it is imported, is not imported."""
    monkeypatch.setitem(sys.modules, "vit_prisma", None)
    found = load_pt(archive(b"cvit_prisma.sae.config\nVisionModelSAERunnerConfig\n)R}S'k'\nK\x05sb."))
    assert isinstance(found, Inert) and found.state == {"k": 5}
    assert found.name == "vit_prisma.sae.config.VisionModelSAERunnerConfig"


def test_state_dicts_come_out_as_torch_reads_them():
    g = torch.Generator().manual_seed(0)
    base = torch.randn(6, 4, generator=g)
    value = {
        "float": base,
        "view": base[1:5:2, 1:].T,
        "half": base.half(),
        "brain": base.bfloat16(),
        "double": base.double(),
        "whole": torch.arange(5),
        "small": torch.tensor([1, -2], dtype=torch.int8),
        "flags": torch.tensor([True, False]),
        "one": torch.tensor(3.5),
        "none": torch.empty(0, 3),
        "parameter": nn.Parameter(base.clone()),
        "text": "x",
        "deep": OrderedDict(a=(1, 2.5, None, b"y", [True])),
    }
    found, want = load_pt(saved(value)), torch.load(io.BytesIO(saved(value)), weights_only=True)
    assert set(found) == set(want)
    for name, tensor in want.items():
        if isinstance(tensor, torch.Tensor):
            assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor.detach()), name
        else:
            assert found[name] == tensor


def test_two_views_of_one_storage_come_out_as_two_tensors():
    """Defect of saev: loading one wrote over the other."""
    base = torch.arange(6.0).reshape(2, 3)
    found = load_pt(saved({"W_dec": base, "W_enc": base.T}))
    found["W_dec"].zero_()
    assert torch.equal(found["W_enc"], torch.arange(6.0).reshape(2, 3).T)


def test_modules_give_their_tensors_by_name():
    found = load_pt(saved(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))))
    assert isinstance(found, Inert)
    assert {"0.weight", "0.bias", "1.running_mean"} <= set(tensors_in(found))


def test_configurations_are_inert(monkeypatch):
    module = types.ModuleType("vit_prisma.sae.config")

    class VisionModelSAERunnerConfig:
        pass

    VisionModelSAERunnerConfig.__module__ = "vit_prisma.sae.config"
    VisionModelSAERunnerConfig.__qualname__ = "VisionModelSAERunnerConfig"
    module.VisionModelSAERunnerConfig = VisionModelSAERunnerConfig
    for name in ("vit_prisma", "vit_prisma.sae"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "vit_prisma.sae.config", module)
    cfg = VisionModelSAERunnerConfig()
    cfg.__dict__ |= {"d_in": 8, "dtype": torch.float32, "device": torch.device("cpu"), "place": PurePosixPath("a/b")}
    found = load_pt(saved({"cfg": cfg, "state_dict": {"W": torch.ones(2)}}))
    assert found["cfg"].state["d_in"] == 8 and found["cfg"].state["place"] == "a/b"
    assert torch.equal(tensors_in(found)["W"], torch.ones(2))


def test_tensors_beyond_their_storage_are_refused():
    good = saved({"W": torch.arange(4.0)})
    with zipfile.ZipFile(io.BytesIO(good)) as found:
        root = next(name for name in found.namelist() if name.endswith("data.pkl"))[: -len("data.pkl")]
        program = found.read(root + "data.pkl")
    assert b"K\x04\x85" in program  # the size (4,)
    for size in (b"K\x05\x85", b"K\xff\x85"):
        with pytest.raises(StoreCorrupt, match="reaches beyond its storage"):
            load_pt(archive(program.replace(b"K\x04\x85", size), storages={"0": struct.pack("<4f", *range(4))}))
    with pytest.raises(StoreCorrupt, match="no whole numbers"):
        load_pt(archive(program, storages={"0": b"123"}))


def test_what_is_no_pt_file_is_said(tmp_path):
    (tmp_path / "old.pt").write_bytes(pickle.dumps({"a": 1}, protocol=2))
    with pytest.raises(StoreCorrupt, match=r"torch 1.6 or later.*safetensors"):
        load_pt(tmp_path / "old.pt")
    with pytest.raises(StoreCorrupt, match="cannot be read"):
        load_pt(tmp_path / "missing.pt")
    with pytest.raises(BadData, match="compressed"):
        load_pt(archive(b"}.", compression=zipfile.ZIP_DEFLATED))
    with pytest.raises(StoreCorrupt, match=r"without a data.pkl"):
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w") as found:
            found.writestr("x", b"y")
        load_pt(data.getvalue())
    with pytest.raises(BadData, match="no state dict"):
        tensors_in({"a": 1})


def test_damage_gives_our_errors_and_no_others():
    """A few hundred files with bytes changed, cut or moved."""
    rng = random.Random(0)
    good = saved({"W": torch.arange(12.0).reshape(3, 4), "k": 3, "cfg": {"a": [1, 2]}})
    for _ in range(400):
        bad = bytearray(good)
        for _ in range(rng.randint(1, 6)):
            bad[rng.randrange(len(bad))] = rng.randrange(256)
        if rng.random() < 0.2:
            bad = bad[: rng.randrange(len(bad))]
        with suppress(MechvisError):
            load_pt(bytes(bad))
    with zipfile.ZipFile(io.BytesIO(good)) as found:
        program = found.read(next(name for name in found.namelist() if name.endswith("data.pkl")))
    for _ in range(600):
        bad = bytearray(program)
        for _ in range(rng.randint(1, 4)):
            bad[rng.randrange(len(bad))] = rng.randrange(256)
        with suppress(MechvisError):
            load_pt(archive(bytes(bad), storages={"0": struct.pack("<12f", *range(12))}))


def test_a_small_file_cannot_ask_for_much_memory():
    """A stride of zero would make a terabyte of four bytes; a table as a key would take for ever to hash."""
    good = saved({"W": torch.arange(4.0)})
    with zipfile.ZipFile(io.BytesIO(good)) as found:
        program = found.read(next(name for name in found.namelist() if name.endswith("data.pkl")))
    assert b"K\x01\x85" in program  # the stride (1,)
    huge = program.replace(b"K\x04\x85", b"J\xff\xff\xff\x7f\x85").replace(b"K\x01\x85", b"K\x00\x85")
    with pytest.raises(StoreCorrupt, match="beyond its storage"):
        load_pt(archive(huge, storages={"0": struct.pack("<4f", *range(4))}))
    with pytest.raises(BadData, match="as key"):
        load_pt(archive(b"}(K\x01K\x02\x86K\x03u."))
