"""The trainer: what goes in, what comes out, what it refuses, what a run leaves on disk."""

import json

import pytest
import torch

import sae
from mechvis.errors import BadData, NotFinite, ResultMismatch, ShapeMismatch, UnknownName
from mechvis.testing import planted_dict
from sae.training import checkpoint
from sae.training.job import Learner

SETTINGS = sae.Training(tokens=64 * 40, batch=64, lr=3e-3, log_every=10, save_every=16, dead_after=500, init_rows=300)
TOPK = sae.TopK(n_latents=48, k=4)


@pytest.fixture(scope="module")
def rows():
    planted = planted_dict(1000, concepts=24, width=16, active=3, seed=0, equal=False)
    return torch.tensor(planted.vectors, dtype=torch.float32)


def same(a, b) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)


def run(rows, jobs=TOPK, settings=SETTINGS, **options):
    return sae.train(rows, jobs, settings, progress=False, **options)


def test_it_learns_and_says_so(rows):
    found = run(rows, settings=sae.Training(tokens=64 * 300, batch=64, lr=3e-3, log_every=50))
    curve = found.log["fvu"].to_list()
    assert curve[-1] < 0.6 * curve[0] and found.log["tokens"].to_list()[-1] == 64 * 300
    assert set(found.log.columns) >= {
        "step",
        "tokens",
        "job",
        "fvu",
        "l0",
        "dead",
        "loss_error",
        "lr",
        "rows_per_second",
    }
    assert found.log["l0"].to_list()[-1] == pytest.approx(4, abs=0.2)
    assert "topk autoencoder of site: 48 latents of 16" in repr(found)
    norms = found.dictionary.W_dec.detach().norm(dim=1)
    assert float((norms - 1).abs().max()) < 1e-5


def test_the_same_seed_gives_the_same_bits_and_another_one_others(rows):
    assert same(run(rows).dictionary, run(rows).dictionary)
    other = sae.Training(**{**SETTINGS.to_json(), "seed": 1})
    assert not same(run(rows).dictionary, run(rows, settings=other).dictionary)


def test_many_dictionaries_learn_what_each_would_alone(rows):
    jobs = {
        "k2": sae.TopK(n_latents=32, k=2),
        "k8": sae.TopK(n_latents=64, k=8),
        "other seed": sae.Job(architecture=TOPK, seed=7),
    }
    together = run(rows, jobs)
    for name, job in jobs.items():
        assert same(together.dictionaries[name], run(rows, {name: job}).dictionary)
    with pytest.raises(BadData, match="3 dictionaries: k2, k8, other seed"):
        together.dictionary


def test_a_run_is_continued_from_its_checkpoint_and_returned_when_it_is_done(rows, tmp_path):
    whole = run(rows, out=tmp_path / "whole")

    class Broken(Exception):
        pass

    def crash(line):
        if line["step"] == 30:
            raise Broken

    with pytest.raises(Broken):
        run(rows, out=tmp_path / "run", trackers=[crash])
    assert sorted(p.name for p in (tmp_path / "run/checkpoints").iterdir()) == ["step-000000016"]
    seen = []
    continued = run(rows, out=tmp_path / "run", trackers=[seen.append])
    assert [line["step"] for line in seen] == [20, 30, 40]
    assert same(continued.dictionary, whole.dictionary)
    assert continued.log.drop("rows_per_second").equals(whole.log.drop("rows_per_second"))
    # Done: nothing is computed again, and what is on disk is what was returned.
    seen.clear()
    again = run(rows, out=tmp_path / "run", trackers=[seen.append])
    assert seen == [] and same(again.dictionary, whole.dictionary) and again.log.height == 4
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30, 40]
    assert len(list((tmp_path / "run/checkpoints").iterdir())) == 2


