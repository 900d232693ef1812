"""Two planted models through crosscoders: what is shared, what is exclusive, and what only looks exclusive."""

import numpy as np
import pytest
import torch
from torch import Tensor

import sae
from mechvis.errors import BadData, NotFinite, ShapeMismatch, StoreCorrupt, UnknownName
from mechvis.testing import assert_close
from mechvis.testing.planted_pairs import PlantedPairs, planted_pairs
from sae.architectures import BatchTopKCrosscoder, Crosscoder, TopK
from sae.diffing import ModelDiff, latent_scaling, model_diff, relative_norms, shuffled_pairs
from sae.diffing.compare import matches

SIZES = {"shared": 40, "only_a": 10, "only_b": 10, "weak": 8, "active": 3}


def rows_of(pairs: PlantedPairs) -> dict[str, Tensor]:
    return {"a": torch.tensor(pairs.a).float(), "b": torch.tensor(pairs.b).float()}


def trained(pairs: PlantedPairs, architecture, tokens: int = 120_000, lr: float = 6e-3, seed: int = 0):
    settings = sae.Training(tokens=tokens, batch=256, lr=lr, init_rows=4000, seed=seed)
    return sae.train(rows_of(pairs), architecture, settings, progress=False).dictionary


@pytest.fixture(scope="module")
def pairs() -> PlantedPairs:
    return planted_pairs(12_000, **SIZES)


@pytest.fixture(scope="module")
def others() -> PlantedPairs:
    """Other rows of the same models."""
    return planted_pairs(8000, rows_seed=9, **SIZES)


@pytest.fixture(scope="module")
def l1(pairs):
    return trained(pairs, Crosscoder(n_latents=96, l1=2.0))


@pytest.fixture(scope="module")
def batch_topk(pairs):
    return trained(pairs, BatchTopKCrosscoder(n_latents=96, k=3))


def latents_of(d, pairs: PlantedPairs) -> tuple[np.ndarray, np.ndarray]:
    """The latent whose codes go most with each planted concept's, and how much (correlation)."""
    codes = d.encode(rows_of(pairs)).detach().numpy()
    a, b = (t - t.mean(0) for t in (pairs.codes, codes))
    norms = np.linalg.norm(a, axis=0)[:, None] * np.linalg.norm(b, axis=0)[None]
    found = a.T @ b / np.maximum(norms, 1e-9)
    return found.argmax(1), found.max(1)


def share_right(diff: ModelDiff, d, pairs: PlantedPairs, owner: str, *, weak: bool | None = None, by: str = "class"):
    """Share of an owner's concepts that have a latent of their own of the right class."""
    latent, correlation = latents_of(d, pairs)
    wanted = "shared" if owner == "shared" else f"only {owner}"
    concepts = pairs.concepts(owner)
    concepts = concepts if weak is None else concepts[pairs.weak[concepts] == weak]
    kinds = diff.table[by].to_numpy()[latent[concepts]]
    return float(((correlation[concepts] > 0.9) & (kinds == wanted)).mean())


@pytest.mark.parametrize("name", ["l1", "batch_topk"])
def test_shared_and_exclusive_concepts_are_found(name, others, request):
    """Models of different widths: at least nine in ten exclusive concepts have a latent of their class."""
    d = request.getfixturevalue(name)
    diff = model_diff(d, rows_of(others), batch=400)
    assert share_right(diff, d, others, "a") >= 0.9
    assert share_right(diff, d, others, "b") >= 0.9
    assert share_right(diff, d, others, "shared", weak=False) >= 0.95
    assert diff.tables["models"]["fvu"].max() < 0.1
    assert (diff.tables["models"]["fvu_low"] <= diff.tables["models"]["fvu"]).all()


def test_latent_scaling_catches_false_exclusives_of_the_l1_crosscoder(l1, others):
    """Shared concepts that model a writes at a fifth of the strength: the penalty drives them to zero there."""
    diff = model_diff(l1, rows_of(others), batch=400)
    assert share_right(diff, l1, others, "shared", weak=True, by="class_by_norm") <= 0.1  # the trap works
    assert share_right(diff, l1, others, "shared", weak=True) >= 0.9
    latent, _ = latents_of(l1, others)
    assert set(latent[others.weak]) & set(diff.false_exclusives())
    # ν is the planted strength, though the decoder's norm there is zero.
    at = latent[np.flatnonzero(others.weak)]
    assert_close(torch.tensor(diff.table["ratio_error"].to_numpy()[at].mean()), torch.tensor(0.2).double(), 0.15)
    assert relative_norms(l1)[at].min() > 0.9


