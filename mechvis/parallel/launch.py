"""Start one command as several processes, on this machine or through Slurm; they share its work through its `--out`.

`local:N` starts N processes here and stays until they end: the first one's output is shown, the first error ends them
all and is raised, and so does Ctrl-C. `slurm:...` submits an array of jobs with submitit and returns. Both only set the
variables that :func:`mechvis.parallel.world` reads; what the processes do with them is no concern of this file.
"""

import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechvis.errors import BadData, MechvisError, MissingPackage, unknown
from mechvis.parallel.world import LAUNCHED, MEETING

logger = logging.getLogger(__name__)

KINDS = ("local", "slurm")
GRACE = 10.0
"""Seconds that a process gets to end by itself."""
NUMBERS = ("nodes", "tasks_per_node", "gpus_per_node", "cpus_per_task", "mem_gb", "timeout_min")
"""Options of `slurm:` that are submitit's own; others are handed to Slurm."""


class RankFailed(MechvisError, RuntimeError):
    """One of several processes ended with an error; the message is that process's own."""


def start(command: Sequence[str], *, launch: str, logs: str | Path | None = None, together: bool = False) -> list[str]:
    """Run a command as several processes that share its work.

    Args:
        command: program and arguments, e.g. `[sys.executable, "-m", "mechvis", "sweep", ..., "--out", "runs/heads"]` or
            `[sys.executable, "study.py"]`. The processes share what they compute through the folder that the command
            gives to `mechvis.sweep(out=...)`.
        launch: `local:4`: four processes on this machine. `slurm:nodes=2,tasks_per_node=4,gpus_per_node=4`: an array of
            `nodes` jobs of one machine each, with `tasks_per_node` processes. Further options: `cpus_per_task`,
            `mem_gb`, `timeout_min`, `name`, `wait=yes` (stay until they end), and any of submitit's Slurm parameters
            (`partition`, `account`, `qos`, `constraint`, `array_parallelism`, ...). `cluster=local` and
            `cluster=debug` try the same without a cluster.
        logs: folder for submitit's files and the output of the jobs; `slurm:` needs it.
        together: the processes talk to each other (`torch.distributed`), so they have to run at the same time: `nodes`
            machines of one job, not an array of jobs. They meet in a file whose place is in `MECHVIS_MEETING`.

    Returns:
        Numbers of the submitted jobs; nothing for `local:`.

    Raises:
        BadData: `launch` is not of this form, or Slurm does not take it.
        MissingPackage: `slurm:` without submitit.
        RankFailed: a process ended with an error.

    Example:
        >>> start([sys.executable, "-c", "pass"], launch="local:2")
        []
    """
    kind, _, text = launch.partition(":")
    if kind not in KINDS:
        raise unknown("launch", launch, ("local:2", "slurm:nodes=2,partition=gpu"))
    if LAUNCHED in os.environ or "TORCHELASTIC_RUN_ID" in os.environ:
        raise BadData(
            f"launch={launch!r} in a process that is one of several already. Leave it out, or use no torchrun."
        )
    if kind == "slurm":
        return _submit(list(command), _options(text, launch), logs, together)
    if not (text.isdecimal() and 0 < int(text) <= 1024):
        raise BadData(f"launch={launch!r}: say how many processes, e.g. local:2.")
    _run_here(list(command), int(text))
    return []


def last_words(text: str) -> str:
    """What a process said about its failure: its last error message, or else its last lines.

    Example:
        >>> last_words("reading\\nerror: no such folder\\n")
        'no such folder'
    """
    lines = [line for line in text.replace("\r", "\n").splitlines() if line.strip()]
    for i in reversed(range(len(lines))):
        if lines[i].startswith("error: "):
            return "\n".join(lines[i:]).removeprefix("error: ")
    return "\n".join(lines[-15:])