def test_another_run_in_the_same_folder_is_refused(rows, tmp_path):
    run(rows, out=tmp_path)
    with pytest.raises(ResultMismatch, match="other jobs"):
        run(rows, sae.TopK(n_latents=48, k=5), out=tmp_path)
    with pytest.raises(ResultMismatch, match=r"other training \(lr differ"):
        run(rows, settings=sae.Training(**{**SETTINGS.to_json(), "lr": 1e-3}), out=tmp_path)
    with pytest.raises(ResultMismatch, match="other data"):
        run(rows[:900], out=tmp_path)
    # How often it is logged and saved is not part of what is learned.
    run(rows, settings=sae.Training(**{**SETTINGS.to_json(), "save_every": 5, "log_every": 3}), out=tmp_path)


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(rows, tmp_path):
    whole = run(rows, out=tmp_path)
    (tmp_path / "run.json").write_text(
        (tmp_path / "run.json")
        .read_text()
        .replace('"finished":true', '"finished":false')
        .replace('"finished": true', '"finished": false')
    )
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    file = newest / "dictionary.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.warns(checkpoint.DamagedCheckpoint, match="does not fit.*The checkpoint before it is used"):
        continued = run(rows, out=tmp_path)
    assert same(continued.dictionary, whole.dictionary)


def test_iterators_train_and_resume(rows, tmp_path):
    def batches():
        generator = torch.Generator().manual_seed(5)
        while True:
            yield rows[torch.randint(len(rows), (64,), generator=generator)]

    whole = run(batches)
    once = run(batches())
    assert same(whole.dictionary, once.dictionary)

    class Broken(Exception):
        pass

    def crash(line):
        if line["step"] == 30:
            raise Broken

    with pytest.raises(Broken):
        run(batches, out=tmp_path, trackers=[crash])
    assert same(run(batches, out=tmp_path).dictionary, whole.dictionary)


def test_an_iterator_that_ends_says_when(rows):
    with pytest.raises(BadData, match="ended after 10 batches"):
        run(iter([rows[:64]] * 10))
    with pytest.raises(ShapeMismatch, match=r"tensors \[row d\]"):
        run(iter([rows[0]] * 10))


def test_data_that_are_not_finite_name_their_row(rows):
    broken = rows.clone()
    broken[17, 3] = torch.nan
    with pytest.raises(NotFinite, match="row 17 of site"):
        run(broken)

    def batches():
        for number in range(100):
            batch = rows[:64].clone()
            if number == 25:
                batch[5, 0] = torch.inf
            yield batch

    with pytest.raises(NotFinite, match="not finite since step 25"):
        run(batches)
    single = sae.Training(**{**SETTINGS.to_json(), "look_every": 1})
    with pytest.raises(NotFinite, match="the data hold NaN or Inf at site, row 5 of that batch"):
        run(batches, settings=single)


def test_a_run_that_diverges_stops_and_leaves_no_bad_checkpoint(rows, tmp_path):
    wild = sae.Training(**{**SETTINGS.to_json(), "lr": 1e30, "clip": None, "lr_warm_up": 0, "save_every": 1})
    with pytest.raises(NotFinite, match="lower the learning rate"):
        run(rows, settings=wild, out=tmp_path)
    for place in (tmp_path / "checkpoints").glob("step-*"):
        start = sae.start(TOPK, {"site": rows})
        found = checkpoint.read(place, {"dictionary": Learner(start, wild).tensors()})
        assert int(found.tensors["dictionary"]["broken"]) == -1


@pytest.mark.parametrize("architecture", [TOPK, sae.BatchTopK(n_latents=48, k=4)])
def test_fast_and_plain_training_agree(rows, architecture):
    rows = rows.double()
    found = {}
    for fast in (True, False):
        settings = sae.Training(**{**SETTINGS.to_json(), "fast": fast, "dead_after": 64})
        found[fast] = run(rows, architecture, settings).dictionary.state_dict()
    for name in found[True]:
        assert torch.allclose(found[True][name], found[False][name], atol=1e-9), name


def test_bfloat16_products_train_as_well(rows):
    settings = {**SETTINGS.to_json(), "tokens": 64 * 300}
    full = run(rows, settings=sae.Training(**settings)).log["fvu"].to_list()[-1]
    half = run(rows, settings=sae.Training(**{**settings, "precision": "bfloat16"}))
    assert half.dictionary.W_enc.dtype == torch.float32
    assert half.log["fvu"].to_list()[-1] == pytest.approx(full, rel=0.1)


