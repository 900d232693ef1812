"""One task, several contenders, side by side: who took how long, and what that says.

1. Every contender of a row does the same task on the same model and pixels; what they compute is compared.
2. Rounds are interleaved (A B C, C B A, ...), so that a machine that is busy at times is busy for all of them.
3. A row reports medians, and the ratio of our median to each other one.
4. A contender that fails is named with its reason and the others go on; a row without us, or in which the contenders
   disagree, is a failed row, and the next row starts.

On a CPU with one thread the time is that of the process on the processor, so that other programs count less. On an
accelerator its queue is empty before the clock starts and before it stops.
"""

import contextlib
import gc
import io
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from benchmarks.bounds import Least

FEW_ROUNDS = 20
"""Up to this many rounds the garbage collector runs before each timing, outside the clock."""


class Disagreement(RuntimeError):
    """Contenders of one row computed different things."""


@dataclass(frozen=True)
class Clock:
    """Seconds of work on a device."""

    device: str = "cpu"

    def now(self) -> float:
        """Seconds: of this process on the processor on a CPU with one thread, else of the wall clock."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        elif torch.get_num_threads() == 1:
            return time.process_time()
        return time.perf_counter()

    @property
    def name(self) -> str:
        """What is read, in words."""
        if self.device == "cuda":
            return "the wall clock, with the GPU's queue empty at both ends"
        return "the process's time on the processor" if torch.get_num_threads() == 1 else "the wall clock"


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Somebody who does the task."""

    build: Callable[[], Callable[[], Any]]
    """Makes what is timed. Called once; what it does is not timed."""
    peer: bool = True
    """Counts when the best peer is looked for (not: ourselves, and baselines that do less)."""
    share: float = 1.0
    """Part of the work that it does; its time is divided by it."""
    warm: Callable[[], Any] | None = None
    """Before memory is measured: a smaller run that loads what the work loads; None: the work itself."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What a row must show."""

    limit: float
    """Largest value allowed; for `bound` the smallest."""
    of: Literal["time", "memory", "bound"] = "time"
    """Ratio of times, ratio of peak memory beyond the start, or share of the bound that is reached."""
    against: str | None = None
    """A contender; None: the fastest peer that ran."""
    contender: str | None = None
    """Who is judged; None: the first."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One row to be measured."""

    key: str
    """`subject/model/what`, unique."""
    title: str
    """What is done."""
    contenders: Mapping[str, Contender]
    """By name; the first is ours, and the row is about it."""
    rounds: int
    """Timings of each."""
    warm_up: bool = True
    """Run everyone once untimed before."""
    digest: Callable[[str, Any], Any] = lambda name, answer: answer
    """What is kept of an answer, outside the clock: caches are large."""
    check: Callable[[dict[str, Any]], list[str]] = lambda kept: []
    """Raises `Disagreement` if the contenders differ; answers notes."""
    least: Callable[[dict[str, Any]], dict[str, Least]] = lambda kept: {}
    """The arithmetic bound of some contenders, from what was kept."""
    shape: str | None = None
    """Model whose matrix products are the machine's limit for this row."""
    goals: tuple[Goal, ...] = ()
    """What must be shown."""
    memory: tuple[str, ...] = ()
    """Contenders whose peak memory is measured, each in a process of its own."""
    notes: tuple[str, ...] = ()
    """What a reader must know."""
    precision: str = "fp32"
    """`fp32`, `tf32` or `bf16`."""


