"""Checkpoints of a dictionary that is shared out: torch's distributed checkpoint, in safetensors files.

Every process writes its own latents (`torch.distributed.checkpoint` with its safetensors storage, so nothing in it can
run code), and any number of processes can read: torch puts together what each needs. The folder gets its name when all
of it is there, its checksums in the manifest.
"""

import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechvis import files
from mechvis.errors import StoreCorrupt
from sae.shards import Shards
from sae.training.checkpoint import MANIFEST
from sae.training.job import Learner

TENSORS = "tensors"


def write_parts(
    place: Path,
    learners: Mapping[str, Learner],
    shards: Shards,
    random: Mapping[str, bytes],
    manifest: Mapping[str, Any],
) -> None:
    """Write a checkpoint; every process of the shards calls it.

    Args:
        place: its folder.
        learners: what is trained; each process has its part.
        shards: the processes.
        random: file of random states, from the first process.
        manifest: what the first process says.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    beside = place.with_name(f"writing-{place.name}")
    if shards.rank == 0:
        shutil.rmtree(beside, ignore_errors=True)
        (beside / TENSORS).mkdir(parents=True)
    shards.ranks.sum(torch.zeros(1))  # nobody writes before the folder is there
    tensors = _named({name: learner.tensors() for name, learner in learners.items()}, learners, shards)
    writer = HuggingFaceStorageWriter(str(beside / TENSORS), save_distributed=True)
    dcp.save(tensors, storage_writer=writer, process_group=shards.ranks.group)
    if shards.rank == 0:
        parts = {path.name: files.file_checksum(path) for path in sorted((beside / TENSORS).iterdir())}
        files.write_together(beside, random, MANIFEST, {**manifest, "tensors": parts})
        shutil.rmtree(place, ignore_errors=True)
        beside.replace(place)
    shards.ranks.sum(torch.zeros(1))


def read_parts(
    place: Path, manifest: Mapping[str, Any], places: Mapping[str, Mapping[str, Tensor]], shards: Shards
) -> dict[str, dict[str, Tensor]]:
    """What a process needs of a checkpoint, whoever wrote it.

    Args:
        place: its folder.
        manifest: its manifest, verified.
        places: tensors by job of the shapes that are wanted; filled.
        shards: the processes now.

    Raises:
        StoreCorrupt: a file is missing or changed.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    if "tensors" not in manifest:  # written by one process: every one takes its rows
        return _cut(place, manifest, places, shards)
    for name, known in manifest["tensors"].items():
        path = place / TENSORS / name
        if not path.exists() or files.file_checksum(path) != known:
            raise StoreCorrupt(f"{path} is missing or damaged: its checksum does not fit.")
    empty = {job: {name: torch.empty_like(t) for name, t in tensors.items()} for job, tensors in places.items()}
    wanted = _named(empty, None, shards, latents=_latents(places))
    reader = HuggingFaceStorageReader(str(place / TENSORS))
    alone = shards.size == 1
    with warnings.catch_warnings():
        # One process reading what several wrote is meant, not a mistake that torch would have to point out.
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        dcp.load(wanted, storage_reader=reader, no_dist=alone, process_group=None if alone else shards.ranks.group)
    return empty


def _latents(places: Mapping[str, Mapping[str, Tensor]]) -> dict[str, int]:
    return {job: len(tensors["silent"]) for job, tensors in places.items()}


def _named(
    tensors: Mapping[str, Mapping[str, Tensor]],
    learners: Mapping[str, Learner] | None,
    shards: Shards,
    latents: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Tensors by `job/name`; those with a row per latent as parts of a whole."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Shard

    mesh = None
    if shards.size > 1:
        group = shards.ranks.group
        if group is None:
            mesh = DeviceMesh("cpu", list(range(shards.size)))
        else:
            mesh = DeviceMesh.from_group(group, "cpu")
    found = {}
    for job, some in tensors.items():
        rows = latents[job] if latents is not None else len(some["silent"])
        mine = None if learners is None else learners[job].mine()
        for name, tensor in some.items():
            own = tensor.ndim > 0 and len(tensor) == rows if mine is None else name in mine
            if own and mesh is not None:
                found[f"{job}/{name}"] = DTensor.from_local(tensor.detach(), mesh, [Shard(0)], run_check=False)
            else:
                found[f"{job}/{name}"] = tensor.detach()
    return found


def _cut(
    place: Path, manifest: Mapping[str, Any], places: Mapping[str, Mapping[str, Tensor]], shards: Shards
) -> dict[str, dict[str, Tensor]]:
    from safetensors.torch import load

    found = {}
    for job, tensors in places.items():
        whole = load(files.read_together(place, manifest, f"{files.safe_name(job)}.safetensors"))
        found[job] = {}
        for name, tensor in tensors.items():
            each = len(tensor) if tensor.ndim else 0
            cut = tensor.ndim > 0 and whole[name].shape != tensor.shape
            found[job][name] = whole[name][shards.rank * each : (shards.rank + 1) * each] if cut else whole[name]
    return found
