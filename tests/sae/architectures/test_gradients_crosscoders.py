"""Crosscoders, cross-layer transcoders and universal dictionaries: losses written out, float64 autograd, both forms."""

import pytest
import torch
from torch import Tensor

import sae
from mechvis.testing import assert_close
from sae.architecture import Step
from sae.architectures.batch_topk_crosscoder import CODE_NORMALIZATIONS, BatchTopKCrosscoder
from sae.architectures.cross_layer import CrossLayerTranscoder
from sae.architectures.crosscoder import Crosscoder
from sae.architectures.universal import Universal

WIDTHS = {"a": 5, "b": 7}
N, ROWS = 12, 16


def rows_of(widths: dict[str, int], n: int = ROWS, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(n, d, generator=generator, dtype=torch.float64) + 0.3 for name, d in widths.items()}


def started(architecture, widths=WIDTHS, **ends):
    """A dictionary whose every parameter is moved off its starting value, so that no term is zero by chance."""
    d = sae.start(architecture, rows_of(widths, 64, 1), **ends)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, p in d.named_parameters():
            block = name == "W_skip" and isinstance(architecture, CrossLayerTranscoder)
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            p += 0.3 * noise * (p.shape[0] ** 0 if not block else block_mask(d))
    if architecture.decoder == "unit":
        with torch.no_grad():
            for name in architecture.UNIT:
                if hasattr(d, name):
                    getattr(d, name).div_(getattr(d, name).norm(dim=1, keepdim=True))
    return d


def block_mask(d) -> Tensor:
    return torch.block_diag(
        *(torch.ones(o, i) for o, i in zip(d.ends.writes.values(), d.ends.reads.values(), strict=True))
    )


def gradients(d, value: Tensor) -> dict[str, Tensor]:
    for p in d.parameters():
        p.grad = None
    value.backward()
    return {name: p.grad.clone() for name, p in d.named_parameters() if p.grad is not None}


def agree(d, step: Step, written_out) -> None:
    """The loss in its fast and its plain form, against a formula that shares no code with it."""
    batch = rows_of({**d.ends.reads, **d.ends.writes})
    x, y = d.normalised(batch)
    expected = gradients(d, written_out(d, x, y))
    for fast in (True, False):
        loss = d.architecture.loss(d, x, y, Step(**{**vars(step), "fast": fast}))
        assert_close(loss.total, written_out(d, x, y), tolerance=1e-10)
        found = gradients(d, loss.total)
        assert set(expected) == set(found)
        for name, gradient in expected.items():
            assert gradient.abs().max() > 0 or name == "W_skip", name
            assert_close(found[name], gradient, tolerance=1e-10)


def largest(scores: Tensor, count: int) -> Tensor:
    """A mask of the `count` largest of all."""
    flat = scores.reshape(-1)
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[flat.argsort(descending=True)[:count]] = True
    return (mask & (flat > 0)).reshape(scores.shape)


def aux_written_out(pre: Tensor, dead: Tensor, k: int, error: Tensor, weight: Tensor) -> Tensor:
    """AuxK by a loop over rows."""
    e = error.detach()
    found = []
    for row in range(len(pre)):
        allowed = pre[row].masked_fill(~dead, -torch.inf)
        chosen = allowed.topk(min(k, int(dead.sum()))).indices
        found.append((pre[row, chosen].relu()[:, None] * weight[chosen]).sum(0))
    return (e - torch.stack(found)).pow(2).sum(1).mean() / (e - e.mean(0)).pow(2).sum(1).mean()


