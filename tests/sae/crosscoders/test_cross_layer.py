"""Cross-layer transcoders and transcoders on planted maps: what they recover, from which layer, and their files."""

import pytest
import torch
from torch import Tensor

import sae
from mechvis.errors import BadData, RefusedMethod, UnknownName
from mechvis.testing import assert_close
from sae.architectures import CrossLayerTranscoder, ReLU, TopK
from sae.shares import layer_shares

N = 4000


def independent(seed: int, *, later_from: int) -> dict[str, Tensor]:
    """Two layers with independent inputs; the second output is made of the input of layer `later_from`."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(8, 8, generator=generator) / 8**0.5 for _ in range(4)]
    generator = torch.Generator().manual_seed(seed)
    x = [torch.randn(N, 8, generator=generator) for _ in range(2)]
    return {
        "x0": x[0],
        "x1": x[1],
        "y0": torch.relu(x[0] @ maps[0]) @ maps[1],
        "y1": torch.relu(x[later_from] @ maps[2]) @ maps[3],
    }


ENDS = {"reads": ("x0", "x1"), "writes": ("y0", "y1")}


def trained(rows, architecture, tokens: int = 30_000, lr: float = 5e-3, **ends):
    job = sae.Job(architecture=architecture, **(ends or ENDS))
    settings = sae.Training(tokens=tokens, batch=128, lr=lr, init_rows=2000)
    return sae.train(rows, job, settings, progress=False)


@pytest.mark.parametrize("layer", [0, 1])
def test_shares_say_which_layer_is_written_from(layer):
    """The second output hangs on one input alone: nearly all of what is written must come from that layer."""
    run = trained(
        independent(1, later_from=layer), CrossLayerTranscoder(n_latents=48, activation="batch_topk", k=16, aux=0.0)
    )
    shares = layer_shares(run.dictionary, independent(2, later_from=layer), batch=200)
    row = shares.pick(target="y1")
    assert row["fvu"] < 0.25
    assert (row["across"] > 0.95) if layer == 0 else (row["own"] > 0.95)
    assert row["across_low"] <= row["across"] <= row["across_high"]
    assert abs(row["own"] + row["across"] + row["skip"] - 1) < 1e-9
    assert shares.pick(target="y0")["across"] == 0
    assert shares.tables["shares"].height == 5


@pytest.mark.parametrize("activation", ["jumprelu", "relu", "batch_topk"])
@pytest.mark.parametrize("tied", [False, True])
def test_trains_folds_saves_and_loads(activation, tied, tmp_path):
    architecture = CrossLayerTranscoder(
        n_latents=32, activation=activation, k=6, tied=tied, skip=True, sparsity=0.01, bandwidth=1.0
    )
    rows = independent(1, later_from=0)
    run = trained(rows, architecture, tokens=7680)
    d = run.dictionary
    assert d.n_codes == 64 and d.encode(rows).shape == (N, 64) and run.log["fvu"][-1] < 0.95
    for s in range(2):
        norms = getattr(d, f"W_dec_{s}").norm(dim=1)
        assert_close(norms, torch.ones_like(norms), tolerance=1e-5)
    unfolded = sae.start(architecture, rows, reads=list(ENDS["reads"]), writes=list(ENDS["writes"])).double()
    with torch.no_grad():
        for name, p in unfolded.named_parameters():
            if name != "W_skip":
                p += 0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3)).double()
        if activation == "batch_topk":
            unfolded.batch_threshold.fill_(0.05)
        if activation == "jumprelu":
            unfolded.threshold.abs_()
    double = {name: t.double() for name, t in rows.items()}
    assert_close(unfolded.folded()(double), unfolded(double), tolerance=1e-9)
    again = sae.load(d.save(tmp_path / "d", fold=False))
    assert torch.equal(again(rows), d(rows)) and again.architecture == architecture
    directions = d.directions
    codes = torch.zeros(1, 64)
    codes[0, 40] = 2.0
    zero = torch.zeros(1, 16)
    assert_close(d.decode(codes, like=zero) - d.decode(torch.zeros(1, 64), like=zero), 2 * directions[40:41], 1e-4)
    assert (directions[32:, :8] == 0).all()


def test_skip_of_another_layer_is_never_used():
    """W_skip is one matrix for the file; outside a layer's own block it must stay zero in training."""
    architecture = CrossLayerTranscoder(n_latents=16, activation="relu", skip=True)
    W = trained(independent(1, later_from=0), architecture, 2560).dictionary.W_skip
    assert (W[:8, 8:] == 0).all() and (W[8:, :8] == 0).all() and (W[8:, 8:] != 0).any()


def test_dead_latents_are_counted_over_all_layers():
    rows = independent(1, later_from=0)
    job = sae.Job(architecture=CrossLayerTranscoder(n_latents=16, activation="relu"), **ENDS)
    run = sae.train(rows, job, sae.Training(tokens=2560, batch=256, lr=1e-3, log_every=1), progress=False)
    assert 0 <= run.log["dead"].max() <= 1
    d = run.dictionary
    with torch.no_grad():
        d.b_enc[16:] = -1e6
    from sae.training.job import Learner

    learner = Learner(d, sae.Training(tokens=2560, batch=256, lr=1e-9))
    assert learner.silent.shape == (32,)
    learner.step(0, next(sae.TensorRows(rows, size=256)))
    assert (learner.silent[16:] == 256).all() and (learner.silent[:16] == 0).sum() > 8