def test_decoupled_concepts_are_shared_by_their_reconstruction(others):
    """One concept as two latents, one per model: exclusive by norm and by error, shared by the reconstruction."""
    rows = rows_of(others)
    d = sae.start(Crosscoder(n_latents=2, normalise="none"), rows).double()
    concept = others.concepts("shared")[0]
    a, b = (torch.tensor(t[concept]) for t in (others.atoms_a, others.atoms_b))
    with torch.no_grad():
        d.b_dec.zero_()
        d.W_enc.copy_(torch.stack([torch.cat([a, b]), torch.cat([a, b])]))
        d.b_enc.fill_(-1.0)
        d.W_dec.copy_(torch.stack([torch.cat([a, 0 * b]), torch.cat([0 * a, b])]))
    found = latent_scaling(d, rows, batch=1000)
    assert (found.ratio_reconstruction > 0.9).all()
    diff = model_diff(d, rows, batch=1000)
    assert diff.table["class_by_norm"].to_list() == ["only a", "only b"]
    assert diff.table["class"].to_list() == ["shared", "shared"]


def test_slopes_are_least_squares(l1, others):
    """Streamed sums against numpy's solver, for each latent by itself."""
    rows = {name: t[:1000] for name, t in rows_of(others).items()}
    with torch.no_grad():
        x, y = l1.normalised(rows)
        f = l1.architecture.encode(l1, x).double().numpy()
        y_hat = l1.architecture.decode(l1, torch.tensor(f).float()).double().numpy()
    error = y.double().numpy() - y_hat
    W = l1.W_dec.detach().double().numpy()
    own = latent_scaling(l1, rows, batch=500)
    for latent in np.flatnonzero((f > 0).sum(0) > 20)[:5]:
        halves = []
        for half in (slice(0, 500), slice(500, 1000)):
            A = np.stack([f[half, latent], np.ones(500)], 1)
            target = error[half] + f[half, latent][:, None] * W[latent]
            halves.append(np.linalg.lstsq(A, target, rcond=None)[0][0])
        expected = [np.sqrt(max(0, halves[0][c] @ halves[1][c])) for c in (slice(0, 48), slice(48, 112))]
        assert np.allclose(own.error[latent], expected, rtol=1e-4, atol=1e-6)


def test_same_space_measures_along_the_stronger_decoder():
    """Model b is model a with one concept added and one at half its strength."""
    pairs = planted_pairs(6000, shared=6, only_a=0, only_b=2, widths=(32, 32), active=1, noise=0.01)
    atoms_a = pairs.atoms_b * (pairs.owner == "shared")[:, None]
    atoms_a[0] *= 0.5
    rows = {"a": torch.tensor(pairs.codes @ atoms_a).float(), "b": torch.tensor(pairs.b).float()}
    d = sae.start(Crosscoder(n_latents=8, normalise="none"), rows)
    with torch.no_grad():
        d.b_dec.zero_()
        d.b_enc.fill_(-0.2)
        d.W_enc.copy_(torch.tensor(np.concatenate([0 * atoms_a, pairs.atoms_b], 1)))
        d.W_dec.copy_(torch.tensor(np.concatenate([0 * atoms_a, pairs.atoms_b], 1)))
    found = latent_scaling(d, rows, same_space=True, batch=1000)
    assert abs(found.ratio_error[0] - 0.5) < 0.05 and (found.ratio_error[1:6] > 0.9).all()
    assert (np.abs(found.ratio_error[6:]) < 0.1).all()
    with pytest.raises(BadData, match="same widths"):
        latent_scaling(l1_untrained(), rows_of(planted_pairs(64, **SIZES)), same_space=True)


def l1_untrained():
    return sae.start(Crosscoder(n_latents=8), rows_of(planted_pairs(64, **SIZES)))


def test_shuffled_pairs_share_nothing(pairs, others, batch_topk):
    """The control: pairs that do not belong together have no shared latents."""
    shuffled = trained(pairs.shuffled(), BatchTopKCrosscoder(n_latents=128, k=6), tokens=100_000)
    control = model_diff(shuffled, shuffled_pairs(rows_of(others), keep="a"), batch=400)
    assert control.facts["shared_share"] < 0.1 and control.facts["alive"] > 40
    diff = model_diff(batch_topk, rows_of(others), control=control, batch=400)
    assert diff.facts["control_shared_share"] < 0.1 < 0.5 < diff.facts["shared_share"]
    assert any("On shuffled pairs" in line for line in diff.caveats)


@pytest.mark.slow
def test_another_seed_finds_the_same_latents(pairs, others, batch_topk):
    other = trained(pairs, BatchTopKCrosscoder(n_latents=96, k=3), seed=1)
    diff = model_diff(batch_topk, rows_of(others), other=other, batch=400)
    latent, correlation = latents_of(batch_topk, others)
    found = diff.table["match"].to_numpy()[latent[correlation > 0.95]]
    assert np.median(found) > 0.95
    assert (matches(batch_topk.W_dec.detach(), batch_topk.W_dec.detach()) > 0.999).all()