def test_the_average_of_weights_is_what_is_kept(rows):
    plain = run(rows)
    averaged = run(rows, settings=sae.Training(**{**SETTINGS.to_json(), "ema": 0.9}))
    assert not same(plain.dictionary, averaged.dictionary)
    assert float((averaged.dictionary.W_dec.detach().norm(dim=1) - 1).abs().max()) < 1e-5


def test_unit_rows_stay_unit_after_every_step(rows):
    learner = Learner(sae.start(TOPK, {"site": rows}), SETTINGS)
    source = sae.TensorRows(rows, size=64)
    for number in range(10):
        learner.step(number, next(source))
        assert float((learner.dictionary.W_dec.detach().norm(dim=1) - 1).abs().max()) < 1e-6


def test_dead_latents_are_counted_in_rows(rows):
    learner = Learner(sae.start(TOPK, {"site": rows}), SETTINGS)
    source = sae.TensorRows(rows, size=64)
    silent = torch.zeros(48, dtype=torch.long)
    for number in range(10):
        batch = next(source)
        fired = (learner.dictionary.encode(batch.activations["site"]) > 0).any(0)
        learner.step(number, batch)
        silent = torch.where(fired, 0, silent + 64)
        assert torch.equal(learner.silent, silent)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tokens": 10}, "tokens=10: at least 64"),
        ({"batch": 0}, "batch=0: at least 1"),
        ({"decay": 1.5}, "decay=1.5 is a share"),
        ({"lr": -1.0}, "lr=-1.0: above zero"),
        ({"ema": 1.0}, "ema=1.0 is a decay"),
        ({"k_start": 0.5}, "k_start=0.5"),
    ],
)
def test_settings_that_cannot_be(wrong, message):
    with pytest.raises(BadData, match=message):
        sae.Training(**{**SETTINGS.to_json(), **wrong})


def test_settings_of_a_file(rows):
    assert sae.Training.from_json(json.loads(json.dumps(SETTINGS.to_json()))) == SETTINGS
    with pytest.raises(BadData, match="no setting 'learning'"):
        sae.Training.from_json({"learning": 1})
    with pytest.raises(UnknownName):
        sae.Training(precision="float8")


@pytest.mark.parametrize(("tokens", "batch"), [(10_000, 256), (1_000_000, 512), (5_000_000, 4096), (10**9, 8192)])
def test_short_runs_take_small_steps(tokens, batch):
    assert sae.Training(tokens=tokens).batch == batch
    assert sae.Training(tokens=tokens, batch=123).batch == 123


def test_schedules():
    settings = sae.Training(
        tokens=1000, batch=1, lr=1.0, lr_warm_up=50, decay=0.2, sparsity_warm_up=0.1, k_start=3.0, k_steps=100
    )
    assert [settings.lr_at(step) for step in (0, 24, 49, 500, 799)] == pytest.approx([0.02, 0.5, 1, 1, 1])
    assert settings.lr_at(900) == pytest.approx(0.5) and settings.lr_at(999) == pytest.approx(1 / 200)
    assert [settings.sparsity_at(step) for step in (0, 49, 99, 500)] == pytest.approx([0.01, 0.5, 1, 1])
    assert [settings.k_at(step) for step in (0, 50, 100, 400)] == pytest.approx([3, 2, 1, 1])
    assert sae.Training(tokens=10**9).learning_rate(2**14) == pytest.approx(2e-4)
    assert sae.Training(tokens=10**9).learning_rate(2**16) == pytest.approx(1e-4)


def test_what_is_no_architecture_or_no_data_is_refused(rows):
    with pytest.raises(BadData, match="give an architecture such as"):
        run(rows, "topk")
    with pytest.raises(BadData, match="rows come from a store"):
        run(3)
    with pytest.raises(BadData, match="batches of 64 rows from 10"):
        run(rows[:10])
    with pytest.raises(UnknownName, match="nowhere"):
        run({"a": rows}, sae.Job(architecture=TOPK, reads="nowhere"))
