"""How dictionaries start: directions between data and chance, a centre without outliers, an encoder of good length."""

import pytest
import torch

import sae
from mechvis.errors import BadData, UnknownName
from sae.architecture import Step
from sae.architectures import configured
from sae.initial import calibrate, directions, geometric_median


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(400, 8, generator=generator, dtype=torch.float64) + 4


def fvu(d, rows) -> float:
    return float((d(rows) - rows).detach().square().sum() / (rows - rows.mean(0)).square().sum())


@pytest.mark.parametrize("architecture", [sae.TopK(n_latents=40, k=6), sae.TopK(n_latents=40, k=6, decoder="free")])
def test_the_encoder_has_the_length_that_writes_best(rows, architecture):
    d = sae.start(architecture, {"site": rows})
    found = fvu(d, rows)
    active = d.encode(rows) > 0
    for factor in (0.5, 0.9, 1.1, 2.0, 1 / float(d.W_enc.detach().norm(dim=1).mean())):
        other = sae.start(architecture, {"site": rows})
        with torch.no_grad():
            other.W_enc.mul_(factor)
        assert fvu(other, rows) > found
        assert torch.equal(other.encode(rows) > 0, active), "which latents are chosen does not depend on it"
    x, y = d.normalised({"site": rows})
    assert calibrate(d, x, y) == pytest.approx(1), "once is enough"


def test_what_no_length_helps_is_left_alone(rows):
    d = sae.start(sae.TopK(n_latents=40, k=6), {"site": rows})
    with torch.no_grad():
        d.W_dec.neg_()
    before = d.W_enc.detach().clone()
    x, y = d.normalised({"site": rows})
    assert calibrate(d, x, y) == 1 and torch.equal(d.W_enc, before)


def test_transcoders_keep_their_encoder(rows):
    both = {"a": rows, "b": rows.flip(1)}
    d = sae.start(sae.TopK(n_latents=40, k=6), both, reads="a", writes="b")
    assert torch.allclose(d.W_enc.detach().norm(dim=1), torch.ones(40, dtype=torch.float64))


def test_directions_lie_between_data_and_chance(rows):
    centred = torch.nn.functional.normalize(rows - rows.mean(0), dim=1)
    nearest = {}
    for share in (0.0, 0.8, 1.0):
        found = directions(rows - rows.mean(0), 30, share, torch.Generator().manual_seed(1))
        assert torch.allclose(found.norm(dim=1), torch.ones(30, dtype=torch.float64))
        nearest[share] = float((found @ centred.T).max(1).values.mean())
    assert nearest[1.0] == pytest.approx(1) and nearest[0.0] < nearest[0.8] < nearest[1.0]


def test_the_centre_is_not_moved_by_outliers():
    points = torch.zeros(101, 2, dtype=torch.float64)
    points[:, 0] = torch.linspace(-1, 1, 101)
    far = points.clone()
    far[:10] = 1000.0
    assert geometric_median(points).abs().max() < 1e-4
    assert geometric_median(far).norm() < 1 < far.mean(0).norm()


def test_loss_of_a_start_is_that_of_the_dictionary(rows):
    """The loss that calibrates and the dictionary that is used write the same."""
    d = sae.start(sae.TopK(n_latents=40, k=6), {"site": rows})
    x, y = d.normalised({"site": rows})
    written = d.architecture.loss(d, x, y, Step()).y_hat * d.scale_out
    assert torch.allclose(written, d(rows).detach())


def test_words_of_a_command_line():
    found = configured("batch_topk", n_latents=64, k=4, settings=["row_limit=null", "aux=0", "decoder=free"])
    assert found == sae.BatchTopK(n_latents=64, k=4, row_limit=None, aux=0, decoder="free")
    with pytest.raises(UnknownName, match="topk"):
        configured("top-k", n_latents=64)
    with pytest.raises(BadData, match="not name=value"):
        configured("topk", n_latents=64, settings=["aux"])
    with pytest.raises(BadData, match="no setting 'l1'"):
        configured("topk", n_latents=64, settings=["l1=3"])
