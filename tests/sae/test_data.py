"""Where rows come from: every source hands out the same rows again from a position, and names what does not fit."""

import pytest
import torch

import mechvis
import sae
from mechvis.errors import BadData, NotFinite, ResultMismatch, ShapeMismatch
from sae.data import IteratorRows, TensorRows, Together, from_model, from_store, sample, source

SITE = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def model():
    return mechvis.load("scenes-vit")


@pytest.fixture(scope="module")
def images():
    return mechvis.data.scenes(n=24, seed=3)


@pytest.fixture(scope="module")
def store(model, images, tmp_path_factory):
    out = tmp_path_factory.mktemp("store") / "acts"
    return mechvis.harvest(model, images, [SITE, "blocks.2.hook_resid_post"], out=out, progress=False)


def taken(source, n):
    return [next(source) for _ in range(n)]


def equal(a, b) -> bool:
    return all(
        torch.equal(x.activations[s], y.activations[s]) for x, y in zip(a, b, strict=True) for s in x.activations
    )


def test_tensors_give_every_row_once_per_epoch_in_a_new_order():
    rows = torch.arange(20.0)[:, None]
    found = TensorRows(rows, size=5, seed=1)
    epochs = [torch.cat([next(found).activations["site"][:, 0] for _ in range(4)]) for _ in range(2)]
    assert all(sorted(epoch.tolist()) == list(range(20)) for epoch in epochs)
    assert not torch.equal(*epochs)


def test_a_position_gives_the_same_rows_again(model, images, store):
    sources = [
        lambda: TensorRows(torch.randn(50, 3, generator=torch.Generator().manual_seed(0)), size=7),
        lambda: from_store(store, SITE, size=100),
        lambda: from_model(model, images, SITE, size=100, buffer="2MB"),
        lambda: IteratorRows(lambda: iter(torch.arange(60.0).view(20, 3, 1))),
    ]
    for make in sources:
        first = make()
        taken(first, 3)
        state = first.state_dict()
        expected = taken(first, 12)
        again = make()
        again.load_state_dict(state)
        assert equal(taken(again, 12), expected)


def test_parts_of_processes_make_the_whole(store):
    whole = from_store(store, SITE, size=64)
    parts = [from_store(store, SITE, size=64, part=(rank, 2)) for rank in range(2)]
    for _ in range(5):
        expected = next(whole).activations[SITE]
        assert torch.equal(torch.cat([next(part).activations[SITE] for part in parts]), expected)
    rows = torch.randn(40, 2)
    whole, parts = TensorRows(rows, size=8), [TensorRows(rows, size=8, part=(r, 2)) for r in range(2)]
    for _ in range(7):
        expected = next(whole).activations["site"]
        assert torch.equal(torch.cat([next(part).activations["site"] for part in parts]), expected)


def test_types_of_tokens_come_from_the_model(store, model, images):
    for made in (from_store(store, SITE, size=200), from_model(model, images, SITE, size=200)):
        batch = next(made)
        assert made.type_names == ("cls", "patch")
        assert torch.equal(batch.types == 0, batch.token == 0)
        assert "image" in batch.where(0) and "token" in batch.where(0)


def test_store_and_model_train_the_same_kind_of_dictionary(store, model, images):
    settings = sae.Training(tokens=128 * 6, batch=128, init_rows=256, log_every=3)
    one = sae.train(store, sae.TopK(n_latents=64, k=4), settings, sites=SITE, progress=False)
    two = sae.train(from_model(model, images, SITE, size=128), sae.TopK(n_latents=64, k=4), settings, progress=False)
    for run, kind in ((one, "store"), (two, "model")):
        known = run.dictionary.provenance["rows"]
        assert known["kind"] == kind and known["model"]["fingerprint"] == model.fingerprint
    assert one.dictionary.ends.reads == {SITE: 128}


