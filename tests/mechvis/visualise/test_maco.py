"""MACO: the spectrum is kept, a known optimum is reached, pictures are judged."""

import numpy as np
import pytest
import torch

import mechvis
from mechvis import testing
from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch, UnknownName
from mechvis.keyed import generator_of
from mechvis.plots.pictures import pictures
from mechvis.visualise import Visualisation, direction, head, latent, logit, maco, unit
from mechvis.visualise.maco import cropped
from mechvis.visualise.spectrum import colour_root, image_of, magnitude_of

DOUBLE = torch.float64


@pytest.fixture(scope="module")
def model():
    return mechvis.load(testing.rand_vit(), preprocess=testing.tiny_preprocess())


@pytest.fixture(scope="module")
def natural():
    return testing.tiny_input("vit", n=40, dtype=DOUBLE)


def painted(model, objective, natural, **more):
    return maco(
        model, objective, natural=natural, **{"seeds": (0, 1), "steps": 30, "crops": 4, "progress": False, **more}
    )


def one_over_f(side=32):
    down = torch.fft.fftfreq(side, dtype=DOUBLE)[:, None]
    radius = (down**2 + torch.fft.rfftfreq(side, dtype=DOUBLE) ** 2).sqrt()
    return (1 / radius.clamp(min=1 / side))[None]


def test_the_magnitude_is_kept_at_every_frequency():
    """The pitfall of 19.2: with a free phase the columns that are their own mirror images lose a third."""
    magnitude = one_over_f()
    phase = torch.rand(1, 32, 17, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)) * 6.28
    kept = torch.fft.rfft2(image_of(magnitude, phase)).abs() / magnitude
    assert (kept - 1).abs().max() < 1e-9
    free = torch.fft.rfft2(torch.fft.irfft2(torch.polar(magnitude, phase), s=(32, 32))).abs() / magnitude
    assert (free[..., 1:-1] - 1).abs().max() < 1e-9
    edges = free[..., [0, -1]]
    assert edges.mean() == pytest.approx(0.67, abs=0.1) and edges.std() == pytest.approx(0.35, abs=0.1)


