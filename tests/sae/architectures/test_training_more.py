"""Matryoshka, nested k, matching pursuit, archetypal, sparsemax in training: both forms, transcoders, kills, files."""

import pytest
import torch

import sae
from mechvis.errors import BadData
from sae.architecture import Step
from sae.architectures import Archetypal, MatchingPursuit, Matryoshka, NestedK, Sparsemax

N, D = 24, 10
ALL = {
    "matryoshka": Matryoshka(n_latents=N, k=3, groups=(0.25, 0.75)),
    "matryoshka_random": Matryoshka(n_latents=N, k=3, prefixes=4),
    "nested_k": NestedK(n_latents=N, ks=(2, 4)),
    "matching_pursuit": MatchingPursuit(n_latents=N, k=3),
    "archetypal": Archetypal(n_latents=N, k=3),
    "archetypal_batch": Archetypal(n_latents=N, k=3, select="batch_topk", bias=True),
    "sparsemax": Sparsemax(n_latents=N),
    "sparsemax_weights": Sparsemax(n_latents=N, codes="weights"),
}
BETWEEN = {
    "matryoshka": Matryoshka(
        n_latents=N, k=3, groups=(0.25, 0.75), normalise="mean_square", skip=True, decoder="free", aux_per_group=True
    ),
    "nested_k": NestedK(n_latents=N, ks=(2, 4), normalise="mean_square", skip=True, decoder="free"),
    "archetypal": Archetypal(n_latents=N, k=3, skip=True),
    "sparsemax": Sparsemax(n_latents=N, normalise="mean_square", codes="weights"),
}


@pytest.fixture(scope="module")
def rows():
    return torch.randn(400, D, generator=torch.Generator().manual_seed(1)) + 0.3


@pytest.mark.parametrize("name", BETWEEN)
def test_both_forms_of_a_transcoder_agree(rows, name):
    x = rows.double()
    sites = {"a": x, "b": (x[:, :6] * x[:, 1:7]).contiguous()}
    d = sae.start(BETWEEN[name], sites, reads="a", writes="b", seed=2)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in d.parameters():
            p += 0.05 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
        d.architecture.before(d, Step())
    x, y = d.normalised({name: t[:50] for name, t in sites.items()})
    dead = torch.arange(N) % 3 == 0
    losses = [d.architecture.loss(d, x, y, Step(dead=dead, n_dead=8, fast=fast)) for fast in (True, False)]
    assert abs(float(losses[0].total.detach() - losses[1].total.detach())) < 1e-12
    assert torch.allclose(losses[0].codes.dense(), losses[1].codes.dense(), atol=1e-12)
    assert losses[0].y_hat.shape == (50, 6)
    names, parameters = zip(*d.named_parameters(), strict=True)
    both = [torch.autograd.grad(loss.total, parameters, allow_unused=True) for loss in losses]
    for name, a, b in zip(names, *both, strict=True):
        assert (a is None) == (b is None) and (a is None or (a - b).abs().max() < 1e-10), name


class Killed(Exception):
    """Stands for a crash."""


def killer(line):
    if line["step"] >= 20:
        raise Killed


def settings(**changes):
    known = {"tokens": 30 * 64, "batch": 64, "lr": 3e-3, "log_every": 10, "save_every": 7, "dead_after": 100}
    return sae.Training(**{**known, **changes})


def test_a_killed_run_ends_with_the_same_bits(rows, tmp_path):
    """The kept state (candidates, frequencies, thresholds) and random prefixes are part of what goes on."""
    some = {name: ALL[name] for name in ("matryoshka_random", "matching_pursuit", "archetypal_batch", "sparsemax")}
    whole = sae.train(rows, some, settings(), out=tmp_path / "whole", progress=False)
    with pytest.raises(Killed):
        sae.train(rows, some, settings(), out=tmp_path / "cut", trackers=[killer], progress=False)
    again = sae.train(rows, some, settings(), out=tmp_path / "cut", progress=False)
    for name, d in whole.dictionaries.items():
        for key, tensor in d.state_dict().items():
            assert torch.equal(tensor, again.dictionaries[name].state_dict()[key]), (name, key)
        loaded = sae.load(tmp_path / "cut" / "dictionaries" / name)
        assert loaded.architecture == ALL[name] and torch.allclose(loaded(rows), d(rows), atol=1e-5)


@pytest.fixture(scope="module")
def learned(rows):
    return sae.train(rows, ALL, settings(), progress=False)


@pytest.mark.parametrize("name", ALL)
def test_all_learn_and_end_with_unit_rows(learned, name):
    lines = learned.log.filter(learned.log["job"] == name)["fvu"].to_list()
    assert lines[-1] < lines[0]
    assert torch.allclose(learned.dictionaries[name].W_dec.norm(dim=1), torch.ones(N), atol=1e-5)


def test_plain_and_fast_training_agree(rows, learned):
    plain = sae.train(rows, ALL, settings(fast=False), progress=False)
    for name, d in learned.dictionaries.items():
        assert (d.W_dec - plain.dictionaries[name].W_dec).norm() < 0.02 * d.W_dec.norm(), name


def test_an_average_of_weights_is_shown_in_what_is_written(rows):
    """W_dec of archetypal and sparsemax follows from the parameters, so it has to follow their average too."""
    for name in ("archetypal", "sparsemax"):
        d = sae.train(rows, ALL[name], settings(ema=0.9), progress=False).dictionary
        made = (
            torch.exp(d.log_scale) * (d.mix @ d.candidates + d.relax)
            if name == "archetypal"
            else d.concepts @ d.to_value
        )
        assert torch.allclose(made / d.row_norm[:, None], d.W_dec, atol=1e-5)


def test_batch_topk_of_archetypes_has_no_threshold_before_it_is_trained(rows):
    d = sae.start(ALL["archetypal_batch"], {"site": rows})
    with pytest.raises(BadData, match="no threshold yet"):
        d.encode(rows)
