"""Elimination and its intervals: right in worlds whose answer is known, honest where it cannot be sure."""

import numpy as np
import pytest

import mechvis
from mechvis.certified import draw, eliminate
from mechvis.certified.bounds import FIRST, TAILS, bounds
from mechvis.certified.calibration import calibrate
from mechvis.certified.elimination import fresh
from mechvis.certified.order import schedule
from mechvis.certified.words import FEW
from mechvis.errors import BadData, FailedCheck, NotFinite, OutOfRange, ShapeMismatch, UnknownName
from mechvis.sweep import sweep

UNITS, TOP, IMAGES = 60, 6, 20_000


def world(means, seed=0, draw_noise=None):
    """Effects drawn when asked for: mean plus noise as large as the mean; each image is asked for once per unit."""
    generator = np.random.default_rng(seed)
    means = np.asarray(means, dtype=float)

    def evaluate(units, images):
        shape = (len(units), len(images))
        noise = generator.normal(size=shape) if draw_noise is None else draw_noise(generator, shape)
        return means[units, None] + (0.05 + np.abs(means[units, None])) * noise

    return evaluate


def table(values):
    return lambda units, images: values[np.ix_(units, images)]


def good(means, found, eps):
    bar = np.sort(means)[-len(found.selected)]
    return (np.asarray(means)[found.selected] >= bar - eps * abs(bar)).all()


# the order of the images


def test_every_prefix_holds_the_classes_in_proportion():
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    order = draw(1000, labels, seed=3)
    assert sorted(order) == list(range(1000))
    for n in (64, 128, 500):
        assert np.abs(np.bincount(labels[order[:n]], minlength=3) - np.array([0.6, 0.3, 0.1]) * n).max() <= 2
    assert not np.array_equal(order, draw(1000, labels, seed=4))
    assert np.array_equal(order, draw(1000, labels, seed=3))
    counts = [np.bincount(labels[draw(1000, labels, seed)[:64]], minlength=3) for seed in range(500)]
    assert np.abs(np.mean(counts, axis=0) / 64 - [0.6, 0.3, 0.1]).max() < 0.005, "no class is preferred"
    with pytest.raises(ShapeMismatch, match="10 images but 2 strata"):
        draw(10, [0, 1])


def test_schedule():
    assert schedule(50) == [50]
    assert schedule(64) == [64]
    assert schedule(1000) == [64, 128, 256, 512, 1000]
    assert schedule(1000, 200) == [64, 128, 200]


# known worlds


@pytest.mark.parametrize("tails", TAILS)
def test_right_in_every_seed(tails):
    for seed in range(50 if tails != "bernstein" else 5):
        means = np.exp(np.random.default_rng(seed).normal(size=UNITS))
        found = eliminate(world(means, seed), np.arange(IMAGES), UNITS, TOP, tails=tails)
        assert good(means, found, 0.1)
        assert found.certified and found.status.count("accepted") == TOP
        assert found.evaluations < found.uniform < UNITS * IMAGES or found.exhausted
        assert found.shortfall <= found.tolerance
        assert ((found.low <= means) & (means <= found.high))[~np.isnan(found.low)].all() or found.exhausted


def test_cheaper_than_uniform_and_the_same_decision():
    means = np.exp(np.random.default_rng(1).normal(size=UNITS))
    values = means[:, None] * (1 + np.random.default_rng(2).normal(size=(UNITS, IMAGES)))
    order = draw(IMAGES, seed=1)
    for tails in ("student", "guarded"):
        found = eliminate(table(values), order, UNITS, TOP, tails=tails)
        flat = eliminate(table(values), order, UNITS, TOP, tails=tails, uniform=True)
        assert found.evaluations < flat.evaluations / 3
        assert flat.evaluations == flat.uniform
        assert good(values.mean(1), found, 0.1) and good(values.mean(1), flat, 0.1)


def test_heavy_tails():
    def lognormal(generator, shape):
        return (np.exp(generator.normal(size=shape)) - np.exp(0.5)) / np.sqrt((np.e - 1) * np.e)

    def student_t(generator, shape):
        return generator.standard_t(3, size=shape) / np.sqrt(3)

    for noise in (lognormal, student_t):
        for seed in range(10):
            means = np.exp(np.random.default_rng(seed).normal(size=UNITS))
            assert good(means, eliminate(world(means, seed, noise), np.arange(IMAGES), UNITS, TOP), 0.1)


