"""The engine: any cut into pieces gives the same numbers; it says what goes wrong, and leaves nothing behind."""

import dataclasses
import threading
import time

import numpy as np
import pytest
import torch

import mechvis
from mechvis import engine, testing
from mechvis.engine import Job, budget_bytes, compute, cut_size
from mechvis.errors import BadData, NotFinite, OutOfMemory, ResultMismatch, TrainMode, UnknownName
from mechvis.units import Unit, units_of
from mechvis.wave import bytes_per_row, rows_at_once

pytestmark = pytest.mark.filterwarnings("ignore::mechvis.errors.EffectlessEdit")

N = 5


@pytest.fixture(scope="module")
def model():
    return mechvis.load(testing.tiny("vit", dtype=torch.float64), preprocess=testing.tiny_preprocess())


def job(model, units="heads", n_views=1, **more):
    """Sums of outputs, so that any row in the wrong place shows."""
    pixels = torch.randn(n_views, N, 3, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight = torch.arange(1.0, 9.0, dtype=torch.float64)

    def measure(clean, edited, positions):
        assert clean.shape[:2] == (n_views, len(positions))
        last = {"second": edited[:, -1] @ weight} if n_views > 1 else {}
        return {"clean/first": clean[0] @ weight, "first": edited[:, 0] @ weight, **last}

    settings = {
        "model": model,
        "n_images": N,
        "n_views": n_views,
        "views": lambda part: pixels[:, part.start : part.stop],
        "units": units_of(model, units) if isinstance(units, str) else units,
        "replace": lambda views, part: lambda site: None,
        "measure": measure,
    }
    return Job(**{**settings, **more})


def same(found, expected, tolerance=1e-11):
    assert found.keys() == expected.keys()
    for name in expected:
        assert np.isfinite(expected[name]).all()
        assert np.abs(found[name] - expected[name]).max() < tolerance


@pytest.mark.parametrize("n_views", [1, 3])
@pytest.mark.parametrize("base", [(), (Unit(0, "heads", 2), Unit(2, "heads", 1))])
def test_every_cut_gives_the_numbers_of_the_plain_twin(model, n_views, base):
    work = job(model, n_views=n_views, base=base)
    expected = compute(work, engine="plain", progress=False)
    assert expected["first"].shape == (12, N)
    assert expected["clean/first"].shape == (N,)
    row = sum(bytes_per_row(model.parts, 8))
    cuts = set()
    for rows in (2, 3, 5, 8, 13, 26, 39, 100, 1000):
        budget = rows * n_views * row
        cuts.add(cut_size(work, budget))
        same(compute(work, budget=budget, progress=False), expected)
    assert {images for images, _ in cuts} >= {1, 2, N}
    assert {units for _, units in cuts} >= {1, 2, 4, 12}


def test_groups_smaller_than_a_piece(model, monkeypatch):
    """On a CPU rows go through a block in groups; the budget counts the working memory of one group only."""
    expected = compute(job(model), progress=False)
    monkeypatch.setattr(engine, "rows_at_once", lambda parts, element: 3)
    same(compute(job(model), progress=False), expected)
    kept, working = bytes_per_row(model.parts, 8)
    assert cut_size(job(model), 3 * working + 13 * kept) == (1, 12)
    assert cut_size(job(model), 3 * working + 13 * kept - 1) == (1, 11)
    assert cut_size(job(model), 10**9)[0] == 3, "more images than go through together bring nothing"
    assert cut_size(job(model, n_views=5), 10**9) == (1, 12)


def test_budget_is_kept(model):
    for rows in range(2, 60):
        for n_views in (1, 2):
            budget = rows * n_views * sum(bytes_per_row(model.parts, 8))
            images, units = cut_size(job(model, n_views=n_views), budget)
            assert images * n_views * (1 + units) * sum(bytes_per_row(model.parts, 8)) <= budget


def test_activations_of_other_images_take_half_of_the_budget_at_most(model):
    row = sum(bytes_per_row(model.parts, 8))
    assert cut_size(job(model), 100 * 13 * row) == (5, 12)
    assert cut_size(job(model, bytes_per_image=200 * row), 100 * 13 * row) == (3, 12)
    assert cut_size(job(model, bytes_per_image=10**12), 100 * 13 * row) == (1, 12)


def test_a_budget_too_small_says_what_is_needed(model):
    needed = 2 * sum(bytes_per_row(model.parts, 8))
    assert compute(job(model), budget=needed, progress=False)
    with pytest.raises(
        OutOfMemory, match=r"one image with one unit needs about .* MiB .* the budget is .* Raise budget"
    ):
        compute(job(model), budget=needed - 1, progress=False)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GB", 8 * 10**9),
        ("1 GiB", 2**30),
        ("500 mb", 5 * 10**8),
        ("1.5KB", 1500),
        ("64", 64),
        (77, 77),
        ("2KiB", 2048),
    ],
)
def test_budget_sizes(text, size):
    assert budget_bytes(text, torch.device("cpu")) == size


