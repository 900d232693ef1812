"""Dictionaries as values: shapes, scaling, files, gradients, folding."""

import json

import pytest
import torch

import sae
from mechvis.errors import BadData, NotFinite, RefusedMethod, ResultMismatch, ShapeMismatch, StoreCorrupt, UnknownName
from sae.dictionary import MANIFEST, WEIGHTS
from sae.ends import Ends
from sae.normaliser import KINDS, factors, scaled
from sae.select import batch_support

TOPK = sae.TopK(n_latents=24, k=3)


@pytest.fixture
def rows():
    return torch.randn(200, 8, generator=torch.Generator().manual_seed(0)) * 3 + 1


@pytest.fixture
def d(rows):
    return sae.start(TOPK, {"site": rows})


def test_leading_axes_are_kept(d, rows):
    tokens = rows.view(10, 20, 8)
    assert d.encode(tokens).shape == (10, 20, 24)
    assert torch.equal(d.encode(tokens).view(200, 24), d.encode(rows))
    assert torch.equal(d(tokens).view(200, 8), d(rows))


def test_active_is_encode_in_flat_lists(d, rows):
    support, values = d.active(rows)
    assert torch.equal(support.dense(values), d.encode(rows))
    with pytest.raises(ShapeMismatch, match="rows"):
        d.active(rows.view(10, 20, 8))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "input_norm"])
def test_scaling_is_undone(rows, kind):
    """A dictionary that writes all it reads gives back what the model has, whatever the scaling."""
    d = sae.start(sae.TopK(n_latents=16, k=16, normalise=kind), {"site": rows})
    with torch.no_grad():
        d.W_enc.copy_(torch.cat([torch.eye(8), -torch.eye(8)]))
        d.W_dec.copy_(d.W_enc)
    assert torch.allclose(d(rows), rows, atol=1e-4)


def test_what_scaling_means(rows):
    x = rows.double()
    assert (scaled(x, [8], "mean_square", factors(x, [8], "mean_square")).x.square().sum(1).mean()) == pytest.approx(1)
    assert scaled(x, [8], "mean_norm", factors(x, [8], "mean_norm")).x.norm(dim=1).mean() == pytest.approx(8**0.5)
    each = scaled(x, [8], "token_norm", factors(x, [8], "token_norm")).x.norm(dim=1)
    assert torch.allclose(each, torch.full_like(each, 8**0.5))
    layer = scaled(x, [8], "layer_norm", factors(x, [8], "layer_norm")).x
    assert float(layer.mean(1).abs().max()) < 1e-12 and torch.allclose(
        layer.std(1), torch.ones(200).double(), atol=1e-4
    )


def test_sites_are_scaled_each_on_its_own(rows):
    both = {"a": rows, "b": rows * 100}
    d = sae.start(TOPK, both)
    x, _ = d.normalised(both)
    assert torch.allclose(x[:, :8], x[:, 8:], atol=1e-5)


def test_rows_that_are_scaled_by_their_norm_need_it_to_decode(rows):
    d = sae.start(sae.TopK(n_latents=24, k=3, normalise="token_norm"), {"site": rows})
    with pytest.raises(BadData, match="like=x"):
        d.decode(d.encode(rows))
    with pytest.raises(RefusedMethod, match="not known when it is used"):
        sae.start(sae.TopK(n_latents=24, k=3, normalise="token_norm"), {"a": rows, "b": rows}, reads="a", writes="b")


def test_a_transcoder_reads_one_site_and_writes_another(rows):
    y = torch.relu(rows @ torch.randn(8, 12, generator=torch.Generator().manual_seed(1)))
    d = sae.start(sae.TopK(n_latents=64, k=8, skip=True), {"in": rows, "out": y}, reads="in", writes="out")
    assert d.ends.kind == "transcoder" and d(rows).shape == (200, 12)
    assert not d.architecture.subtracts_bias(d.ends) and d.W_skip.shape == (12, 8) and not d.W_skip.any()
    with pytest.raises(BadData, match="like=x"):
        d.decode(d.encode(rows))


def test_gradients_flow_to_the_activations(d, rows):
    x = rows[:4].double().requires_grad_()
    d = d.double()
    assert torch.autograd.gradcheck(lambda x: d(x), (x,), atol=1e-6)


def test_saved_and_loaded_it_is_the_same(d, rows, tmp_path):
    d.save(tmp_path / "d")
    loaded = sae.load(tmp_path / "d")
    assert torch.equal(loaded(rows), d(rows)) and loaded.fingerprint == d.fingerprint
    assert loaded.architecture == TOPK and loaded.ends == d.ends
    manifest = json.loads((tmp_path / "d" / MANIFEST).read_text())
    assert manifest["format"] == "mechvis.dictionary" and manifest["architecture"]["name"] == "topk"


def test_what_is_damaged_or_foreign_is_named(d, tmp_path):
    d.save(tmp_path)
    file = tmp_path / WEIGHTS
    data = bytearray(file.read_bytes())
    data[-3] ^= 4
    file.write_bytes(bytes(data))
    with pytest.raises(StoreCorrupt, match=r"weights\.safetensors is damaged"):
        sae.load(tmp_path)
    file.unlink()
    with pytest.raises(StoreCorrupt, match="is missing"):
        sae.load(tmp_path)
    with pytest.raises(StoreCorrupt):
        sae.load(tmp_path / "nowhere")
    (tmp_path / MANIFEST).write_text(json.dumps({"format": "mechvis.record", "version": 1}))
    with pytest.raises(ResultMismatch, match="does not hold a dictionary"):
        sae.load(tmp_path)