def test_the_record_saves_loads_and_reports(batch_topk, others, tmp_path):
    diff = model_diff(batch_topk, rows_of(others), batch=400, min_active=5)
    diff.save(tmp_path / "diff")
    again = ModelDiff.load(tmp_path / "diff")
    assert again.facts == diff.facts and again.table.equals(diff.table)
    assert set(again.latents("only a")) == set(diff.latents("only a"))
    text = again.report(tmp_path / "diff.html").read_text()
    assert "Relative decoder norm of each latent" in text and "How far to believe it" in text
    classes = diff.tables["classes"]
    assert classes["latents"].sum() == classes["by_norm"].sum() == 96
    with pytest.raises(UnknownName, match="only a"):
        diff.latents("only c")
    with pytest.raises(UnknownName, match="class_by_norm"):
        diff.latents("shared", by="norm")
    sae_record = sae.start(TopK(n_latents=4, k=1), {"x": torch.randn(9, 4)})
    with pytest.raises(BadData, match="two models are compared"):
        model_diff(sae_record, {"x": torch.randn(9, 4)})
    manifest = tmp_path / "diff" / "record.json"
    manifest.write_text(manifest.read_text().replace("model_diff", "something"))
    with pytest.raises(StoreCorrupt, match="its checksum does not fit"):
        ModelDiff.load(tmp_path / "diff")


def test_models_are_told_apart_by_their_names():
    rows = {f"{m}/{s}": torch.randn(40, 4, generator=torch.Generator().manual_seed(1)) for m in "pq" for s in "xy"}
    d = sae.start(Crosscoder(n_latents=6), rows)
    assert np.allclose(relative_norms(d), 0.5)
    with torch.no_grad():
        d.W_dec[0, :8] = 0
        d.W_dec[1, 8:] = 0
        d.W_dec[2] = 0
    assert np.allclose(relative_norms(d)[:4], [1, 0, 0.5, 0.5])
    assert np.allclose(relative_norms(d, models={"one": ["q/x", "q/y"], "two": ["p/x", "p/y"]})[:2], [0, 1])
    with pytest.raises(BadData, match="every site belongs to one of them"):
        relative_norms(d, models={"one": ["q/x"], "two": ["p/x", "p/y"]})
    with pytest.raises(UnknownName, match="q/x"):
        relative_norms(d, models={"one": ["q/z"], "two": ["p/x", "p/y"]})


def test_bad_rows_and_limits_are_refused():
    rows = rows_of(planted_pairs(64, **SIZES))
    d = l1_untrained()
    with pytest.raises(NotFinite, match="rows of b hold NaN"):
        broken = {**rows, "b": rows["b"].clone()}
        broken["b"][3, 0] = torch.nan
        latent_scaling(d, broken)
    with pytest.raises(BadData, match="two halves"):
        latent_scaling(d, [rows])
    with pytest.raises(BadData, match="never ends"):
        latent_scaling(d, sae.TensorRows(rows, size=16))
    assert latent_scaling(d, sae.TensorRows(rows, size=16), limit=48).n == 48
    with pytest.raises(BadData, match="exclusive=0"):
        model_diff(d, rows, exclusive=0)
    with pytest.raises(BadData, match="do not vary"):
        model_diff(d, {name: torch.ones_like(t) for name, t in rows.items()})
    with pytest.raises(ShapeMismatch, match="the other crosscoder writes"):
        narrow = sae.start(Crosscoder(n_latents=4), {name: t[:, :5] for name, t in rows.items()})
        model_diff(d, rows, other=narrow)
    with pytest.raises(UnknownName, match="'c'"):
        shuffled_pairs(rows, keep="c")
    with pytest.raises(BadData, match="nothing would be shuffled"):
        shuffled_pairs({"a/x": rows["a"], "a/y": rows["b"]}, keep="a")
    with pytest.raises(ShapeMismatch, match="no pairs"):
        shuffled_pairs({"a": rows["a"], "b": rows["b"][:5]}, keep="a")


def test_planted_pairs_are_what_they_say():
    pairs = planted_pairs(500, noise=0.0, **SIZES)
    assert_close(torch.tensor(pairs.a), torch.tensor(pairs.codes @ pairs.atoms_a), 1e-12)
    norms = np.linalg.norm(pairs.atoms_a, axis=1)
    assert (norms[pairs.concepts("b")] == 0).all() and np.allclose(norms[pairs.weak], 0.2)
    assert np.allclose(np.linalg.norm(pairs.atoms_b, axis=1)[pairs.concepts("shared")], 1)
    again = planted_pairs(500, noise=0.0, rows_seed=3, **SIZES)
    assert (again.atoms_b == pairs.atoms_b).all() and not (again.codes == pairs.codes).all()
    mixed = pairs.shuffled()
    assert (mixed.a == pairs.a).all() and sorted(mixed.b[:, 0]) == sorted(pairs.b[:, 0])
    with pytest.raises(BadData, match="weak is at most shared"):
        planted_pairs(10, shared=2, weak=3)
    with pytest.raises(UnknownName, match="owner"):
        pairs.concepts("c")
