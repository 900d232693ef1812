"""Crosscoders as dictionaries: files, folding, thresholds, starting values, universal codes, the histogram."""

from itertools import pairwise

import numpy as np
import pytest
import torch

import sae
from mechvis.errors import BadData, NotFinite, ShapeMismatch, UnknownName
from mechvis.plots.model_diff import model_diff_histogram
from mechvis.testing import assert_close
from mechvis.testing.planted_pairs import planted_pairs
from sae.architectures import BatchTopKCrosscoder, Crosscoder, TopK, Universal
from sae.architectures.batch_topk_crosscoder import CODE_NORMALIZATIONS
from sae.architectures.crosscoder import site_norms
from sae.architectures.universal import codes_of

PAIRS = planted_pairs(3000, shared=20, only_a=4, only_b=4, widths=(12, 16), active=2)
ROWS = {"a": torch.tensor(PAIRS.a).float(), "b": torch.tensor(PAIRS.b).float()}


def trained(architecture, tokens: int = 12_800, **settings):
    known = {"tokens": tokens, "batch": 128, "lr": 1e-2, "init_rows": 2000, **settings}
    return sae.train(ROWS, architecture, sae.Training(**known), progress=False)


@pytest.mark.parametrize("kind", CODE_NORMALIZATIONS)
def test_folded_and_saved_crosscoders_write_the_same(kind, tmp_path):
    """With a free decoder codes are scaled by norms; afterwards the same is kept, and the same is written."""
    architecture = BatchTopKCrosscoder(n_latents=40, k=2, code_normalization=kind)
    d = sae.start(architecture, {name: t.double() for name, t in ROWS.items()})
    with torch.no_grad():
        d.W_dec *= torch.linspace(0.3, 3, 40, dtype=torch.float64)[:, None]
        d.budget_thresholds.fill_(0.4)
    folded = d.folded()
    x = {name: t.double() for name, t in ROWS.items()}
    assert_close(folded(x), d(x), tolerance=1e-9)
    norms = folded.W_dec.norm(dim=1)
    assert kind == "none" or torch.allclose(norms, torch.ones_like(norms))
    again = sae.load(d.save(tmp_path / kind, fold=False))
    assert torch.equal(again(x), d(x)) and again.architecture == architecture


@pytest.mark.parametrize("kind", ["crosscoder", "decoupled"])
def test_the_threshold_keeps_about_k_per_row(kind):
    run = trained(BatchTopKCrosscoder(n_latents=40, k=2, code_normalization=kind), 40_000)
    d = run.dictionary
    codes = d.encode(ROWS)
    active = (codes > 0).float().sum(1).mean()
    assert 1.5 < active < (2.6 if kind == "crosscoder" else 4.2)
    assert d.budget_thresholds.shape == ((1,) if kind == "crosscoder" else (2,))
    assert run.log["fvu"][-1] < 0.4 and {"loss_error/a", "loss_error/b"} <= set(run.log.columns)


def test_k_is_annealed():
    run = trained(BatchTopKCrosscoder(n_latents=40, k=2), 12_800, k_start=5.0, k_steps=90, log_every=10)
    l0 = run.log["l0"].to_list()
    assert l0[0] > 6 and abs(l0[-1] - 2) < 0.1 and all(a >= b - 0.2 for a, b in pairwise(l0))


def test_sites_start_with_equal_norms():
    for architecture, norm in ((Crosscoder(n_latents=9), 0.08), (BatchTopKCrosscoder(n_latents=9, k=2), 2**-0.5)):
        d = sae.start(architecture, ROWS)
        norms = site_norms(d.W_dec.detach(), d.ends)
        assert_close(norms, torch.full_like(norms, norm), tolerance=1e-5)
        assert torch.equal(d.W_enc, d.W_dec)
    assert (Crosscoder(n_latents=9).data_init, BatchTopKCrosscoder(n_latents=9, k=2).data_init) == (0.4, 0.4)


