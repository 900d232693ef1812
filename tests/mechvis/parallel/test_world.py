"""Which process is this one: torchrun's variables, ours, neither, and contradictions."""

import pytest
import torch

from mechvis.errors import BadData
from mechvis.parallel import World, world


def ours(**numbers):
    return {f"MECHVIS_{name}": str(number) for name, number in numbers.items()}


def torchrun(**numbers):
    return {name: str(number) for name, number in numbers.items()}


def test_alone():
    for environment in ({}, {"RANK": "3"}, {"WORLD_SIZE": "3"}, {"LOCAL_RANK": "1", "SLURM_NTASKS": "8"}):
        assert world(environment) == World(rank=0, size=1, local_rank=0, local_size=1)
    assert world({}).leads


def test_torchrun_and_ours():
    numbers = {"RANK": 5, "WORLD_SIZE": 8, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 4}
    expected = World(rank=5, size=8, local_rank=1, local_size=4)
    assert world(torchrun(**numbers)) == world(ours(**numbers)) == expected
    assert world({**torchrun(RANK=0, WORLD_SIZE=2), **ours(**numbers)}) == expected, "ours are the inner ones"
    assert not expected.leads


def test_without_local_numbers_all_are_here():
    assert world(torchrun(RANK=1, WORLD_SIZE=2)) == World(rank=1, size=2, local_rank=1, local_size=2)


def test_the_environment_of_the_process(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert (world().rank, world().size) == (1, 3)


@pytest.mark.parametrize(
    ("environment", "text"),
    [
        (torchrun(RANK=2, WORLD_SIZE=2), r"RANK=2 of WORLD_SIZE=2 .* cannot be.*torchrun"),
        (torchrun(RANK=0, WORLD_SIZE=0), "cannot be"),
        (torchrun(RANK=0, WORLD_SIZE=2, LOCAL_RANK=3, LOCAL_WORLD_SIZE=2), r"LOCAL_RANK=3 of LOCAL_WORLD_SIZE=2"),
        (torchrun(RANK="x", WORLD_SIZE=2), r"RANK='x' is not a number"),
        (ours(RANK=-1, WORLD_SIZE=2), r"MECHVIS_RANK='-1' is not a number"),
    ],
)
def test_contradictions(environment, text):
    with pytest.raises(BadData, match=text):
        world(environment)


def test_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    ranks = [World(rank=rank, size=4, local_rank=rank, local_size=4) for rank in range(4)]
    assert [rank.device("cuda") for rank in ranks] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert [rank.device("cpu") for rank in ranks] == ["cpu"] * 4
    assert [rank.device("cuda:1") for rank in ranks] == ["cuda:1"] * 4
    assert ranks[3].device() is None and World().device("cuda") == "cuda"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert ranks[3].device("cuda") == "cuda:0", "the model says that there is none"