def test_unit_decoders_stay_on_the_sphere():
    architecture = CrossLayerTranscoder(n_latents=16, activation="batch_topk", k=4, decoder="unit")
    d = trained(independent(1, later_from=1), architecture, 5120).dictionary
    for s in range(2):
        norms = getattr(d, f"W_dec_{s}").norm(dim=1)
        assert_close(norms, torch.ones_like(norms), tolerance=1e-5)


def test_what_cannot_be_is_refused():
    rows = independent(1, later_from=0)
    with pytest.raises(BadData, match="reads one site and writes another in every layer"):
        sae.start(CrossLayerTranscoder(n_latents=4), rows, reads=["x0", "x1"], writes=["y0"])
    with pytest.raises(BadData, match="reads one site and writes another"):
        sae.start(CrossLayerTranscoder(n_latents=4), {"x0": rows["x0"]})
    with pytest.raises(BadData, match="whose widths differ"):
        short = {**rows, "y1": rows["y1"][:, :5]}
        sae.start(CrossLayerTranscoder(n_latents=4, tied=True), short, reads=["x0", "x1"], writes=["y0", "y1"])
    with pytest.raises(UnknownName, match="jumprelu"):
        CrossLayerTranscoder(n_latents=4, activation="jump")
    with pytest.raises(BadData, match="k=9 of 4 latents per layer"):
        CrossLayerTranscoder(n_latents=4, activation="batch_topk", k=9)
    with pytest.raises(BadData, match="sparsity=-1"):
        CrossLayerTranscoder(n_latents=4, sparsity=-1)
    d = sae.start(
        CrossLayerTranscoder(n_latents=4, activation="batch_topk", k=1), rows, reads=["x0", "x1"], writes=["y0", "y1"]
    )
    with pytest.raises(BadData, match="no threshold yet"):
        d.encode(rows)
    with pytest.raises(BadData, match="cross-layer transcoder writes; this is topk"):
        layer_shares(sae.start(TopK(n_latents=4, k=1), rows, reads=["x0"], writes=["y0"]), rows)
    with pytest.raises(BadData, match="nothing that varies is written to y0"):
        layer_shares(dead_transcoder(rows), rows)

    class Spread:
        size, rank = 2, 0

    d.shards = Spread()
    with pytest.raises(RefusedMethod, match="cannot be spread over processes by latents"):
        d.architecture.loss(d, *d.normalised(rows), sae.architecture.Step())


def dead_transcoder(rows):
    d = sae.start(CrossLayerTranscoder(n_latents=4, activation="relu"), rows, reads=["x0", "x1"], writes=["y0", "y1"])
    with torch.no_grad():
        d.b_enc.fill_(-1e6)
    return d


# -- transcoders of one layer ----------------------------------------------------------------------------------------


def planted_mlp(seed: int, n: int = 8000) -> dict[str, Tensor]:
    """y = W2 relu(W1 x): 32 hidden units, each active on about a tenth of the rows."""
    generator = torch.Generator().manual_seed(0)
    W1 = torch.randn(32, 16, generator=generator)
    W1 /= W1.norm(dim=1, keepdim=True)
    W2 = torch.randn(32, 16, generator=generator) / 16**0.5
    x = torch.randn(n, 16, generator=torch.Generator().manual_seed(seed))
    return {"x": x, "y": torch.relu(x @ W1.T - 1.3) @ W2, "W1": W1}


@pytest.fixture(scope="module")
def transcoder():
    rows = planted_mlp(1)
    architecture = TopK(n_latents=64, k=12, normalise="mean_norm")
    return trained({"x": rows["x"], "y": rows["y"]}, architecture, 120_000, 3e-2, reads="x", writes="y").dictionary


def test_a_transcoder_recovers_a_planted_layer(transcoder):
    """FVU near 0 on other rows, and for every hidden unit a latent that reads along it; a random map is the control."""
    rows = planted_mlp(2)
    y = rows["y"]
    fvu = (y - transcoder(rows["x"])).square().sum() / (y - y.mean(0)).square().sum()
    assert fvu < 0.01
    W = torch.nn.functional.normalize(transcoder.W_enc.detach(), dim=1)
    best = (rows["W1"] @ W.T).max(1).values
    control = (
        torch.nn.functional.normalize(torch.randn(32, 16, generator=torch.Generator().manual_seed(9))) @ W.T
    ).max(1)
    assert best.mean() > 0.9 > control.values.mean() + 0.1


def test_a_skip_transcoder_of_a_linear_map_holds_the_map():
    """y = A x + c: W_skip becomes A, in the units of the model."""
    generator = torch.Generator().manual_seed(0)
    A, c = torch.randn(6, 8, generator=generator), torch.randn(6, generator=generator)
    x = torch.randn(6000, 8, generator=torch.Generator().manual_seed(1))
    rows = {"x": x, "y": x @ A.T + c}
    architecture = ReLU(n_latents=8, normalise="mean_norm", skip=True, l1=2.0)
    d = trained(rows, architecture, 60_000, 2e-2, reads="x", writes="y").dictionary
    assert (rows["y"] - d(x)).square().sum() / (rows["y"] - rows["y"].mean(0)).square().sum() < 1e-3
    W = d.W_skip.detach() * d.scale_out[:, None] / d.scale_in
    assert (W - A).norm() / A.norm() < 0.05
    plain = trained(rows, TopK(n_latents=8, k=1, normalise="mean_norm", aux=0.0), 20_000, 1e-2, reads="x", writes="y")
    assert plain.log["fvu"][-1] > 0.2  # the control: without a skip connection one latent per row cannot