def test_a_transcoding_crosscoder_reads_some_sites_and_writes_others():
    rows = {"in": ROWS["a"], "out0": ROWS["b"], "out1": ROWS["b"] * 2}
    job = sae.Job(architecture=BatchTopKCrosscoder(n_latents=30, k=2), reads="in", writes=("out0", "out1"))
    d = sae.train(rows, job, sae.Training(tokens=2560, batch=128, lr=1e-3), progress=False).dictionary
    assert d(rows["in"]).shape == (3000, 32) and site_norms(d.W_dec.detach(), d.ends).shape == (30, 2)


def test_what_cannot_be_is_refused():
    with pytest.raises(UnknownName, match="decoupled"):
        BatchTopKCrosscoder(n_latents=4, k=1, code_normalization="decouple")
    with pytest.raises(BadData, match="k=5 of 4"):
        BatchTopKCrosscoder(n_latents=4, k=5)
    with pytest.raises(BadData, match="row_limit"):
        BatchTopKCrosscoder(n_latents=4, k=1, row_limit=0.5)
    with pytest.raises(BadData, match="l1=-1"):
        Crosscoder(n_latents=4, l1=-1)
    with pytest.raises(BadData, match="no threshold yet"):
        sae.start(BatchTopKCrosscoder(n_latents=4, k=1), ROWS).encode(ROWS)
    with pytest.raises(BadData, match="reads 'b'"):
        sae.start(Crosscoder(n_latents=4), ROWS).encode({"a": ROWS["a"]})


def test_universal_codes_agree_between_models(tmp_path):
    """Codes of the same rows from either model; what one model lacks, its encoder cannot find: the control."""
    run = trained(Universal(n_latents=48, k=2), 100_000, lr=5e-3)
    d = run.dictionary
    from_a, from_b = (codes_of(d, name, ROWS[name]).detach().numpy() for name in "ab")
    assert torch.equal(torch.tensor(from_a), d.encode(ROWS).detach())

    def best(codes, concepts):
        a, b = PAIRS.codes[:, concepts] - PAIRS.codes[:, concepts].mean(0), codes - codes.mean(0)
        norms = np.linalg.norm(a, axis=0)[:, None] * np.linalg.norm(b, axis=0)[None]
        return (a.T @ b / np.maximum(norms, 1e-9)).max(1)

    shared, only_b = PAIRS.concepts("shared"), PAIRS.concepts("b")
    assert np.median(best(from_a, shared)) > 0.8 and np.median(best(from_b, shared)) > 0.8
    assert np.median(best(from_a, only_b)) < 0.5
    again = sae.load(d.save(tmp_path / "u", fold=False))
    assert torch.equal(codes_of(again, "b", ROWS["b"]), torch.tensor(from_b))


def test_universal_refuses_what_it_cannot():
    d = sae.start(Universal(n_latents=4, k=1), ROWS)
    with pytest.raises(UnknownName, match="'c'"):
        codes_of(d, "c", ROWS["a"])
    with pytest.raises(ShapeMismatch, match="width 16"):
        codes_of(d, "b", ROWS["a"])
    with pytest.raises(BadData, match="this is topk"):
        codes_of(sae.start(TopK(n_latents=4, k=1), ROWS), "a", ROWS["a"])
    with pytest.raises(BadData, match="writes what it reads"):
        sae.start(Universal(n_latents=4, k=1), ROWS, reads=["a"], writes=["b"])
    with pytest.raises(BadData, match="no skip connection"):
        Universal(n_latents=4, k=1, skip=True)


def test_histogram_of_relative_norms():
    figure = model_diff_histogram(
        np.array([0, 0.5, 0.5, 1]), ["only p", "shared", "shared", "only q"], first="p", second="q"
    )
    labels = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert labels == ["only p", "equal norms", "only q"]
    heights = sorted({round(patch.get_height()) for patch in figure.axes[0].patches})
    assert heights == [0, 1, 2]
    with pytest.raises(ShapeMismatch, match="as many classes"):
        model_diff_histogram(np.array([0.5]), ["a", "b"])
    with pytest.raises(NotFinite, match="relative"):
        model_diff_histogram(np.array([np.nan]), ["a"])