def test_nan_is_not_saved(d, tmp_path):
    with torch.no_grad():
        d.W_enc[0, 0] = torch.nan
    with pytest.raises(NotFinite, match="W_enc"):
        d.save(tmp_path)


def test_free_rows_are_folded_without_changing_what_is_written(rows, tmp_path):
    d = sae.start(sae.TopK(n_latents=24, k=3, decoder="free"), {"site": rows})
    with torch.no_grad():
        d.W_dec.mul_(torch.rand(24, 1, generator=torch.Generator().manual_seed(1)) + 0.5)
        d.b_enc.normal_(generator=torch.Generator().manual_seed(2))
    folded = d.folded()
    assert torch.allclose(folded.W_dec.norm(dim=1), torch.ones(24), atol=1e-6)
    assert torch.allclose(folded(rows), d(rows), atol=1e-5)
    d.save(tmp_path)
    assert torch.allclose(sae.load(tmp_path)(rows), d(rows), atol=1e-5)


def test_wrong_shapes_and_names_say_what_is_expected(d, rows):
    with pytest.raises(ShapeMismatch, match="reads rows of width 8"):
        d.encode(rows[:, :7])
    with pytest.raises(ShapeMismatch, match="24 latents"):
        d.decode(torch.zeros(3, 23))
    with pytest.raises(BadData, match="reads 'site'; the activations have other"):
        d.encode({"other": rows})
    with pytest.raises(UnknownName, match="elsewhere"):
        sae.start(TOPK, {"site": rows}, reads="elsewhere")
    with pytest.raises(BadData, match="k=30 of 24 latents"):
        sae.TopK(n_latents=24, k=30)
    with pytest.raises(BadData, match="no row"):
        sae.start(TOPK, {"site": rows[:0]})
    with pytest.raises(NotFinite):
        sae.start(TOPK, {"site": rows * torch.nan})


def test_settings_come_back_from_a_file_and_strange_ones_are_refused():
    from sae.architectures import named

    for architecture in (TOPK, sae.BatchTopK(n_latents=9, k=2, row_limit=None)):
        known = json.loads(json.dumps(architecture.to_json()))
        assert named(known["name"]).from_json(known) == architecture
    with pytest.raises(BadData, match="topk has no setting 'l1'"):
        sae.TopK.from_json({"n_latents": 4, "k": 1, "l1": 3})
    with pytest.raises(BadData, match="n_latents"):
        sae.TopK.from_json({"k": 1})
    with pytest.raises(UnknownName, match="batch_topk"):
        named("batchtopk")


def test_ends_keep_their_order_in_files():
    ends = Ends(reads={"b": 2, "a": 3})
    assert Ends.from_json(json.loads(json.dumps(ends.to_json()))) == ends
    assert list(ends.split(torch.zeros(4, 5))) == ["b", "a"] and ends.kind == "crosscoder"
    with pytest.raises(BadData, match="width of 'a' is 0"):
        Ends(reads={"a": 0})


# -- the choice over a batch -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("spread", [0.0, 0.5, 2.0])
def test_the_batch_choice_is_that_of_a_full_sort(seed, spread):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(64, 40, generator=generator) * torch.exp(spread * torch.randn(64, 1, generator=generator))
    support, least = batch_support(scores, 3)
    values = scores.flatten().sort(descending=True).values
    expected = scores >= values[3 * 64 - 1].clamp_min(1e-30)
    assert torch.equal(support.mask(), expected) and least == scores[expected].min()


def test_a_row_with_ten_times_the_norm_does_not_take_the_batch():
    """1 % of tokens with ten times the norm took 92 % of the entries (sae.md 2.6, run there)."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(1000, 1024, generator=generator)
    scores[:10] *= 10
    without, _ = batch_support(scores, 32)
    limited, _ = batch_support(scores, 32, row_limit=8)
    share = without.counts[:10].sum() / without.counts.sum()
    assert share > 0.1 and without.counts[:10].max() > 8 * 32
    assert limited.counts.max() <= 8 * 32 and limited.counts.sum() == 32 * 1000
    types = torch.zeros(1000, dtype=torch.long)
    types[:10] = 1
    fair, _ = batch_support(scores, 32, types=types)
    assert fair.counts[:10].sum() == 320 and fair.counts[10:].sum() == 32 * 990


def test_only_what_is_positive_is_kept():
    support, least = batch_support(-torch.rand(4, 6), 2)
    assert len(support) == 0 and least == torch.inf


def test_the_threshold_reproduces_training_sparsity_alone(rows):
    x = rows.repeat(5, 1)
    run = sae.train(
        x, sae.BatchTopK(n_latents=32, k=4), sae.Training(tokens=64 * 400, batch=64, lr=1e-3), progress=False
    )
    assert float(run.dictionary.threshold) > 0
    alone = torch.stack([(run.dictionary.encode(row[None]) > 0).sum() for row in rows]).float().mean()
    assert float(alone) == pytest.approx(4, rel=0.15)
    with pytest.raises(BadData, match="no threshold yet"):
        sae.start(sae.BatchTopK(n_latents=32, k=4), {"site": rows}).encode(rows)
