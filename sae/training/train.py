"""Train dictionaries: one or many on every batch, from a store, a model, tensors or an iterator; resumes bit by bit.

1. Scales, means and directions to start from are measured on some rows of the data, which then starts anew.
2. Every batch goes to every dictionary: reading the rows costs more than one of them learning from them.
3. Every `save_every` steps all that changes is written. Killed at any moment, the same call goes on from there and ends
   with the same bits (on the same machine; a GPU too, since no sum depends on timing).
4. A loss that is not finite stops the run and names the batch, before a checkpoint can be spoilt by it.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mechvis import files
from mechvis.errors import BadData, NotFinite, ResultMismatch
from mechvis.progress import track
from mechvis.provenance import provenance
from sae.architecture import Architecture
from sae.data import Rows, Source, sample, source
from sae.dictionary import Dictionary, start
from sae.shards import WHOLE, Shards
from sae.team import ALONE, Team
from sae.training import checkpoint
from sae.training.job import Job, Learner
from sae.training.log import Log, Tracker
from sae.training.settings import Training

PLAN = "run.json"
FORMAT, FORMAT_VERSION = "mechvis.dictionary_run", 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """What a run ends with."""

    dictionaries: dict[str, Dictionary]
    """By job."""
    log: Any
    """A polars table: one row per line of the log and job."""
    folder: Path | None
    """Where it is kept."""

    @property
    def dictionary(self) -> Dictionary:
        """The dictionary, where there is one.

        Raises:
            BadData: there are several.
        """
        if len(self.dictionaries) != 1:
            raise BadData(
                f"this run has {len(self.dictionaries)} dictionaries: {', '.join(self.dictionaries)}; name one."
            )
        return next(iter(self.dictionaries.values()))

    def __repr__(self) -> str:
        last = self.log.group_by("job", maintain_order=True).last() if self.log.height else self.log
        told = [
            f"  {row['job']}: {self.dictionaries[row['job']].extra_repr()}, "
            f"FVU {row['fvu']:.4f}, L0 {row['l0']:.1f}, dead {row['dead']:.1%}"
            for row in last.iter_rows(named=True)
        ]
        return "\n".join(
            [f"Trained({len(self.dictionaries)} on {self.log['tokens'].max() if self.log.height else 0} rows)", *told]
        )


def train(
    data: Any,
    jobs: Architecture | Job | Mapping[str, Architecture | Job],
    settings: Training | None = None,
    *,
    out: str | Path | None = None,
    sites: Any = None,
    device: Any = None,
    trackers: Iterable[Tracker] = (),
    progress: bool = True,
    team: Team = ALONE,
    shards: Shards = WHOLE,
) -> Trained:
    """Train dictionaries on activations.

    Args:
        data: rows: a tensor `[row d]`, tensors by site, a `mechvis.store.Store`, `sae.from_model(...)`,
            `sae.from_store(...)`, or an iterator of batches.
        jobs: an architecture with its settings, a :class:`Job` (which also says what is read and written), or several
            by name, trained on the same batches.
        settings: of the run.
        out: folder for checkpoints, log and dictionaries. With it, the same call goes on after a crash, and returns at
            once when all is done.
        sites: of a store, which to read; all where left out.
        device: where to train; default: where the data are.
        trackers: called with every line of the log.
        progress: show a progress bar with FVU, L0, dead share and rows per second.
        team: processes that share every batch, and ...
        shards: ... processes that share the latents (`team, shards = sae.parallel.join(...)`).

    Returns:
        The dictionaries, with decoder rows of norm one, and the log.

    Raises:
        NotFinite: a loss or the data held NaN or Inf; names the batch.
        ResultMismatch: `out` holds a run with other settings or data.
        BadData, ShapeMismatch, UnknownSite: what is asked cannot be.

    Example:
        >>> rows = torch.randn(512, 8, generator=torch.Generator().manual_seed(0))
        >>> from sae.architectures import TopK
        >>> run = train(rows, TopK(n_latents=16, k=2), Training(tokens=4096, batch=256), progress=False)
        >>> run.dictionary
        Dictionary(topk autoencoder of site: 16 latents of 8)
    """
    settings = settings or Training()
    jobs = {name: job if isinstance(job, Job) else Job(architecture=job) for name, job in _named(jobs).items()}
    if settings.batch % team.size:
        raise BadData(f"batch={settings.batch} cannot be shared by {team.size} processes: make it a multiple of that.")
    rows = source(data, size=settings.batch, seed=settings.seed, sites=sites, part=(team.rank, team.size))
    folder = None if out is None else files.ensure_writable(out)
    plan = _plan(jobs, settings, rows)
    leads = team.rank == 0 and shards.rank == 0
    if folder is not None:
        _require_same(folder, plan, leads)
        if (done := _finished(folder, jobs)) is not None:
            return done
    learners = _learners(rows, jobs, settings, device, team, shards)
    log = Log(folder if leads else None, tuple(trackers) if leads else ())
    first = _resume(folder, learners, rows, log, shards)
    _loop(rows, learners, settings, first, log, folder, progress and leads, team)
    found = {name: shards.whole(learner.finished()).folded() for name, learner in learners.items()}
    if folder is not None and leads:
        for name, dictionary in found.items():
            dictionary.save(folder / "dictionaries" / files.safe_name(name))
        files.write_json(folder / PLAN, {**plan, "finished": True})
    return Trained(dictionaries=found, log=log.table(), folder=folder)


def _named(jobs: Any) -> dict[str, Any]:
    found = dict(jobs) if isinstance(jobs, Mapping) else {"dictionary": jobs}
    for name, job in found.items():
        if not isinstance(job, Architecture | Job):
            raise BadData(
                f"{name!r} is a {type(job).__name__}; give an architecture such as sae.TopK(n_latents=4096, k=32), or "
                "a sae.Job."
            )
    if not found:
        raise BadData("nothing to train: give an architecture.")
    if len({files.safe_name(name) for name in found}) < len(found):
        raise BadData(f"the names {', '.join(found)} become folders, and two of them the same one.")
    return found


def _plan(jobs: Mapping[str, Job], settings: Training, rows: Source) -> dict[str, Any]:
    known = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "jobs": {name: job.to_json() for name, job in jobs.items()},
        "training": settings.to_json(),
        "data": rows.describe(),
        "finished": False,
    }
    return files.plain_json(known, "run")


def _require_same(folder: Path, plan: Mapping[str, Any], leads: bool) -> None:
    """Refuse a folder that holds another run. How often is logged and saved may differ."""
    path = folder / PLAN
    if not path.exists():
        if leads:
            files.write_json(path, plan)
        return
    known = files.read_json(path)
    free = {"log_every", "save_every", "keep"}
    for part in ("jobs", "training", "data"):
        there, now = known.get(part), plan[part]
        if part == "training":
            there, now = ({k: v for k, v in values.items() if k not in free} for values in (there or {}, now))
        if there != now:
            differ = [k for k in now if not isinstance(there, dict) or there.get(k) != now[k]] or [part]
            raise ResultMismatch(
                f"{folder} holds a run with other {part} ({', '.join(map(str, differ[:3]))} differ). Continue it with "
                "the same settings, or choose another folder."
            )


def _finished(folder: Path, jobs: Mapping[str, Job]) -> Trained | None:
    path = folder / PLAN
    if not (path.exists() and files.read_json(path).get("finished")):
        return None
    log = Log(folder)
    log.resume(10**12)
    found = {name: Dictionary.load(folder / "dictionaries" / files.safe_name(name)) for name in jobs}
    return Trained(dictionaries=found, log=log.table(), folder=folder)


def _learners(
    rows: Source, jobs: Mapping[str, Job], settings: Training, device: Any, team: Team, shards: Shards
) -> dict[str, Learner]:
    first = sample(rows, settings.init_rows, team)
    if device is not None:
        first = {name: t.to(device) for name, t in first.items()}
    found = {}
    for name, job in jobs.items():
        known = provenance(seed=settings.seed, training=settings.to_json(), rows=rows.describe(), job=name)
        seed = settings.seed if job.seed is None else job.seed
        reads, writes = (list(v) if isinstance(v, tuple) else v for v in (job.reads, job.writes))
        dictionary = start(job.architecture, first, reads=reads, writes=writes, seed=seed, provenance=known)
        team.share(dictionary)
        found[name] = Learner(shards.part(dictionary), settings, team)
    return found


def _resume(folder: Path | None, learners: Mapping[str, Learner], rows: Source, log: Log, shards: Shards) -> int:
    """The step to go on with."""
    places = {name: learner.tensors() for name, learner in learners.items()}
    found = None if folder is None else checkpoint.newest(folder / "checkpoints", places, shards)
    if found is None:
        log.resume(0)
        return 0
    for name, learner in learners.items():
        learner.load(found.tensors[name], found.numbers[name])
    rows.load_state_dict(found.source)
    log.resume(found.log_lines)
    return found.step


def _loop(
    rows: Source,
    learners: Mapping[str, Learner],
    settings: Training,
    first: int,
    log: Log,
    folder: Path | None,
    show: bool,
    team: Team,
) -> None:
    began, since = time.perf_counter(), first
    with track(settings.steps * settings.batch, "training", " rows", show=show, done=first * settings.batch) as bar:
        for number in range(first, settings.steps):
            batch = next(rows)
            for learner in learners.values():
                learner.step(number, batch)
            done = number + 1
            if done % settings.look_every == 0 or done == settings.steps:
                _require_finite(learners, number, batch)
            if done % settings.log_every == 0 or done == settings.steps:
                _require_finite(learners, number, batch)
                speed = (done - since) * settings.batch / max(time.perf_counter() - began, 1e-9)
                lines = {name: learner.line() for name, learner in learners.items()}
                for name, line in lines.items():
                    lr = settings.learning_rate(learners[name].dictionary.n_latents) * settings.lr_at(number)
                    log.write(
                        {
                            "step": done,
                            "tokens": done * settings.batch,
                            "job": name,
                            **line,
                            "lr": lr,
                            "rows_per_second": speed,
                        }
                    )
                shown = next(iter(lines.values()))
                bar.set_postfix(
                    fvu=f"{shown['fvu']:.4f}", l0=f"{shown['l0']:.1f}", dead=f"{shown['dead']:.1%}", refresh=False
                )
                began, since = time.perf_counter(), done
            bar.update(settings.batch)
            if folder is not None and team.rank == 0 and (done % settings.save_every == 0 or done == settings.steps):
                _require_finite(learners, number, batch)
                lines = len(log.lines)
                checkpoint.write(folder / "checkpoints", done, learners, rows.state_dict(), lines, settings.keep)


def _require_finite(learners: Mapping[str, Learner], number: int, batch: Rows) -> None:
    for name, learner in learners.items():
        broken = int(learner.broken)
        if broken < 0:
            continue
        told = f"the loss of {name} is not finite since step {broken}"
        for site, t in batch.activations.items():
            bad = (~torch.isfinite(t)).any(1).nonzero()
            if broken == number and len(bad):
                raise NotFinite(
                    f"{told}: the data hold NaN or Inf at {site}, {batch.where(int(bad[0, 0]))} of that batch."
                )
        raise NotFinite(
            f"{told}: lower the learning rate, or clip gradients (clip=1.0). The last checkpoint is from before."
        )
