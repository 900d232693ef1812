"""`slurm:` hands submitit the right array; with submitit its local and debug executors run the same tasks."""

import json
import os
import sys
import textwrap
import types

import pytest

from mechvis.errors import BadData, MissingPackage
from mechvis.parallel import RankFailed, start
from mechvis.parallel.launch import Task


def python(code: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code)]


def ranks_into(folder) -> list[str]:
    return python(f"""
        import json, os
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        numbers = [int(os.environ["MECHVIS_" + name]) for name in names]
        open({str(folder)!r} + f"/rank-{{numbers[0]}}", "w").write(json.dumps(numbers))
    """)


def told(folder) -> list[list[int]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("rank-*"))]


class Executor:
    """As much of submitit's AutoExecutor as is used; runs nothing until a job is asked how it went."""

    made: "list[Executor]" = []  # noqa: RUF012  read by the tests

    def __init__(self, folder, cluster):
        self.folder, self.cluster, self.parameters = folder, cluster, {}
        Executor.made.append(self)

    def update_parameters(self, **parameters):
        if "slurm_colour" in parameters:
            raise NameError("Unknown argument 'colour' for executor 'slurm'")
        self.parameters |= parameters

    def submit_array(self, tasks):
        self.tasks = tasks
        return [Job(self, number) for number in range(len(tasks))]

    def submit(self, task):
        self.tasks = [task]
        return Job(self, 0)


class Job:
    def __init__(self, executor, number):
        self.executor, self.number, self.job_id = executor, number, f"77_{number}"

    def exception(self):
        for rank in range(self.executor.parameters["tasks_per_node"] * self.executor.parameters["nodes"]):
            os.environ["FAKE_RANK"] = str(rank)
            try:
                self.executor.tasks[self.number]()
            except RankFailed as error:
                return error
            finally:
                del os.environ["FAKE_RANK"]
        return None


@pytest.fixture
def fake(monkeypatch):
    """A submitit that submits nothing."""
    module = types.ModuleType("submitit")
    Executor.made.clear()

    def environment():
        parameters, rank = Executor.made[-1].parameters, int(os.environ["FAKE_RANK"])
        each = parameters["tasks_per_node"]
        nodes = parameters["nodes"]
        ranks = {"global_rank": rank, "local_rank": rank % each}
        return types.SimpleNamespace(num_tasks=each * nodes, num_nodes=nodes, job_id="77", **ranks)

    failed = type("FailedJobError", (Exception,), {})
    module.AutoExecutor, module.JobEnvironment = Executor, environment
    module.core = types.SimpleNamespace(utils=types.SimpleNamespace(FailedJobError=failed))
    module.helpers = types.SimpleNamespace(DelayedSubmission=lambda task: ("again", task))
    monkeypatch.setitem(sys.modules, "submitit", module)
    return module


def test_what_submitit_is_asked_for(fake, tmp_path):
    where = "slurm:nodes=3,tasks_per_node=2,gpus_per_node=2,mem_gb=64,timeout_min=90,partition=gpu,array_parallelism=2"
    assert start(["true"], launch=where, logs=tmp_path) == ["77_0", "77_1", "77_2"]
    (made,) = Executor.made
    assert (made.cluster, made.folder) == ("slurm", tmp_path)
    assert made.parameters == {
        "name": "mechvis", "nodes": 1, "tasks_per_node": 2, "gpus_per_node": 2, "mem_gb": 64, "timeout_min": 90,
        "slurm_partition": "gpu", "slurm_array_parallelism": 2,
    }  # fmt: skip
    assert made.tasks == [Task(["true"], number, 3) for number in range(3)]
    assert made.tasks[1].checkpoint() == ("again", made.tasks[1]), "after the end of its time it is queued again"


def test_ranks_over_jobs_and_their_processes(fake, tmp_path):
    start(ranks_into(tmp_path), launch="slurm:nodes=2,tasks_per_node=2,wait=yes", logs=tmp_path / "jobs")
    assert told(tmp_path) == [[0, 4, 0, 2], [1, 4, 1, 2], [2, 4, 0, 2], [3, 4, 1, 2]]


def test_processes_that_talk_to_each_other_are_one_job_and_know_where_they_meet(fake, tmp_path):
    said = "import os; print(os.environ['MECHVIS_MEETING'])"
    where = "slurm:nodes=2,tasks_per_node=2,wait=yes"
    start(ranks_into(tmp_path), launch=where, logs=tmp_path / "jobs", together=True)
    (made,) = Executor.made
    assert made.parameters["nodes"] == 2 and made.tasks == [Task(ranks_into(tmp_path), 0, 1, tmp_path / "jobs")]
    assert told(tmp_path) == [[0, 4, 0, 2], [1, 4, 1, 2], [2, 4, 0, 2], [3, 4, 1, 2]]
    place = tmp_path / "jobs" / "meeting-77-0"
    met = python(f"{said}; assert os.environ['MECHVIS_MEETING'] == {str(place)!r}")
    start(met, launch=where, logs=tmp_path / "jobs", together=True)


def test_an_error_is_told_when_one_waits(fake, tmp_path):
    with pytest.raises(RankFailed, match="process 0 of 1 ended with exit code 1: no such image"):
        start(python("import sys; sys.exit('error: no such image')"), launch="slurm:wait=yes", logs=tmp_path)


def test_what_is_refused(fake, tmp_path):
    with pytest.raises(BadData, match=r"needs a folder .* --out"):
        start(["true"], launch="slurm:nodes=2")
    with pytest.raises(BadData, match="Slurm did not take the jobs: Unknown argument 'colour'"):
        start(["true"], launch="slurm:colour=red", logs=tmp_path)


def test_without_submitit(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(MissingPackage, match=r"pip install 'mechvis\[scale\]'"):
        start(["true"], launch="slurm:nodes=2", logs=tmp_path)


def test_local_executor(tmp_path):
    start(ranks_into(tmp_path), launch="slurm:cluster=local,tasks_per_node=2", logs=tmp_path / "jobs")
    assert told(tmp_path) == [[0, 2, 0, 2], [1, 2, 1, 2]]
    with pytest.raises(RankFailed, match="no such image"):
        fails = python("import sys; sys.exit('error: no such image')")
        start(fails, launch="slurm:cluster=local", logs=tmp_path / "jobs")


def test_debug_executor(tmp_path):
    start(ranks_into(tmp_path), launch="slurm:cluster=debug,nodes=3", logs=tmp_path / "jobs")
    assert told(tmp_path) == [[0, 3, 0, 1], [1, 3, 0, 1], [2, 3, 0, 1]]
    with pytest.raises(RankFailed, match="no such image"):
        fails = python("import sys; sys.exit('error: no such image')")
        start(fails, launch="slurm:cluster=debug", logs=tmp_path / "jobs")


def test_a_machine_without_slurm(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadData, match="Slurm did not take the jobs"):
        start(["true"], launch="slurm:nodes=2", logs=tmp_path / "jobs")