def test_units_that_rarely_matter_are_missed_without_the_guard_only():
    """Some units act on one image in a hundred. The largest of them may well do nothing on the first 64 images; what
    its like may do is known from the others."""
    missed = {"student": 0, "guarded": 0}
    for seed in range(20):
        generator = np.random.default_rng(seed)
        values = np.r_[np.full(5, 0.5), np.zeros(30)][:, None] + 0.2 * generator.normal(size=(35, IMAGES))
        values[-12:] = 60 * (generator.random((12, IMAGES)) < 0.005)
        values[-1] = 100 * (generator.random(IMAGES) < 0.01)
        for tails in missed:
            found = eliminate(table(values), draw(IMAGES, seed=seed), 35, 3, tails=tails)
            missed[tails] += 34 not in found.selected
    assert missed["guarded"] == 0
    assert missed["student"] > 5


def test_units_that_acted_seldom_are_counted():
    values = 1.0 + np.random.default_rng(0).normal(size=(6, 4000))
    values[0] = 0
    values[1, 9:] = 0
    values[2, ::2] = 0
    values[3] += 5
    found = eliminate(table(values), np.arange(4000), 6, 1, tails="student")
    assert found.acting[0] == 0 and found.acting[1] == 9 and found.acting[2] == found.n[2] // 2
    assert found.acting[3] == found.n[3]


def test_exact_when_the_images_run_out():
    generator = np.random.default_rng(0)
    values = 1 + 1e-3 * generator.normal(size=(10, 1)) + generator.normal(size=(10, 300))
    found = eliminate(table(values), draw(300, seed=1), 10, 4, eps=0)
    assert found.certified and found.exhausted
    assert set(found.selected) == set(np.argsort(-values.mean(1))[:4])
    last = found.n == 300
    assert np.allclose(found.mean[last], values.mean(1)[last])
    assert np.array_equal(found.low[last], found.high[last])


@pytest.mark.parametrize("n", [1, 5, 63, 64])
def test_fewer_images_than_a_decision_needs_are_all_measured(n):
    values = np.random.default_rng(0).normal(size=(8, n))
    found = eliminate(table(values), draw(n), 8, 3)
    assert found.certified and found.exhausted and found.evaluations == values.size
    assert found.selected.tolist() == np.argsort(-values.mean(1))[:3].tolist()


def test_max_images_may_not_suffice():
    values = 1 + 0.1 * np.random.default_rng(0).normal(size=(12, 1)) + np.random.default_rng(1).normal(size=(12, 5000))
    found = eliminate(table(values), draw(5000), 12, 4, eps=0.01, max_images=200)
    assert not found.certified and "undecided" in found.status
    assert len(set(found.selected)) == 4
    means = values.mean(1)
    assert means[found.selected].min() >= np.sort(means)[-4] - found.shortfall
    few = eliminate(table(values), draw(5000), 12, 4, max_images=10)
    assert not few.certified and few.shortfall == np.inf, "nothing is known from ten images"


def test_ties():
    values = np.ones((6, 500))
    values[5] = 2
    found = eliminate(table(values), draw(500), 6, 3, tails="student")
    assert found.selected.tolist() == [5, 0, 1], "ties keep the order of the units"
    assert found.certified
    noisy = values + np.tile(np.random.default_rng(0).normal(size=500), (6, 1))
    exact = eliminate(table(noisy), draw(500), 6, 3, eps=0)
    assert exact.certified and exact.exhausted and exact.selected[0] == 5
    assert all(value == 0 for value in eliminate(table(0 * values), draw(500), 6, 3).mean)


def test_tolerance_zero_finds_the_very_set():
    for seed in range(10):
        means = np.linspace(0.2, 2, 20)
        found = eliminate(world(means, seed), np.arange(10**6), 20, 5, eps=0)
        assert found.certified and set(found.selected) == set(range(15, 20))


def test_negative_effects_and_size():
    means = np.array([-3.0, -2.0, -0.5, 0.1, 1.0, 1.5])
    order = np.arange(IMAGES)
    assert eliminate(world(means), order, 6, 2).selected.tolist() == [5, 4]
    assert eliminate(world(means), order, 6, 2, by="size").selected.tolist() == [0, 1]
    assert set(eliminate(world(-means - 5), order, 6, 2).selected) == {0, 1}, "the least negative are the largest"


