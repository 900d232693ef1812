"""Two processes learn what one does: shares of the batch, shares of the latents, checkpoints for other numbers.

All that needs processes happens in one start of two (`ranks.py`); the tests compare what they wrote.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sae
from mechvis.errors import BadData, RefusedMethod, StoreCorrupt
from sae import parallel
from sae.parallel.select import kth_largest
from sae.parallel.sharded import part_of
from sae.shards import WHOLE, Whole
from sae.team import ALONE

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("sae_ranks", HERE / "ranks.py")
ranks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ranks)


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("ranks")
    ranks.run(ranks.TOPK, out / "one-to-data", ALONE, WHOLE, after=14)
    ranks.run(ranks.TOPK, out / "one-to-shards", ALONE, WHOLE, after=14)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    command += [sys.executable, str(HERE / "ranks.py"), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 0, finished.stderr[-4000:]
    return out


@pytest.fixture(scope="module")
def alone():
    found = {}
    for name, architecture in ranks.KINDS.items():
        found[name] = ranks.run(architecture, None, ALONE, WHOLE)
    return found


def dictionary(folder: Path) -> sae.Dictionary:
    return sae.load(folder / "dictionaries" / "dictionary")


def difference(a: sae.Dictionary, b: sae.Dictionary) -> float:
    return max(float((a.state_dict()[name] - b.state_dict()[name]).abs().max()) for name in a.state_dict())


@pytest.mark.parametrize("name", ranks.KINDS)
@pytest.mark.parametrize("kind", ["data", "shards"])
def test_two_processes_learn_what_one_does(done, alone, kind, name):
    found = dictionary(done / f"{kind}-{name}")
    assert difference(found, alone[name].dictionary) < 1e-5
    # It did learn: the comparison is not one of two starting values.
    start = sae.start(ranks.KINDS[name], {"site": ranks.rows()[:256]})
    assert difference(found, start) > 1e-2


@pytest.mark.parametrize("name", ranks.KINDS)
@pytest.mark.parametrize("kind", ["data", "shards"])
def test_the_log_is_that_of_one_process(done, alone, kind, name):
    from sae.training.log import Log

    log = Log(done / f"{kind}-{name}")
    log.resume(1000)
    ours, theirs = log.table(), alone[name].log
    assert ours.height == theirs.height
    for column in ("fvu", "l0", "dead", "gradient_norm", "loss_error", "loss_aux"):
        assert ours[column].to_list() == pytest.approx(theirs[column].to_list(), rel=1e-4, abs=1e-6)
    assert max(theirs["loss_aux"]) > 0  # dead latents took part


@pytest.mark.parametrize("name", ["one-to-data", "one-to-shards"])
def test_a_run_of_one_process_goes_on_in_two(done, alone, name):
    assert difference(dictionary(done / name), alone["topk"].dictionary) < 1e-5


@pytest.mark.parametrize("name", ["data-to-one", "shards-to-one"])
def test_a_run_of_two_processes_goes_on_in_one(done, alone, name):
    assert not (done / name / "dictionaries").exists()
    found = ranks.run(ranks.TOPK, done / name, ALONE, WHOLE)
    assert difference(found.dictionary, alone["topk"].dictionary) < 1e-5


@pytest.mark.parametrize("kind", ["data", "shards"])
def test_killed_and_continued_with_as_many_processes_is_bitwise_equal(done, kind):
    assert difference(dictionary(done / f"{kind}-again"), dictionary(done / f"{kind}-topk")) == 0


def test_a_damaged_file_of_a_shared_checkpoint_is_found(done, tmp_path):
    import shutil

    from sae.training import checkpoint
    from sae.training.job import Learner

    shutil.copytree(done / "shards-topk" / "checkpoints", tmp_path / "checkpoints")
    learner = Learner(sae.start(ranks.TOPK, {"site": ranks.rows()[:256]}), sae.Training(**ranks.SETTINGS))
    places = {"dictionary": learner.tensors()}
    newest = sorted((tmp_path / "checkpoints").glob("step-*"))[-1]
    assert checkpoint.newest(tmp_path / "checkpoints", places).step == 20
    file = next(iter((newest / "tensors").iterdir()))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.warns(checkpoint.DamagedCheckpoint, match="damaged"):
        assert checkpoint.newest(tmp_path / "checkpoints", places).step == 18
    with pytest.raises(StoreCorrupt, match="damaged"):
        checkpoint.read(newest, places)


# -- the parts, without processes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 40, 63, 64, 200])
def test_the_threshold_from_two_histograms_is_exact(count):
    values = torch.randn(128, generator=torch.Generator().manual_seed(count))
    positive = values[values > 0].sort(descending=True).values
    expected = positive[min(count, len(positive)) - 1]
    assert kth_largest(values, count) == expected


def test_the_threshold_counts_all_processes():
    """Two halves whose counts are added up give the threshold of the whole."""
    values = torch.rand(200, generator=torch.Generator().manual_seed(0))
    halves = values[:100], values[100:]
    told: list[list[torch.Tensor]] = []
    kth_largest_of = []
    # First every half says its counts, then both are run again with the sums.
    for half in halves:
        said: list[torch.Tensor] = []
        told.append(said)
        kth_largest(half, 30, lambda value, said=said: said.append(value) or value)
    upper = told[0][0] + told[1][0]

    for half in halves:
        calls = iter(range(2))

        def total(value: torch.Tensor, calls=calls) -> torch.Tensor:
            if next(calls) == 0:
                return upper
            patterns = values.view(torch.int32).long()
            above = upper.flip(0).cumsum(0).flip(0)
            place = int((above >= 30).nonzero()[-1, 0])
            return torch.bincount(patterns[patterns >> 16 == place] & 0xFFFF, minlength=1 << 16)

        kth_largest_of.append(float(kth_largest(half, 30, total)))
    assert kth_largest_of == [float(values.sort(descending=True).values[29])] * 2


def test_nothing_positive_has_an_infinite_threshold():
    assert kth_largest(-torch.rand(5), 2) == torch.inf


def test_alone_is_one_team_and_one_part():
    assert parallel.join() == (ALONE, WHOLE)
    assert parallel.team() is ALONE


def test_shards_of_a_process_are_refused():
    with pytest.raises(BadData, match="shards=2 of 1 processes"):
        parallel.join(shards=2)


class Two(Whole):
    """A part of two, for the refusals."""

    size = 2


def test_latents_that_cannot_be_shared_out_are_refused():
    d = sae.start(sae.TopK(n_latents=7, k=2), {"site": torch.randn(20, 4)})
    with pytest.raises(BadData, match="7 latents in 2 parts"):
        part_of(d, Two())


def test_architectures_that_cannot_be_trained_in_parts_say_so():
    from sae.architectures import NAMES, named
    from sae.parallel.sharded import WHICH

    others = [name for name in NAMES if name not in WHICH]
    assert others, "if every architecture can be trained in parts, this test and the refusal can go"
    d = sae.start(sae.TopK(n_latents=8, k=2), {"site": torch.randn(20, 4)})
    d.architecture = named(others[0])(n_latents=8)
    with pytest.raises(RefusedMethod, match="not trained in parts"):
        part_of(d, Two())


def test_a_batch_that_cannot_be_shared_is_refused():
    class Three(type(ALONE)):
        size = 3

    with pytest.raises(BadData, match="batch=64 cannot be shared by 3 processes"):
        ranks.run(ranks.TOPK, None, Three(), WHOLE)
