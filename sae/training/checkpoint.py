"""Checkpoints: everything that a run needs to go on bit by bit, written so that a kill at any moment leaves a good one.

One folder per checkpoint, its manifest last (`mechvis.files.write_together`). The newest that verifies is taken; older
ones are removed when a new one is whole. Random numbers of torch and numpy are kept for iterators that use them; the
training itself has none after its start.
"""

import json
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mechvis import files
from mechvis.errors import MechvisWarning, StoreCorrupt
from sae.shards import WHOLE, Shards

if TYPE_CHECKING:
    from sae.training.job import Learner

FORMAT = "mechvis.dictionary_checkpoint"
FORMAT_VERSION = 1
MANIFEST = "checkpoint.json"


class DamagedCheckpoint(MechvisWarning):
    """A checkpoint cannot be read; an older one is used."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A place in a run."""

    step: int
    """Steps that are done."""
    tensors: dict[str, dict[str, Tensor]]
    """By job."""
    numbers: dict[str, Any]
    """By job."""
    source: dict[str, Any]
    """Where the data are."""
    log_lines: int
    """Lines that the log has."""


def write(
    folder: Path, step: int, learners: "Mapping[str, Learner]", source: Mapping[str, Any], log_lines: int, keep: int
) -> Path:
    """Write a checkpoint, then remove those that are too old. With a shared-out dictionary all processes call it.

    Args:
        folder: of checkpoints.
        step: steps that are done.
        learners: what is trained.
        source: where the data are.
        log_lines: lines that the log has.
        keep: checkpoints that are kept.

    Raises:
        OutputNotWritable: says what and why.
    """
    from safetensors.torch import save

    shards = next(iter(learners.values())).dictionary.shards
    manifest = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "step": step,
        "jobs": list(learners),
        "numbers": {name: learner.numbers() for name, learner in learners.items()},
        "source": dict(source),
        "log_lines": log_lines,
        "parts": shards.size,
    }
    manifest = files.plain_json(manifest, "checkpoint")
    place = folder / f"step-{step:09d}"
    random = {"random.safetensors": save(_random_state())}
    if shards.size > 1:
        from sae.parallel.checkpoint import write_parts

        write_parts(place, learners, shards, random, manifest)
    else:
        content = {
            f"{files.safe_name(name)}.safetensors": save(
                {n: t.detach().cpu().contiguous().clone() for n, t in learner.tensors().items()}
            )
            for name, learner in learners.items()
        }
        files.write_together(place, {**content, **random}, MANIFEST, manifest)
    if shards.rank == 0:
        for old in sorted(folder.glob("step-*"))[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    return place


def newest(folder: Path, places: Mapping[str, Mapping[str, Tensor]], shards: Shards = WHOLE) -> Checkpoint | None:
    """The newest checkpoint that can be read, or None; a damaged one is named in a warning and passed over.

    Args:
        folder: of checkpoints.
        places: tensors by job that have the right shapes; those of a shared-out dictionary are filled.
        shards: how the dictionary is shared out now; it may have been otherwise when it was written.

    Raises:
        StoreCorrupt: there are checkpoints, and none of them can be read.
    """
    found = sorted(folder.glob("step-*"), reverse=True) if folder.is_dir() else []
    problems = []
    for place in found:
        if not (place / MANIFEST).exists():
            continue  # a writer died in it: it was never whole
        try:
            checkpoint = read(place, places, shards)
        except StoreCorrupt as error:
            problems.append(str(error))
            continue
        if problems:
            warnings.warn(f"{problems[0]} The checkpoint before it is used.", DamagedCheckpoint, stacklevel=2)
        return checkpoint
    if problems:
        raise StoreCorrupt(f"no checkpoint in {folder} can be read: {problems[0]}")
    return None


def read(place: Path, places: Mapping[str, Mapping[str, Tensor]], shards: Shards = WHOLE) -> Checkpoint:
    """One checkpoint, verified; random states are put back.

    Raises:
        StoreCorrupt, ResultMismatch.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    check = files.only_format(place / MANIFEST, FORMAT, FORMAT_VERSION, "a checkpoint")
    manifest = files.read_manifest(place, MANIFEST, check=check)
    try:
        if manifest.get("parts", 1) > 1 or shards.size > 1:
            from sae.parallel.checkpoint import read_parts

            tensors = read_parts(place, manifest, places, shards)
        else:
            tensors = {
                name: load(files.read_together(place, manifest, f"{files.safe_name(name)}.safetensors"))
                for name in manifest["jobs"]
            }
        random = load(files.read_together(place, manifest, "random.safetensors"))
        found = Checkpoint(
            step=manifest["step"],
            tensors=tensors,
            numbers=manifest["numbers"],
            source=manifest["source"],
            log_lines=manifest["log_lines"],
        )
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise StoreCorrupt(f"{place} does not hold what its manifest says: {error}") from error
    _restore(random)
    return found


def _random_state() -> dict[str, Tensor]:
    kind, words, *rest = np.random.get_state()  # noqa: NPY002 - the user's generator, kept as it is
    found = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(np.array(words, dtype=np.int64)),
        "numpy_rest": torch.tensor(list(json.dumps([kind, *rest]).encode()), dtype=torch.uint8),
    }
    if torch.cuda.is_available():
        found |= {f"cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return found


def _restore(random: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(random["torch"])
    kind, *rest = json.loads(bytes(random["numpy_rest"].tolist()))
    np.random.set_state((kind, random["numpy"].numpy().astype(np.uint32), *rest))  # noqa: NPY002
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            if f"cuda{i}" in random:
                torch.cuda.set_rng_state(random[f"cuda{i}"], i)
