"""The benchmark of the kernels, as far as it goes without a GPU."""

from pathlib import Path

import pytest
import torch

from mechvis.testing import assert_close

ROOT = Path(__file__).parents[3]


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import kernels

    return kernels


def test_smoke(benchmark, capsys, tmp_path):
    assert benchmark.main(["--smoke", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    for operation in (
        "patch_rows", "expand_norm", "patch_attention", "edge_scores", "topk", "sparse_decode", "sparse_grad"
    ):  # fmt: skip
        assert f"{operation}: " in said
    assert "30 calls of the plain twins; nothing was timed" in said
    assert not list(tmp_path.iterdir())


def test_contenders_compute_the_same(benchmark, twin, device):
    for task in benchmark.tasks(benchmark.TINY, torch.float32, device):
        own = benchmark.kernel(task) if twin == "triton" else benchmark.naive(task)
        assert_close(benchmark.call(own, task)(), benchmark.call(benchmark.naive(task), task)(), 1e-5, task.name)


def test_without_a_gpu_it_says_so_and_writes_nothing(benchmark, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert benchmark.main(["--out", str(tmp_path)]) == 0
    assert "There is no CUDA device here" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_table_says_which_kernel_must_go(benchmark):
    tasks = list(benchmark.tasks(benchmark.TINY, torch.float32, "cpu"))[:2]
    times = {"naive": 2e-3, "compiled": 1e-3, "copy": 4e-4}
    memory = dict.fromkeys(("kernel", *times), 0)
    rows = [
        benchmark.Row(task=task, label="tiny", seconds=times | {"kernel": own}, extra=memory, apart=0.0)
        for task, own in zip(tasks, (5e-4, 1.5e-3), strict=True)
    ]
    page = benchmark.table(rows, "a GPU").splitlines()
    assert page[-2].endswith("| yes |")
    assert page[-1].endswith("| **no** |")
    assert "| 0.80 |" in page[-2]
    assert len({line.count("|") for line in page[-4:]}) == 1


def test_bytes_of_a_task_are_those_of_its_tensors(benchmark):
    """Every input is read once; of in-place edits, only the targets are read and written."""
    found = {(t.operation, t.name): t for t in benchmark.tasks(benchmark.TINY, torch.float32, "cpu")}
    q = found["patch_attention", "keys dropped"]
    assert q.bytes == 4 * q.arguments[0].numel() * 4
    one = found["patch_rows", "one head per row, in place"]
    assert one.bytes == 2 * len(one.arguments[1]) * one.arguments[6].shape[1] * 4