@dataclass
class Row:
    """What was measured for one task."""

    key: str
    title: str
    ours: str
    seconds: dict[str, float] = field(default_factory=dict)
    """Median time per contender, divided by its share of the work."""
    ratios: dict[str, float] = field(default_factory=dict)
    """Our median divided by theirs."""
    spread: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Least and largest time."""
    rounds: int = 0
    peers: list[str] = field(default_factory=list)
    """Contenders among which the best one is looked for."""
    peak: dict[str, float] = field(default_factory=dict)
    """Memory (MiB) at the peak, beyond what was there before."""
    held: dict[str, float] = field(default_factory=dict)
    """Memory (MiB) that the answer holds."""
    failed: dict[str, str] = field(default_factory=dict)
    """Contender -> why there is no figure."""
    bounds: dict[str, dict[str, float]] = field(default_factory=dict)
    """Contender -> counts, the time below which it cannot be, and the share of that rate that it reaches."""
    goals: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    status: Literal["done", "failed"] = "done"
    reason: str = ""
    """Of a failed row."""
    wall: float = 0.0
    """Seconds that the whole row took."""

    @property
    def best_peer(self) -> str | None:
        """The fastest contender that counts as a peer."""
        ran = [name for name in self.peers if name in self.seconds]
        return min(ran, key=self.seconds.__getitem__) if ran else None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Libraries talk; the table does not."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def race(task: Task, clock: Clock, *, seconds_at_most: float = float("inf")) -> tuple[Row, dict[str, Any]]:
    """Time every contender of a task in turn.

    Args:
        task: what is done and by whom.
        clock: how time is read.
        seconds_at_most: begin no further round after this much wall time; one round is always finished.

    Returns:
        the row, and what was kept of everyone's last answer.

    Raises:
        Exception: ours failed, with its own error.
        Disagreement: they computed different things.
    """
    ours, *_ = task.contenders
    row = Row(key=task.key, title=task.title, ours=ours, notes=list(task.notes))
    running: dict[str, Callable[[], Any]] = {}
    kept: dict[str, Any] = {}
    times: dict[str, list[float]] = {name: [] for name in task.contenders}

    def attempt(name: str, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except Exception as error:
            if name == ours:
                raise
            row.failed[name] = reason(error)
            running.pop(name, None)
            return None

    with quiet(), torch.no_grad(), _old_things_set_aside() as set_aside:
        for name, contender in task.contenders.items():
            made = attempt(name, contender.build)
            if made is not None:
                running[name] = made
        set_aside()
        began = time.perf_counter()
        for round_ in range(task.rounds + task.warm_up):
            if row.rounds and time.perf_counter() - began > seconds_at_most:
                break
            # Reversed in every other round, so that nobody always runs after the same one.
            for name in list(running)[:: 1 if round_ % 2 else -1]:
                seconds = attempt(name, lambda name=name: _timed(name, running[name], task, clock, kept))
                if seconds is not None and (round_ or not task.warm_up):
                    times[name].append(seconds / task.contenders[name].share)
            row.rounds = round_ + 1 - task.warm_up
    kept = {name: kept[name] for name in task.contenders if name in kept and name not in row.failed}
    found = {name: taken for name, taken in times.items() if taken and name not in row.failed}
    row.seconds = {name: statistics.median(taken) for name, taken in found.items()}
    row.spread = {name: (min(taken), max(taken)) for name, taken in found.items()}
    row.ratios = {name: row.seconds[ours] / s for name, s in row.seconds.items() if name != ours}
    row.peers = [name for name, contender in task.contenders.items() if contender.peer and name != ours]
    row.notes += task.check(kept)
    return row, kept


@contextlib.contextmanager
def _old_things_set_aside() -> Iterator[Callable[[], None]]:
    """A function after which the garbage collector looks at new things only: a full look takes half a second."""

    def set_aside() -> None:
        gc.collect()
        gc.freeze()

    try:
        yield set_aside
    finally:
        gc.unfreeze()


def _timed(name: str, work: Callable[[], Any], task: Task, clock: Clock, kept: dict[str, Any]) -> float:
    """One timing; the answer's digest goes into `kept`, and the answer is gone before the next one starts."""
    if task.rounds <= FEW_ROUNDS:
        gc.collect()
    start = clock.now()
    answer = work()
    seconds = clock.now() - start
    kept[name] = task.digest(name, answer)
    return seconds


def reason(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def judge(row: Row, goals: tuple[Goal, ...]) -> list[dict[str, Any]]:
    """What became of the goals, judged to two decimals: no more is repeatable. A goal whose figures are missing is
    neither met nor missed."""
    judged = []
    for goal in goals:
        who, rival = goal.contender or row.ours, goal.against or row.best_peer
        rival_name = rival if goal.against else f"best peer ({rival})"
        if goal.of == "bound":
            value = row.bounds[who]["share"] if who in row.bounds else None
            text, asked = f"share of the bound, {who}", f">= {goal.limit:g}"
        elif goal.of == "memory":
            own, other = row.peak.get(who), row.peak.get(rival)
            value = own / other if own is not None and other else None
            text, asked = f"peak memory of {who} / {rival_name}", f"<= {goal.limit:g}"
        else:
            own, other = row.seconds.get(who), row.seconds.get(rival)
            value = own / other if own is not None and other is not None else None
            text, asked = f"time of {who} / {rival_name}", f"<= {goal.limit:g}"
        met = None
        if value is not None:
            seen = round(value, 2)
            met = seen >= goal.limit if goal.of == "bound" else seen <= goal.limit
        judged.append({"text": text, "value": value, "asked": asked, "met": met})
    return judged


def describe(row: Row) -> str:
    """A row in a few words, for the terminal."""
    if row.status == "failed":
        return f"{row.key}: FAILED, {row.reason}"
    ratios = ", ".join(f"{value:.3f} x {name}" for name, value in row.ratios.items())
    words = f"{row.key}: {row.ours} {1000 * row.seconds[row.ours]:.4g} ms = {ratios}"
    if row.ours in row.bounds:
        words += f"; {row.bounds[row.ours]['share']:.0%} of the bound"
    for name, why in row.failed.items():
        words += f"; {name} failed: {why}"
    return f"{words} ({row.rounds} rounds, {row.wall:.0f} s)"