class _Process:
    """A process with a rank, the end of what it wrote to stderr, and (of the first) the rest of it on the terminal."""

    def __init__(
        self,
        command: list[str],
        ranks: Mapping[str, int],
        threads: int,
        *,
        show: bool,
        quiet: tuple = (),
        meeting: Path | None = None,
    ):
        self.rank, self.size, self.show = ranks["RANK"], ranks["WORLD_SIZE"], show
        numbers = {f"MECHVIS_{name}": str(number) for name, number in ranks.items()}
        if meeting is not None:
            numbers[MEETING] = str(meeting)
        self.popen = subprocess.Popen(
            command,
            env={"OMP_NUM_THREADS": str(threads), **os.environ, **numbers},
            stdin=subprocess.DEVNULL,
            stdout=None if show else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            # Ctrl-C reaches the one who waits here, who then stops all of them.
            start_new_session=True,
            preexec_fn=(lambda: [signal.signal(which, signal.SIG_IGN) for which in quiet]) if quiet else None,
        )
        self.tail: deque[bytes] = deque(maxlen=64)
        self.reading = threading.Thread(target=self._read, daemon=True)
        self.reading.start()

    def _read(self) -> None:
        while chunk := self.popen.stderr.read1(4096):
            self.tail.append(chunk)
            if self.show:
                with suppress(OSError, ValueError):  # nobody looks any more
                    sys.stderr.write(chunk.decode(errors="replace"))
                    sys.stderr.flush()

    def wait(self) -> None:
        """Until it ends; a failure is raised."""
        self.popen.wait()
        self.check()

    def check(self) -> None:
        """Raise if it has failed."""
        code = self.popen.poll()
        if not code:
            return
        self.reading.join(timeout=GRACE)
        how, then = f"ended with exit code {code}", ""
        if code < 0:
            how = f"was killed by signal {-code} ({signal.Signals(-code).name})"
            how += ", perhaps for want of memory" if -code == getattr(signal, "SIGKILL", 9) else ""
            then = "\nWhat is finished is kept: the same command continues."
        said = last_words(b"".join(self.tail).decode(errors="replace"))
        raise RankFailed(f"process {self.rank} of {self.size} {how}{': ' if said else '.'}{said}{then}")

    def stop(self) -> None:
        """Ask it to end."""
        self.show = False
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGINT)

    def end(self, by: float) -> None:
        """Make it end, at the latest at this time."""
        try:
            self.popen.wait(max(0.0, by - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        self.reading.join(timeout=GRACE)
        self.popen.stderr.close()


def _run_here(command: list[str], size: int) -> None:
    threads = max(1, _cores() // size)
    processes: list[_Process] = []
    with _termination_as_interrupt(), tempfile.TemporaryDirectory(prefix="mechvis-") as place:
        try:
            for rank in range(size):
                ranks = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
                meeting = Path(place) / "meeting"
                processes.append(_Process(command, ranks, threads, show=rank == 0, meeting=meeting))
            while any(process.popen.poll() is None for process in processes):
                for process in processes:
                    process.check()
                time.sleep(0.05)
            for process in processes:
                process.check()
        finally:
            for process in processes:
                process.stop()
            by = time.monotonic() + GRACE
            for process in processes:
                process.end(by)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """SIGTERM to the one who waits must not leave the others behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass(frozen=True)
class Task:
    """What a Slurm job does in each of its processes: the command, with its ranks."""

    command: list[str]
    """Program and arguments."""
    number: int
    """Which of the jobs of the array."""
    jobs: int
    """How many there are."""
    meetings: Path | None = None
    """Folder in which the processes of one job find each other; None: they need not."""

    def __call__(self) -> None:
        import submitit

        try:
            here = submitit.JobEnvironment()
            tasks, rank, local, nodes = here.num_tasks, here.global_rank, here.local_rank, here.num_nodes
            name = f"{here.job_id}-{os.environ.get('SLURM_RESTART_COUNT', 0)}"
        except RuntimeError:  # cluster=debug runs the jobs right here, one after the other
            tasks, rank, local, nodes, name = 1, 0, 0, 1, "debug"
        ranks = {
            "RANK": self.number * tasks + rank,
            "WORLD_SIZE": self.jobs * tasks,
            "LOCAL_RANK": local,
            "LOCAL_WORLD_SIZE": tasks // nodes,
        }
        meeting = None if self.meetings is None else self.meetings / f"meeting-{name}"
        threads = int(os.environ.get("SLURM_CPUS_PER_TASK", max(1, _cores() * nodes // tasks)))
        # submitit is told of the end of the time by this signal, and queues the job again; the command needs not know.
        quiet = (signal.SIGUSR2,) if hasattr(signal, "SIGUSR2") else ()
        process = _Process(self.command, ranks, threads, show=True, quiet=quiet, meeting=meeting)
        try:
            process.wait()
        finally:
            process.stop()
            process.end(time.monotonic() + GRACE)

    def checkpoint(self) -> Any:
        """At the end of its time, or when others need the machine: the same again, from what is finished."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def _options(text: str, launch: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for entry in filter(None, text.split(",")):
        name, equals, value = entry.partition("=")
        if not (name and equals and value):
            raise BadData(
                f"launch={launch!r}: {entry!r} is not name=value. Write for example slurm:nodes=2,partition=gpu."
            )
        found[name] = int(value) if value.isdecimal() else value
        if name in NUMBERS and not (isinstance(found[name], int) and found[name] > 0):
            raise BadData(f"launch={launch!r}: {name} is a whole number of at least 1.")
    return found


def _submit(command: list[str], options: dict[str, Any], logs: str | Path | None, together: bool) -> list[str]:
    if logs is None:
        raise BadData("launch='slurm:...' needs a folder for the files of the jobs (logs=; on the command line --out).")
    try:
        import submitit
    except ImportError as error:
        raise MissingPackage("launch='slurm:...' needs submitit: pip install 'mechvis[scale]'.") from error

    jobs, cluster = options.pop("nodes", 1), options.pop("cluster", "slurm")
    wait = options.pop("wait", "no" if cluster == "slurm" else "yes") == "yes"
    own = {"name": "mechvis", "tasks_per_node": 1, "nodes": 1}
    own |= {name: options.pop(name) for name in (*NUMBERS, "name") if name in options}
    try:
        executor = submitit.AutoExecutor(folder=Path(logs), cluster=cluster)
        executor.update_parameters(**own, **{f"slurm_{name}": value for name, value in options.items()})
        if together:
            executor.update_parameters(nodes=jobs)
            submitted = [executor.submit(Task(command, 0, 1, Path(logs).absolute()))]
        else:
            submitted = executor.submit_array([Task(command, number, jobs) for number in range(jobs)])
    except (NameError, ValueError, RuntimeError, AssertionError, OSError, submitit.core.utils.FailedJobError) as error:
        raise BadData(f"Slurm did not take the jobs: {error}") from error
    numbers = [str(job.job_id) for job in submitted]
    logger.info("submitted %s; their output is in %s.", ", ".join(numbers), logs)
    if wait:
        failures = [error for error in (job.exception() for job in submitted) if error is not None]
        if failures:
            raise RankFailed(last_words(str(failures[0])))
    return numbers