def test_undefined_effects_are_left_out():
    generator = np.random.default_rng(0)
    values = np.arange(8.0)[:, None] + generator.normal(size=(8, 4000))
    values[:, ::3] = np.nan
    values[2, :3900] = np.nan
    found = eliminate(table(values), draw(4000), 8, 2)
    assert found.selected.tolist() == [7, 6]
    values[3] = np.nan
    with pytest.raises(NotFinite, match="unit 3 has no defined effect"):
        eliminate(table(values), draw(4000), 8, 5, eps=0)
    values[3] = 3.0
    values[4, 17] = np.inf
    with pytest.raises(NotFinite, match="unit 4 on image 17 is infinite"):
        eliminate(table(values), draw(4000), 8, 2, eps=0, uniform=True, tails="bernstein")


def test_audit_measures_rejected_units_to_the_end_and_withdraws_a_wrong_certificate():
    means = np.r_[np.linspace(1, 1.3, 8), np.zeros(32)]
    order = np.arange(IMAGES)
    plain = eliminate(world(means), order, 40, 4, tails="student")
    audited = eliminate(world(means), order, 40, 4, tails="student", audit=0.5)
    assert audited.certified and audited.audited.sum() >= 10
    assert plain.audit_evaluations == 0 and audited.audit_evaluations > 0
    assert set(plain.selected) == set(audited.selected)

    def late(units, images):
        """Unit 39 does nothing on the first images of the order, and much later on."""
        values = world(means, images[0])(units, images)
        values[units == 39] = 0 if images[0] < 64 else 5
        return values

    found = eliminate(late, order, 40, 4, tails="student", audit=1.0)
    assert found.contradicted == (39,) and not found.certified
    assert 39 not in eliminate(late, order, 40, 4, tails="student").selected


def test_a_control_variate_saves_images_and_changes_no_mean():
    generator = np.random.default_rng(0)
    means = np.linspace(0, 1, 20)[:, None]
    noise = generator.normal(size=(20, 8000))
    values = means + noise
    useful = 3 * noise + generator.normal(size=noise.shape) - 7
    useless = 100 * generator.normal(size=noise.shape) ** 3
    order = np.arange(8000)
    cost = {}
    for name, control in {"none": None, "useful": useful, "useless": useless}.items():
        found = eliminate(table(values), order, 20, 5, control=control, tails="student")
        cost[name] = found.evaluations
        assert good(values.mean(1), found, 0.1) and found.certified
    assert cost["useful"] < cost["none"] / 2 and cost["useless"] < 1.5 * cost["none"]
    # Unbiased: over many draws the adjusted mean is the mean over all images, and the error is the one it says.
    centres, errors = [], []
    for seed in range(300):
        shuffled = draw(8000, seed=seed)
        mean, half = bounds(values[:1, shuffled[:64]], 8000, 0.05, tails="student", control=useful[:1, shuffled[:2000]])
        centres.append(mean[0])
        errors.append(half[0] / 2)
    assert abs(np.mean(centres) - values[0].mean()) < 4 * np.std(centres) / np.sqrt(300)
    assert np.std(centres) == pytest.approx(np.mean(errors), rel=0.15)
    with pytest.raises(ShapeMismatch, match="the control has the shape"):
        eliminate(table(values), order, 20, 5, control=useful[:3])
    with pytest.raises(NotFinite, match="the control"):
        eliminate(table(values), order, 20, 5, control=useful * np.nan)


@pytest.mark.parametrize("tails", TAILS)
def test_intervals_cover(tails):
    values = np.exp(np.random.default_rng(0).normal(size=(1, 2000)))
    hits = 0
    for seed in range(400):
        mean, half = bounds(values[:, draw(2000, seed=seed)[:500]], 2000, 0.05, tails=tails)
        hits += abs(mean[0] - values.mean()) <= half[0]
    assert hits >= 0.93 * 400


def test_fresh_images_had_no_part_in_the_decision():
    means = np.exp(np.random.default_rng(3).normal(size=UNITS))
    found = eliminate(world(means), np.arange(IMAGES), UNITS, TOP)
    parts = fresh(found, IMAGES, 100)
    assert sorted(np.concatenate([units for units, _ in parts])) == sorted(found.selected)
    for units, where in parts:
        assert (found.n[units] == where.start).all() and len(where) == 100