def test_a_transcoder_and_a_crosscoder_train_from_one_store(store):
    settings = sae.Training(tokens=128 * 6, batch=128, init_rows=256, log_every=3)
    later = "blocks.2.hook_resid_post"
    jobs = {
        "transcoder": sae.Job(architecture=sae.TopK(n_latents=64, k=4), reads=SITE, writes=later),
        "crosscoder": sae.Job(architecture=sae.TopK(n_latents=64, k=4), reads=(SITE, later)),
    }
    run = sae.train(store, jobs, settings, progress=False)
    assert run.dictionaries["transcoder"].ends.kind == "transcoder"
    assert run.dictionaries["crosscoder"].ends.kind == "crosscoder"
    assert run.dictionaries["crosscoder"].W_dec.shape == (64, 256)


def test_two_models_side_by_side(model, images, store):
    both = Together({"a": from_model(model, images, SITE, size=50), "b": from_model(model, images, SITE, size=50)})
    batch = next(both)
    assert set(batch.activations) == {f"a/{SITE}", f"b/{SITE}"}
    assert torch.equal(batch.activations[f"a/{SITE}"], batch.activations[f"b/{SITE}"])
    state = both.state_dict()
    expected = next(both)
    both.load_state_dict(state)
    assert equal([next(both)], [expected])
    odd = Together(
        {"a": from_model(model, images, SITE, size=50), "b": from_model(model, images, SITE, size=50, seed=4)}
    )
    with pytest.raises(ResultMismatch, match="same images, tokens, seed and buffer"):
        next(odd)
    with pytest.raises(BadData, match="two sources"):
        Together({"a": from_model(model, images, SITE, size=50)})


def test_a_sample_leaves_a_source_where_it_was(store):
    makes = [
        lambda: from_store(store, SITE, size=100),
        lambda: TensorRows(torch.arange(50.0)[:, None], size=7),
        lambda: IteratorRows(iter(torch.arange(60.0).view(20, 3, 1))),
    ]
    for make in makes:
        expected, looked = taken(make(), 6), make()
        rows = sample(looked, 8)
        assert len(next(iter(rows.values()))) == 8
        assert equal(taken(looked, 6), expected)


def test_what_cannot_be_rows_is_refused(store):
    with pytest.raises(ShapeMismatch, match="as many at every site"):
        TensorRows({"a": torch.zeros(4, 2), "b": torch.zeros(5, 2)}, size=2)
    with pytest.raises(ShapeMismatch, match=r"\[row d\]"):
        TensorRows(torch.zeros(4), size=2)
    with pytest.raises(ShapeMismatch, match="3 types for 4 rows"):
        TensorRows(torch.zeros(4, 2), size=2, types=torch.zeros(3))
    with pytest.raises(NotFinite, match="row 1 of site"):
        TensorRows(torch.tensor([[0.0], [torch.inf]]), size=1)
    with pytest.raises(BadData, match="not from a int"):
        source(3, size=2)
    with pytest.raises(BadData, match="yields nothing"):
        next(IteratorRows(lambda: iter([])))
    with pytest.raises(ResultMismatch, match="their seed was 0, not 1"):
        TensorRows(torch.zeros(4, 2), size=2, seed=1).load_state_dict(
            TensorRows(torch.zeros(4, 2), size=2).state_dict()
        )
    one = IteratorRows(iter(torch.zeros(3, 2, 2)))
    state = {"seen": 2}
    with pytest.raises(BadData, match="neither be started again"):
        one.load_state_dict(state)


@pytest.mark.parametrize("shards", [1, 2])
def test_stores_of_few_files_end_and_start_again(model, images, tmp_path, shards):
    """An endless loop over a single cache file is a known defect elsewhere (SAELens #11)."""
    store = mechvis.harvest(
        model, images, SITE, out=tmp_path / "s", progress=False, shard="800KB" if shards == 1 else "400KB"
    )
    rows = from_store(store, SITE, size=500)
    seen = sum(len(next(rows)) for _ in range(6))
    assert seen == 3000 and rows.state_dict()["epoch"] >= 1