@pytest.mark.parametrize("text", ["lots", "8XB", "", 0, -5, 1.5, "-1GB", "0", "nan GB", "inf GB", "1e3000 GB"])
def test_a_budget_that_is_none(text):
    with pytest.raises(BadData, match="is not a size"):
        budget_bytes(text, torch.device("cpu"))


def test_default_budget_is_a_share_of_free_memory(monkeypatch):
    monkeypatch.setattr(engine, "free_memory", lambda: 4 * 10**6)
    assert budget_bytes(None, torch.device("cpu")) == 10**6


def test_out_of_memory_halves_until_it_fits(model, monkeypatch):
    expected = compute(job(model), progress=False)
    tried = []
    wave = engine.wave

    def small_machine(parts, pixels, units, *arguments, **more):
        rows = len(pixels) * (1 + len(units))
        tried.append(rows)
        if rows > 7:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {rows} rows")
        return wave(parts, pixels, units, *arguments, **more)

    monkeypatch.setattr(engine, "wave", small_machine)
    found = compute(job(model), progress=False)
    same(found, expected)
    assert max(tried) == 65
    assert sum(rows <= 7 for rows in tried) == N * 2  # every image alone, units in two halves
    assert len(tried) < 4 * N


def test_out_of_memory_for_good_names_the_cause(model, monkeypatch):
    def full(*arguments, **more):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(engine, "wave", full)
    with pytest.raises(OutOfMemory, match=r"one image with one unit does not fit .* Tried to allocate 2\.00 GiB"):
        compute(job(model), progress=False)


def test_nan_names_unit_and_image(model, monkeypatch):
    wave = engine.wave

    def spoiled(parts, pixels, units, *arguments, **more):
        clean, edited = wave(parts, pixels, units, *arguments, **more)
        for unit, logits in zip(units, edited, strict=True):
            if unit == Unit(1, "heads", 2):
                logits[-1, 3] = float("nan")
        return clean, edited

    monkeypatch.setattr(engine, "wave", spoiled)
    with pytest.raises(NotFinite, match=r"ablating L1H2 gives NaN or Inf on image 4\."):
        compute(job(model), progress=False)
    with pytest.raises(NotFinite, match=r"ablating L1H2 gives NaN or Inf on image 0\."):  # one image per piece
        compute(job(model), budget=13 * sum(bytes_per_row(model.parts, 8)), progress=False)


def test_nan_in_the_clean_run_names_the_image():
    bare = testing.tiny("vit")
    model = mechvis.load(bare, preprocess=testing.tiny_preprocess())
    with torch.no_grad():
        bare.classifier.weight[0, 0] = float("inf")
    with pytest.raises(NotFinite, match=r"the clean output of image 0 is NaN or Inf"):
        compute(job(model), progress=False)


def test_large_finite_outputs_are_fine(model):
    """The quick check is a sum, which may overflow where no output does."""
    from dataclasses import replace

    parts = replace(model.parts, head=lambda x: model.bare.classifier(x) * 0 + 1e308)
    large = mechvis.hooked.HookedViT(model.bare, parts)
    measure = {"measure": lambda clean, edited, positions: {"first": edited[:, 0, :, 0]}}
    assert np.isfinite(compute(job(large, **measure), progress=False)["first"]).all()