# -- crosscoders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", ["free", "unit"])
def test_l1_crosscoder(decoder):
    def written_out(d, x, y):
        f = torch.relu(x @ d.W_enc.T + d.b_enc)
        total = 0
        for number, columns in enumerate((slice(0, 5), slice(5, 12))):
            y_hat = f @ d.W_dec[:, columns] + d.b_dec[columns]
            total = total + (y[:, columns] - y_hat).pow(2).sum(1).mean()
            total = total + 2.0 * 0.7 * (f * d.W_dec[:, columns].pow(2).sum(1).sqrt()).sum(1).mean()
            assert number < 2
        return total

    agree(started(Crosscoder(n_latents=N, decoder=decoder)), Step(sparsity=0.7), written_out)


@pytest.mark.parametrize("kind", CODE_NORMALIZATIONS)
@pytest.mark.parametrize("decoder", ["free", "unit"])
def test_batch_topk_crosscoder(kind, decoder):
    dead = torch.arange(N) % 3 == 0
    step = Step(dead=dead, n_dead=int(dead.sum()))

    def written_out(d, x, y):
        pre = x @ d.W_enc.T + d.b_enc
        parts = [d.W_dec[:, :5], d.W_dec[:, 5:]]
        norms = torch.stack([part.pow(2).sum(1).sqrt() for part in parts]).detach()
        joint = norms.pow(2).sum(0).sqrt()
        scale = {"crosscoder": norms.sum(0), "sae": joint, "mixed": joint + 0.1 * norms.sum(0), "none": 1.0}
        if kind == "decoupled":
            masks = [largest(pre.detach() * norm, 3 * ROWS) for norm in norms]
        else:
            masks = [largest(pre.detach() * scale[kind], 3 * ROWS)] * 2
        errors, written = [], []
        for mask, part, columns in zip(masks, parts, (slice(0, 5), slice(5, 12)), strict=True):
            written.append((pre.relu() * mask) @ part + d.b_dec[columns])
            errors.append((y[:, columns] - written[-1]).pow(2).sum(1).sqrt().mean())
        aux = aux_written_out(pre, dead, 6, y - torch.cat(written, 1), d.W_dec)
        return sum(errors) / 2 + aux / 32

    d = started(BatchTopKCrosscoder(n_latents=N, k=3, code_normalization=kind, decoder=decoder, row_limit=None))
    agree(d, step, written_out)


def test_decoupled_codes_may_be_at_one_site_alone():
    """With two budgets a latent is written where it is among the largest, and only there."""
    d = started(BatchTopKCrosscoder(n_latents=N, k=2, code_normalization="decoupled"))
    with torch.no_grad():
        d.W_dec[:6, :5] *= 1e-3
        d.W_dec[6:, 5:] *= 1e-3
        d.budget_thresholds.fill_(0.05)
    x = d.normalised(rows_of(WIDTHS))[0]
    codes = d.architecture.encode(d, x)
    at_a, at_b = d.architecture.codes_by_site(d, codes)
    assert (codes > 0).any() and (at_a[:, :6] == 0).all() and (at_b[:, 6:] == 0).all()
    expected = torch.cat([at_a @ d.W_dec[:, :5], at_b @ d.W_dec[:, 5:]], 1) + d.b_dec
    assert_close(d.architecture.decode(d, codes), expected, tolerance=1e-12)
    assert not torch.allclose(expected, codes @ d.W_dec + d.b_dec)


def test_error_of_the_batch_topk_crosscoder_is_not_squared():
    """Ten times larger rows of both sites give a loss ten times, not a hundred times, as large."""
    d = started(BatchTopKCrosscoder(n_latents=N, k=3, aux=0.0, normalise="none"))
    with torch.no_grad():
        d.W_dec.zero_()
        d.b_dec.zero_()
    x, y = d.normalised(rows_of(WIDTHS))
    small, large = (d.architecture.loss(d, x, factor * y, Step()).total for factor in (1, 10))
    assert_close(large, 10 * small, tolerance=1e-12)


# -- cross-layer transcoder ------------------------------------------------------------------------------------------

LAYERS = {"x0": 4, "x1": 4, "x2": 4, "y0": 5, "y1": 6, "y2": 5}
ENDS = {"reads": ["x0", "x1", "x2"], "writes": ["y0", "y1", "y2"]}
SAME = {**LAYERS, "y1": 5}