def test_a_phase_for_a_grating():
    """Test P of 19.2: the only free thing is the phase, so the best correlation is that of the target's own: .155.

    (The .168 of the specification is reached with free edge columns, which lose magnitude and with it length.)
    """
    side, magnitude = 32, one_over_f()
    x = torch.arange(side, dtype=DOUBLE)
    grating = torch.sin(2 * np.pi * 2 * x / side).expand(side, side)
    grating = grating / grating.norm()

    def correlation(phase):
        image = image_of(magnitude, phase)[0]
        return ((image - image.mean()) * grating).sum() / (image - image.mean()).norm()

    best = float(correlation(torch.fft.rfft2(grating).angle()[None]))
    phase = torch.randn(1, side, side // 2 + 1, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    phase.requires_grad_(True)
    optimiser, curve = torch.optim.NAdam([phase], lr=0.2), []
    for _ in range(80):
        found = correlation(phase)
        optimiser.zero_grad()
        (-found).backward()
        optimiser.step()
        curve.append(float(found.detach()))
    assert best == pytest.approx(0.1554, abs=1e-3) and curve[0] < 0.8 * best
    assert 0.99 * best <= curve[-1] <= best + 1e-9


def test_spectrum_and_colours():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(6, 3, 16, 16, dtype=DOUBLE, generator=generator)
    images[:, 1] = images[:, 0]
    expected = np.abs(np.fft.rfft2(images.numpy())).mean(0)
    np.testing.assert_allclose(magnitude_of(images, 16), expected, rtol=1e-10)
    assert magnitude_of(images, 8).shape == (3, 8, 5)
    root = colour_root(images)
    assert torch.allclose(root[0], root[1], atol=1e-8), "two channels that are always alike stay alike"
    with pytest.raises(ShapeMismatch, match="natural images are"):
        magnitude_of(images[0], 16)
    with pytest.raises(NotFinite, match="NaN or Inf"):
        magnitude_of(images * float("nan"), 16)
    with pytest.raises(BadData, match="all black"):
        magnitude_of(images * 0, 16)


def test_crops_stay_inside_and_move_continuously():
    picture = torch.arange(64.0).expand(1, 64, 64)
    views = cropped(picture, 16, 200, 0.3, generator_of(0, 0, "crops"))
    assert views.shape == (200, 1, 16, 16) and views.min() >= 0 and views.max() <= 63
    starts = views[:, 0, 0, 0]
    assert ((starts % 8) / 8).std() > 0.2, "no grid of patches is favoured"


@pytest.mark.parametrize("kind", ["direction", "unit", "head", "latent", "logit", "difference"])
def test_every_objective_rises_and_is_judged(model, natural, kind):
    vector = torch.randn(16, dtype=DOUBLE, generator=torch.Generator().manual_seed(2))
    objective = {
        "direction": lambda: direction("blocks.1.hook_resid_post", vector),
        "unit": lambda: unit("blocks.1.mlp.hook_pre", 3),
        "head": lambda: head(model, 2, 1, vector),
        "latent": lambda: latent("blocks.1.hook_resid_post", torch.stack([vector, -vector], 1), 0, bias=0.5),
        "logit": lambda: logit(model, 2),
        "difference": lambda: logit(model, 2, 5),
    }[kind]()
    with testing.assert_untouched(model):
        found = painted(model, objective, natural)
    assert found.pictures.shape == (2, 24, 24, 3)
    assert found.pictures.min() >= 0 and found.pictures.max() <= 1
    assert (found.table["end"] > found.table["start"]).all()
    assert (found.facts["peers"] > 0) == (kind in ("unit", "head", "latent", "logit"))
    assert (found.facts["controls"] > 0) == (kind == "direction")
    run = model.run(natural, capture=list(objective.sites))
    read = objective.read(run, model.parts)
    assert found.facts["natural_max"] == pytest.approx(float(read.max()))
    assert found.table["natural_999"][0] == pytest.approx(float(read.quantile(0.999)))


def test_objectives_against_plain_numbers(model, natural):
    run = model.run(natural, capture=["blocks.1.hook_resid_post", "blocks.2.attn.hook_result", "blocks.2.attn.hook_z"])
    vector = torch.randn(16, dtype=DOUBLE, generator=torch.Generator().manual_seed(2))
    h = run.cache["blocks.1.hook_resid_post"][:, 1:]
    along = h @ vector
    got = direction("blocks.1.hook_resid_post", vector).read(run, model.parts)
    testing.assert_close(got, (along * along / h.norm(dim=-1) / vector.norm()).mean(1), 1e-10)
    got = direction("blocks.1.hook_resid_post", vector, cosine=False).read(run, model.parts)
    testing.assert_close(got, along.mean(1), 1e-10)
    got = head(model, 2, 1, vector).read(run, model.parts)
    testing.assert_close(got, run.cache["blocks.2.attn.hook_result"][:, 0, 1] @ vector, 1e-10)
    got = latent("blocks.1.hook_resid_post", vector, bias=2.0, centre=vector).read(run, model.parts)
    testing.assert_close(got, ((h - vector) @ vector + 2).mean(1), 1e-10)


def test_seeds_and_the_record(model, natural, tmp_path):
    objective = logit(model, 2)
    one, again = (painted(model, objective, natural, seeds=(3,), steps=4) for _ in range(2))
    assert np.array_equal(one.pictures, again.pictures)
    both = painted(model, objective, natural, seeds=(0, 3), steps=4)
    assert np.array_equal(both.pictures[1], one.pictures[0]) and not np.array_equal(both.pictures[0], one.pictures[0])
    back = Visualisation.load(both.save(tmp_path / "pictures"))
    assert np.array_equal(back.pictures, both.pictures)
    assert set(both.table.columns) <= set(both.words)
    assert len(both.plot().axes) == 2 and both.report(tmp_path / "pictures.html").stat().st_size > 1000
    assert any("2 natural" in line or "40 natural" in line for line in both.caveats)


def test_errors(model, natural):
    with pytest.raises(BadData, match="at least 16"):
        painted(model, logit(model, 0), natural[:3])
    with pytest.raises(OutOfRange, match="even side"):
        painted(model, logit(model, 0), natural, size=9)
    with pytest.raises(OutOfRange, match="steps=0"):
        painted(model, logit(model, 0), natural, steps=0)
    with pytest.raises(OutOfRange, match="smallest=0"):
        painted(model, logit(model, 0), natural, smallest=0.9)
    with pytest.raises(BadData, match="same class"):
        logit(model, 1, 1)
    with pytest.raises(OutOfRange, match="head 9"):
        head(model, 0, 9, torch.ones(16))
    with pytest.raises(ShapeMismatch, match="the stream 16"):
        head(model, 0, 0, torch.ones(5))
    with pytest.raises(UnknownName, match="tokens"):
        unit("blocks.0.hook_resid_pre", 0, tokens="some")
    with pytest.raises(OutOfRange, match="unit 40"):
        painted(model, unit("blocks.1.mlp.hook_pre", 40), natural)
    with pytest.raises(BadData, match="zero everywhere"):
        direction("hook_pooled", torch.zeros(4))
    with pytest.raises(NotFinite, match="direction holds NaN"):
        direction("hook_pooled", torch.full((4,), float("nan")))
    with pytest.raises(ShapeMismatch, match="has 16"):
        painted(model, direction("hook_pooled", torch.ones(4)), natural)
    with pytest.raises(OutOfRange, match="latent 1: the encoder has 1"):
        latent("hook_embed", torch.ones(16), 1)
    with pytest.raises(OutOfRange, match="between 0 and 1"):
        pictures(np.full((1, 2, 2, 3), 2.0))
    with pytest.raises(ShapeMismatch, match="3 notes for 1 pictures"):
        pictures(np.zeros((1, 2, 2, 3)), notes=["a", "b", "c"])