def test_bfloat16():
    model = mechvis.load(testing.tiny("vit", dtype=torch.bfloat16), preprocess=testing.tiny_preprocess())
    exact = mechvis.load(testing.tiny("vit").bfloat16().float(), preprocess=testing.tiny_preprocess())

    def measure(clean, edited, positions):
        return {"first": edited[:, 0, :, 0]}

    found = compute(job(model, measure=measure), progress=False)["first"]
    assert found.dtype == np.float32
    assert np.abs(found - compute(job(exact, measure=measure), progress=False)["first"]).max() < 0.1


def test_bad_calls(model):
    with pytest.raises(UnknownName, match="unknown engine 'fast'"):
        compute(job(model), engine="fast")
    with pytest.raises(BadData, match="at least one unit"):
        compute(job(model, units=[]))
    bare = testing.tiny("vit", dtype=torch.float64)
    training = mechvis.load(bare, preprocess=testing.tiny_preprocess())
    bare.train()
    with pytest.raises(TrainMode):
        compute(job(training))


def test_pieces_on_disk_are_used_and_damage_is_repaired(model, tmp_path, caplog):
    budget = 5 * sum(bytes_per_row(model.parts, 8))
    seen = []

    def work():
        base = job(model, plan={"what": "test"})
        return job(model, plan={"what": "test"}, views=lambda part: (seen.append(part), base.views(part))[1])

    expected = compute(work(), budget=budget, progress=False)
    seen.clear()
    first = compute(work(), budget=budget, folder=tmp_path, progress=False)
    assert len(seen) == 15
    seen.clear()
    second = compute(work(), folder=tmp_path, progress=False)  # another budget: the cut on disk holds
    assert seen == []
    pieces = sorted(tmp_path.glob("*.safetensors"))
    assert len(pieces) == 15
    data = bytearray(pieces[3].read_bytes())
    data[-1] ^= 1
    pieces[3].write_bytes(data)
    pieces[5].write_bytes(pieces[5].read_bytes()[:20])
    pieces[7].with_suffix(".json").write_text("{")
    pieces[8].with_suffix(".json").write_text("[]")
    pieces[9].with_suffix(".json").unlink()
    pieces[11].unlink()
    third = compute(work(), folder=tmp_path, progress=False)
    assert len(seen) == 6
    assert "computing this piece again" in caplog.text
    for name in expected:
        assert np.array_equal(first[name], expected[name])
        assert np.array_equal(second[name], expected[name])
        assert np.array_equal(third[name], expected[name])


def test_another_job_in_the_same_folder_is_refused(model, tmp_path):
    compute(job(model, plan={"model": "a", "edit": "zero"}), folder=tmp_path, progress=False)
    with pytest.raises(ResultMismatch, match=r"differs in: edit\. edit: there 'zero', now 'mean'"):
        compute(job(model, plan={"model": "a", "edit": "mean"}), folder=tmp_path, progress=False)


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError("broken disk")])
def test_interrupted_work_goes_on(model, tmp_path, failure):
    budget = 5 * sum(bytes_per_row(model.parts, 8))
    expected = compute(job(model), budget=budget, progress=False)
    count = []

    def stops(views, part):
        count.append(part)
        if len(count) == 7:
            raise failure
        return lambda site: None

    with testing.assert_untouched(model.bare), pytest.raises((KeyboardInterrupt, RuntimeError)):
        compute(job(model, replace=stops), budget=budget, folder=tmp_path, progress=False)
    assert len(list(tmp_path.glob("*.safetensors"))) == 6
    found = compute(job(model, replace=stops), folder=tmp_path, progress=False)
    assert len(count) == 7 + 9
    for name in expected:
        assert np.array_equal(found[name], expected[name])


def test_untouched(model):
    with testing.assert_untouched(model):
        compute(job(model), progress=False)
        compute(job(model), engine="plain", progress=False)


def test_progress_goes_to_the_end(model, capsys):
    compute(job(model), budget=5 * sum(bytes_per_row(model.parts, 8)), what="my work")
    assert "my work" in capsys.readouterr().err


def test_default_group_is_that_of_the_model(model):
    assert engine._at_once(job(model)) == rows_at_once(model.parts, 8)


# images of the next piece are read while one is computed