def test_the_same_seed_gives_the_same_answer():
    means = np.exp(np.random.default_rng(3).normal(size=UNITS))
    first, second = (eliminate(world(means, 5), np.arange(IMAGES), UNITS, TOP, audit=0.1, seed=2) for _ in range(2))
    assert first.rounds == second.rounds and np.array_equal(first.mean, second.mean)
    assert np.array_equal(first.audited, second.audited)


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"top": 8}, OutOfRange, "top=8 of 8 units: .* All units are ranked by mechvis.sweep"),
        ({"top": 0}, OutOfRange, "top=0"),
        ({"eps": -0.1}, OutOfRange, "eps=-0.1 must be at least 0"),
        ({"eps": 1}, OutOfRange, "eps=1"),
        ({"delta": 0}, OutOfRange, "delta=0 must be between 0 and 1"),
        ({"audit": 2}, OutOfRange, "audit=2"),
        ({"first": 8}, OutOfRange, "first=8 must be at least 64"),
        ({"max_images": 0}, OutOfRange, "max_images=0"),
        ({"z": 0.0}, OutOfRange, "z=0.0 must be positive"),
        ({"value_range": 0}, OutOfRange, "value_range=0 must be positive"),
        ({"control": np.ones((8, 9)), "tails": "bernstein"}, BadData, "Use 'guarded', or no control"),
        ({"by": "abs"}, UnknownName, "unknown ranking 'abs'"),
        ({"tails": "normal"}, UnknownName, "unknown bound 'normal'"),
    ],
)
def test_bad_settings(settings, error, text):
    with pytest.raises(error, match=text):
        eliminate(table(np.zeros((8, 100))), draw(100), 8, **{"top": 3, **settings})


def test_bad_evaluations():
    with pytest.raises(ShapeMismatch, match=r"shape \[1\] for 8 units and 64 images"):
        eliminate(lambda units, images: np.zeros(1), draw(100), 8, 3)
    with pytest.raises(BadData, match="no images"):
        eliminate(table(np.zeros((8, 0))), np.arange(0), 8, 3)


def test_calibration_is_narrower_and_keeps_its_error():
    means = np.exp(np.random.default_rng(0).normal(size=40))
    pilot = world(means)(np.arange(40), np.arange(FIRST))
    found = calibrate(pilot, IMAGES, 5, eps=0.1, delta=0.05, runs=100)
    assert 1 <= found.z < 3 and found.error <= 0.05 and found.pilot == FIRST
    runs = [eliminate(world(means, seed), np.arange(IMAGES), 40, 5, z=found.z) for seed in range(50)]
    assert np.mean([good(means, run, 0.1) for run in runs]) >= 0.9
    assert (
        np.mean([run.evaluations for run in runs]) < eliminate(world(means), np.arange(IMAGES), 40, 5).evaluations / 2
    )
    with pytest.raises(FailedCheck, match="at least two images"):
        calibrate(pilot[:, :1], IMAGES, 5)


# slow: many seeds on the bundled models


@pytest.fixture(scope="module", params=["scenes-vit", "scenes-clip"])
def bundled(request):
    """Effects of all heads of a bundled classifier on all images `[unit image]`, and the images' labels."""
    images, model = mechvis.data.scenes(2000, seed=500, correlation=0.5), mechvis.load(request.param)
    if hasattr(model, "classifier"):
        model = model.classifier(images.class_names)
    return sweep(model, images, progress=False).values["logit_diff"].astype(float), images.labels


@pytest.mark.slow
@pytest.mark.parametrize("tails", ["student", "guarded"])
def test_success_in_200_seeds_on_the_bundled_models(bundled, tails):
    values, labels = bundled
    means = values.mean(1)
    for top in (3, 5):
        found = [eliminate(table(values), draw(2000, labels, seed), 16, top, tails=tails) for seed in range(200)]
        assert np.mean([good(means, one, 0.1) for one in found]) >= 0.95
        assert np.mean([one.evaluations for one in found]) < values.size


@pytest.mark.slow
def test_where_student_fails_on_rare_effects_it_has_seen_too_little():
    """Accuracy of the zero-shot model: most heads change one answer in a hundred. Every wrong run shows in `acting`."""
    images = mechvis.data.scenes(2000, seed=500, correlation=0.5)
    model = mechvis.load("scenes-clip").classifier(images.class_names)
    values = sweep(model, images, metric="accuracy", progress=False).values["accuracy"].astype(float)
    wrong = {"student": 0, "guarded": 0}
    for seed in range(100):
        for tails in wrong:
            found = eliminate(table(values), draw(2000, images.labels, seed), 16, 8, tails=tails)
            if not good(values.mean(1), found, 0.1):
                wrong[tails] += 1
                assert ((found.acting < FEW) & (found.n < 2000)).any()
    assert wrong["guarded"] == 0 and wrong["student"] > 10