def cross_layer(tied: bool = False, **settings):
    return started(
        CrossLayerTranscoder(n_latents=N, tied=tied, zero_cross=False, **settings), SAME if tied else LAYERS, **ENDS
    )


def layers_written_out(d, x, y, codes: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Σ_t ‖y^t - ŷ^t‖² by a double loop, and the norm of all that each latent writes."""
    widths, tied = list(d.ends.writes.values()), d.architecture.tied
    starts = [sum(widths[:t]) for t in range(3)]
    total, y_hat = 0, []
    for t in range(3):
        columns = slice(starts[t], starts[t] + widths[t])
        found = d.b_dec[columns].expand(len(x), -1)
        for s in range(t + 1):
            W = getattr(d, f"W_dec_{s}")
            begin = 0 if tied else sum(widths[s:t])
            found = found + codes[s] @ W[:, begin : begin + widths[t]]
        if d.architecture.skip:
            found = found + x[:, 4 * t : 4 * t + 4] @ d.W_skip[columns, 4 * t : 4 * t + 4].T
        total = total + (y[:, columns] - found).pow(2).sum(1).mean()
        y_hat.append(found)
    norms = []
    for s in range(3):
        squares = getattr(d, f"W_dec_{s}").pow(2).sum(1)
        norms.append((squares * (3 - s) if tied else squares).sqrt())
    return total, [torch.cat(y_hat, 1), *norms]


def pre_of(d, x) -> list[Tensor]:
    return [x[:, 4 * s : 4 * s + 4] @ getattr(d, f"W_enc_{s}").T + d.b_enc[N * s : N * (s + 1)] for s in range(3)]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("decoder", ["free", "unit"])
def test_cross_layer_relu(tied, skip, decoder):
    def written_out(d, x, y):
        codes = [z.relu() for z in pre_of(d, x)]
        error, (_, *norms) = layers_written_out(d, x, y, codes)
        penalty = sum(torch.tanh(4 * norm * f).sum(1).mean() for norm, f in zip(norms, codes, strict=True))
        return error + 0.3 * 0.5 * penalty

    settings = {"activation": "relu", "sparsity": 0.3, "skip": skip, "decoder": decoder}
    agree(cross_layer(tied, **settings), Step(sparsity=0.5), written_out)


class _Jump(torch.autograd.Function):
    """z H(z - θ) with Anthropic's window, written again."""

    @staticmethod
    def forward(ctx, z, t):
        ctx.save_for_backward(z, t)
        return z * (z > t)

    @staticmethod
    def backward(ctx, grad):
        z, t = ctx.saved_tensors
        inside = ((z - t).abs() < 0.5).to(z)
        return grad * (z > t) + grad * t * inside, (-grad * t * inside).sum(0)


@pytest.mark.parametrize("tied", [False, True])
def test_cross_layer_jumprelu_with_dead_latents(tied):
    dead = torch.arange(3 * N) % 4 == 1

    def written_out(d, x, y):
        pre = pre_of(d, x)
        thresholds = d.threshold.split(N)
        codes = [_Jump.apply(z, t) for z, t in zip(pre, thresholds, strict=True)]
        error, (_, *norms) = layers_written_out(d, x, y, codes)
        penalty = sum(torch.tanh(4 * norm * f).sum(1).mean() for norm, f in zip(norms, codes, strict=True))
        missing = sum(
            ((t - z).relu() * norm * asleep).sum(1).mean()
            for z, t, norm, asleep in zip(pre, thresholds, norms, dead.split(N), strict=True)
        )
        return error + penalty + 0.2 * missing

    d = cross_layer(tied, activation="jumprelu", bandwidth=1.0, pre_act=0.2, threshold_init=0.4)
    with torch.no_grad():
        d.threshold.abs_()
    agree(d, Step(dead=dead, n_dead=int(dead.sum())), written_out)


@pytest.mark.parametrize("tied", [False, True])
def test_cross_layer_batch_topk_over_layers(tied):
    """The k·B·L winners are of all layers together; dead latents of every layer write what is left over."""
    dead = torch.arange(3 * N) % 4 == 1

    def written_out(d, x, y):
        pre = pre_of(d, x)
        _, (_, *norms) = layers_written_out(d, x, y, pre)
        scores = torch.cat([z * norm for z, norm in zip(pre, norms, strict=True)], 1).detach()
        masks = largest(scores, 2 * ROWS * 3).split(N, 1)
        error, (y_hat, *_) = layers_written_out(d, x, y, [z.relu() * m for z, m in zip(pre, masks, strict=True)])
        rest = (y - y_hat).detach()
        some = []
        for z, asleep in zip(pre, dead.split(N), strict=True):
            allowed = z.masked_fill(~asleep, -torch.inf)
            keep = torch.zeros_like(z, dtype=torch.bool).scatter(1, allowed.topk(2).indices, True)
            some.append((z * keep).relu())
        _, (written, *_) = layers_written_out(d, x, y, some)
        aux = (rest - (written - d.b_dec)).pow(2).sum(1).mean() / (rest - rest.mean(0)).pow(2).sum(1).mean()
        return error + 0.5 * (y - y.mean(0)).pow(2).sum(1).mean() * aux

    d = cross_layer(tied, activation="batch_topk", k=2, aux=0.5, k_aux=2, row_limit=None)
    agree(d, Step(dead=dead, n_dead=int(dead.sum())), written_out)


def test_gradient_of_the_bias_goes_to_latents_and_not_to_rows_as_in_clt_training():
    """clt-training's FusedEncoderCOO adds an entry's gradient to the bias of the latent with the *row's* number."""
    d = cross_layer(activation="batch_topk", k=2, aux=0.0, row_limit=None)
    x, y = d.normalised(rows_of(LAYERS))
    loss = d.architecture.loss(d, x, y, Step(fast=True))
    found = gradients(d, loss.total)["b_enc"]
    codes = loss.codes.dense()
    grad_y = 2 * (loss.y_hat - y) / ROWS
    by_entry = (grad_y @ d.architecture.rows(d).detach().T) * (codes > 0)
    assert_close(found, by_entry.sum(0), tolerance=1e-10)
    assert (found[(codes > 0).sum(0) == 0] == 0).all()
    by_row = torch.zeros_like(found)
    by_row[:ROWS] = by_entry.sum(1)
    assert not torch.allclose(found, by_row)


# -- universal -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1, 2, 3, 4])
def test_universal(number):
    """Which encoder is read is drawn anew; the encoder of the other model gets no gradient at all."""
    d = started(Universal(n_latents=N, k=3))
    s = d.architecture.source(number, 2)

    def written_out(d, x, y):
        own = slice(0, 5) if s == 0 else slice(5, 12)
        pre = (x[:, own] - d.b_dec[own]) @ getattr(d, f"W_enc_{s}").T + getattr(d, f"b_enc_{s}")
        keep = torch.zeros_like(pre, dtype=torch.bool).scatter(1, pre.topk(3).indices, True)
        return (y - ((pre * keep).relu() @ d.W_dec + d.b_dec)).abs().sum(1).mean()

    agree(d, Step(number=number), written_out)
    assert getattr(d, f"W_enc_{1 - s}").grad is None


def test_universal_draws_both_models():
    drawn = [Universal(n_latents=N, k=3).source(number, 2) for number in range(40)]
    assert 10 <= sum(drawn) <= 30
    assert drawn == [Universal(n_latents=N, k=3).source(number, 2) for number in range(40)]
    assert drawn != [Universal(n_latents=N, k=3, source_seed=1).source(number, 2) for number in range(40)]