def slow_job(model, log, seconds=0.0, fails=None, units=("heads", "heads", "heads")):
    """A job that notes what it reads and computes, in which thread, and takes its time for both."""
    base = job(model, units=[Unit(0, kind, i) for i, kind in enumerate(units)])

    def views(part):
        assert not torch.is_grad_enabled()
        log.append(("read", part.start, threading.current_thread().name))
        time.sleep(seconds)
        if part.start == fails:
            raise OSError(f"image {part.start} is broken")
        return base.views(part)

    def replace(views, part):
        log.append(("compute", part.start, threading.current_thread().name))
        time.sleep(seconds)
        return lambda site: None

    return dataclasses.replace(base, views=views, replace=replace, plan={"what": "test"})


def one_image_each(model):
    return 4 * sum(bytes_per_row(model.parts, 8))


@pytest.mark.parametrize("keep", [False, True])
def test_reading_ahead_gives_the_same_numbers_and_saves_the_time(model, tmp_path, keep):
    seconds, found, took = 0.1, {}, {}
    for ahead in (False, True):
        log, folder = [], tmp_path / str(ahead) if keep else None
        started = time.perf_counter()
        work = slow_job(model, log, seconds)
        found[ahead] = compute(work, budget=one_image_each(model), folder=folder, progress=False, prefetch=ahead)
        took[ahead] = time.perf_counter() - started
        assert [(what, at) for what, at, _ in log if what == "compute"] == [("compute", at) for at in range(N)]
        assert [at for what, at, _ in log if what == "read"] == list(range(N))
        readers = {thread for what, _, thread in log if what == "read"}
        assert readers == ({"mechvis reader_0"} if ahead else {"MainThread"})
        # Never further ahead than one piece: a read begins after the piece before last was computed.
        events = [(what, at) for what, at, _ in log]
        for at in range(2, N):
            assert events.index(("read", at)) > events.index(("compute", at - 2))
    for name in found[False]:
        assert np.array_equal(found[False][name], found[True][name])
    assert took[True] < took[False] - (N - 1) * seconds * 0.5, took
    assert not any("mechvis reader" in thread.name for thread in threading.enumerate())


@pytest.mark.parametrize("ahead", [False, True])
def test_an_image_that_cannot_be_read_stops_the_job_at_its_piece(model, tmp_path, ahead):
    log = []
    with pytest.raises(OSError, match="image 3 is broken"):
        work = slow_job(model, log, fails=3)
        compute(work, budget=one_image_each(model), folder=tmp_path, progress=False, prefetch=ahead)
    assert [at for what, at, _ in log if what == "compute"] == [0, 1, 2]
    assert len(list(tmp_path.glob("*.safetensors"))) == 3, "what was finished is kept"
    assert not list(tmp_path.glob("*.claim"))
    assert not any("mechvis" in thread.name for thread in threading.enumerate())


def test_an_interrupt_stops_the_reader(model, tmp_path):
    log = []
    work = slow_job(model, log, seconds=0.02)

    def stops(views, part):
        if part.start == 2:
            raise KeyboardInterrupt
        return work.replace(views, part)

    with testing.assert_untouched(model.bare), pytest.raises(KeyboardInterrupt):
        stopped = dataclasses.replace(work, replace=stops)
        compute(stopped, budget=one_image_each(model), folder=tmp_path, progress=False)
    assert max(at for what, at, _ in log if what == "read") <= 3
    assert not any("mechvis" in thread.name for thread in threading.enumerate())
    assert not list(tmp_path.glob("*.claim"))
    found = compute(slow_job(model, log), folder=tmp_path, progress=False)
    expected = compute(slow_job(model, []), budget=one_image_each(model), progress=False, prefetch=False)
    for name in expected:
        assert np.array_equal(found[name], expected[name])


def test_out_of_memory_does_not_read_again(model, monkeypatch):
    log, wave = [], engine.wave
    expected = compute(slow_job(model, []), progress=False)

    def small_machine(parts, pixels, units, *arguments, **more):
        if len(pixels) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return wave(parts, pixels, units, *arguments, **more)

    monkeypatch.setattr(engine, "wave", small_machine)
    same(compute(slow_job(model, log), progress=False), expected)
    assert [at for what, at, _ in log if what == "read"] == [0]
