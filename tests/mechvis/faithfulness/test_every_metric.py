"""Every registered metric: an example worked out by hand, and the properties that all of them must have.

`HAND` holds the examples, `ASK` says how a metric is asked about some images of `World`. A metric that is registered
without a line in both fails here.
"""

import math
import warnings

import pytest
import torch

import mechvis
from mechvis.errors import DefaultPreprocessing, MechvisError, NotFinite, OutOfRange
from mechvis.faithfulness import METRICS, additive, metric
from mechvis.faithfulness.function_game import FunctionGame
from mechvis.faithfulness.localisation import MaskMetric
from mechvis.faithfulness.metric import GameMetric, Metric
from mechvis.faithfulness.roar import Examples
from mechvis.target import Target
from mechvis.testing import tiny

# Tiny models bring no image processor, and none is needed here.
pytestmark = pytest.mark.filterwarnings("ignore::mechvis.errors.DefaultPreprocessing")

GRID = (2, 3)
N, P = 7, 6


# ---- examples worked out by hand: name -> (metric, arguments, expected values)


def four(weights=(4.0, 2.0, 1.0, 0.0)):
    """One image of four patches that add up."""
    return additive(torch.tensor([weights]), (2, 2))


def row(*values):
    return torch.tensor([values], dtype=torch.float64)


def two_classes():
    """Class 0: 2 m0 + m1, class 1: always 1.5; class 0 is explained."""
    return FunctionGame(
        function=lambda m: torch.stack([2 * m[..., 0] + m[..., 1], torch.full(m.shape[:-1], 1.5).double()], -1),
        grid=(1, 4),
        target=Target(classes=torch.tensor([0])),
    )


MASK = torch.tensor([[[1, 0], [0, 1]]]).bool()  # patches 0 and 3
HALF = torch.tensor([[[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]]).bool()  # patch 0, half of patch 2


def moved(*changes):
    """An explainer that says (3, 4), length 5, of the first question, and that plus (0, change) afterwards."""
    queue = [0.0, *changes]
    return lambda pixels: row(3.0, 4.0 + queue.pop(0))


def two_steps(model):
    return {"a": row(4.0, 3.0, 2.0, 1.0), "b": row(2.0, 1.0, 3.0, 4.0)}[model]


CASCADE = [("readout", lambda: "a"), ("everything", lambda: "b")]
RAMP = row(1.0, 2.0, 3.0, 4.0)
SWAPPED = row(2.0, 1.0, 3.0, 4.0)  # Spearman with RAMP: 1 - 6 * 2 / 60 = 0.8


def two_patch_model():
    """A model whose grid is 1 x 2."""
    return mechvis.load(tiny("vit", image_size=(3, 6), patch_size=3))


def remembered(inputs, labels, seed):
    """A recipe: the class of the training example with the nearest sum; 0 where nothing is seen."""
    sums = inputs.flatten(1).sum(1)

    def predict(other):
        here = other.flatten(1).sum(1)
        near = labels[(here[:, None] - sums[None]).abs().argmin(1)]
        return torch.where(here == 0, 0, near)

    return predict


def examples(maps=None):
    """Two classes; only patch 0 is not zero, and says which."""
    values = torch.tensor([[1.0, 0, 0, 0], [2.0, 0, 0, 0]] * 2)
    maps = torch.tensor([[4.0, 3, 2, 1]] * 4) if maps is None else maps
    return Examples(inputs=lambda masks: values[: len(masks)] * masks, labels=torch.tensor([0, 1, 0, 1]), maps=maps)


HAND = {
    # without 0, 1, ..., 4 patches: 7, 3, 1, 0, 0; area (7/2 + 3 + 1 + 0 + 0) / 4
    "deletion": lambda one: (one(), (row(4, 3, 2, 1), four()), [1.875]),
    # with 0, 1, ..., 4 patches: 0, 4, 6, 7, 7; area (0 + 4 + 6 + 7 + 7/2) / 4
    "insertion": lambda one: (one(), (row(4, 3, 2, 1), four()), [5.125]),
    "abpc": lambda one: (one(), (row(4, 3, 2, 1), four()), [5.125 - 1.875]),
    # sets of one of two patches: the map says 5 where the effect is 1, and 2 where it is 3
    "mu_fidelity": lambda one: (one(share=0.5), (row(5, 2), additive(row(1, 3))), [-1.0]),
    "sensitivity_n": lambda one: (one(shares=(0.5,)), (row(5, 2), additive(row(1, 3))), [-1.0]),
    # |map| has the ranks 2, 4, 3, 1 and |effect| 4, 3, 2, 1: differences -2, 1, 1, 0: 1 - 6 * 6 / (4 * 15)
    "monotonicity": lambda one: (one(), (row(1, -3, 2, 0), four((4.0, 2.0, -1.0, 0.0))), [0.4]),
    # sets of one of two patches: errors 2 - 1 and 4 - 3, squared 1
    "infidelity": lambda one: (one(), (row(2, 4), additive(row(1, 3))), [1.0]),
    # the map names the patch without effect: the best factor is zero; in proportion: nothing is left
    "n_inf": lambda one: (
        one(),
        (torch.cat([row(1, 0), row(2, 6)]), additive(torch.cat([row(0, 1), row(1, 3)]))),
        [1.0, 0.0],
    ),
    # G = 5, 3, 1 and d = 2, 3, 0: pairs -2 (the effects are the other way round), +4, +2 of 8
    "saco": lambda one: (one(groups=3), (row(5, 3, 1), additive(row(2, 3, 0))), [0.5]),
    "pointing_game": lambda one: (
        one(),
        (torch.cat([row(0.9, 0.8, 0.1, 0.2), row(1, 1, 0, 0)]), MASK.expand(2, -1, -1), (2, 2)),
        [1.0, 0.5],
    ),
    # positive values 3 and 1; all of patch 0 and half of patch 2 belong to the object
    "relevance_mass": lambda one: (one(), (row(3, -1, 1, 0), HALF, (2, 2)), [3.5 / 4]),
    # the top two are 0 and 1, the object is 0 and 3
    "rank_accuracy": lambda one: (one(), (row(0.9, 0.8, 0.1, 0.2), MASK, (2, 2)), [0.5]),
    # 0 beats 1 and 2; 3 beats 2 alone
    "auroc": lambda one: (one(), (row(0.9, 0.8, 0.1, 0.2), MASK, (2, 2)), [0.75]),
    # precision 1/1 and 2/3 where the object's patches come
    "average_precision": lambda one: (one(), (row(0.9, 0.8, 0.1, 0.2), MASK, (2, 2)), [(1 + 2 / 3) / 2]),
    # patch 1 goes: 2 > 1.5, right; then patch 0: wrong; then patch 2: wrong. Areas of (1, 0, 0) over width 1/2
    "positive_perturbation": lambda one: (one(shares=(0.25, 0.5, 0.75)), (row(3, 4, 2, 1), two_classes()), [0.25]),
    # 3 goes, then 2: right; then 0: wrong. Area of (1, 1, 0)
    "negative_perturbation": lambda one: (one(shares=(0.25, 0.5, 0.75)), (row(3, 4, 2, 1), two_classes()), [0.75]),
    "road_morf": lambda one: (one(shares=(0.25, 0.5, 0.75)), (row(3, 4, 2, 1), two_classes()), [0.25]),
    "road_lerf": lambda one: (one(shares=(0.25, 0.5, 0.75)), (row(3, 4, 2, 1), two_classes()), [0.75]),
    # scores 8, 4, 2, 1, 0: lost 0, 1/2, 3/4, 7/8, 1; area (0 + 1/2 + 3/4 + 7/8 + 1/2) / 4
    "irof": lambda one: (one(cells=1), (row(4, 3, 2, 1), four((4.0, 2.0, 1.0, 1.0))), [2.625 / 4]),
    # without the top two: 7 - 1; without the others: 7 - 6
    "pgi": lambda one: (one(share=0.5, rate=1.0), (row(4, 3, 2, 1), four()), [6.0]),
    "pgu": lambda one: (one(share=0.5, rate=1.0), (row(4, 3, 2, 1), four()), [1.0]),
    # the map adds up to 8, the scores differ by 7
    "completeness_gap": lambda one: (one(), (row(4, 2, 1, 1), four()), [1 / 7]),
    # the two largest are 0 (right) and 1 (its effect is negative)
    "sign_agreement": lambda one: (one(k=2), (row(3, 2, -0.1, 0), four((4.0, -2.0, 1.0, 0.0))), [0.5]),
    # without patch 0 nothing is seen and the answer is 0: right for the first class alone; with it always right
    "roar": lambda one: (one(shares=(0.25, 0.5), seeds=2), (examples(), examples(), remembered), [1.0, 0.0, 1.0, 0.0]),
    "kar": lambda one: (one(shares=(0.25, 0.5), seeds=2), (examples(), examples(), remembered), [1.0] * 4),
    "mprt": lambda one: (one(), (RAMP, two_steps, CASCADE), [0.8]),
    "smooth_mprt": lambda one: (
        one(),
        (torch.rand(1, 3, 4, 4), lambda m, x: RAMP if m == "own" else two_steps(m), "own", CASCADE),
        [0.8],
    ),
    # entropy ln 2 before, ln 4 after
    "efficient_mprt": lambda one: (one(), (row(1, -1, 0, 0), lambda model: row(2, 2, 2, 2), None), [1.0]),
    "target_randomisation": lambda one: (
        one(),
        (RAMP, lambda c: SWAPPED if c[0] == 1 else RAMP, torch.tensor([0]), 2),
        [0.8],
    ),
    # changes 1, 3 of a map of length 5
    "max_sensitivity": lambda one: (one(n=2), (torch.rand(1, 1, 2, 2), moved(1.0, 3.0)), [3 / 5]),
    "average_sensitivity": lambda one: (one(n=2), (torch.rand(1, 1, 2, 2), moved(1.0, 3.0)), [2 / 5]),
    # the map is three times the image
    "local_lipschitz": lambda one: (one(), (torch.rand(1, 1, 1, 4).double() + 1, lambda x: 3 * x.flatten(1)), [3.0]),
    "relative_input_stability": lambda one: (
        one(),
        (torch.rand(1, 1, 1, 4).double() + 1, lambda x: 3 * x.flatten(1)),
        [1.0],
    ),
    # the logits are the image plus itself at the start: the same change of something twice as long
    "relative_output_stability": lambda one: (one(), (row(3, 4).view(1, 1, 1, 2), lambda x: x.flatten(1)), [2.0]),
    "relative_representation_stability": lambda one: (
        one(),
        (row(3, 4).view(1, 1, 1, 2), lambda x: x.flatten(1)),
        [2.0],
    ),
    # the map is the image's mean in each patch: 1 everywhere, and 1.5 after the shift
    "shift_invariance": lambda one: (
        one(shift=0.5),
        (row(1, 1), lambda m, x: x.mean((1, 2, 3))[:, None].expand(-1, 2), two_patch_model(), torch.ones(1, 3, 3, 6)),
        [0.5],
    ),
    # a tenth more for each image of the batch: 1.3, against 1.1 alone
    "batch_invariance": lambda one: (
        one(),
        (torch.full((3, 2), 1.3), lambda places: torch.full((len(places), 2), 1 + 0.1 * len(places))),
        [2 / 13] * 3,
    ),
    # the only other order of two patches swaps them, and the map (3, 4) stays: (3 * 4 + 4 * 3) / 25
    "token_equivariance": lambda one: (
        one(),
        (row(3, 4), lambda m: row(3, 4), two_patch_model(), torch.rand(1, 3, 3, 6)),
        [0.96],
    ),
    # ascending 1, 3: (-1 * 1 + 1 * 3) / (2 * 4)
    "sparseness": lambda one: (one(), (row(-3, 1),), [0.25]),
    "entropy": lambda one: (one(), (row(2, -2, 2, 2),), [math.log(4)]),
    "effective_complexity": lambda one: (one(epsilon=0.1), (row(1, -0.2, 0.05, 0),), [2.0]),
    "knob_agreement": lambda one: (one(), (torch.stack([RAMP, SWAPPED]),), [0.8]),
}
# The two that are given something to read:
READ = {
    name: {"read": lambda x: x.flatten(1) + row(3, 4)}
    for name in ("relative_output_stability", "relative_representation_stability")
}


@pytest.mark.parametrize("name", METRICS)
def test_hand_example(name):
    assert name in HAND, f"{name} is registered without an example worked out by hand"
    chosen, given, expected = HAND[name](metric(name))
    found = chosen.measure(*given, **READ.get(name, {}))
    assert found.name == name
    torch.testing.assert_close(torch.from_numpy(found.values), torch.tensor(expected).double(), rtol=1e-6, atol=1e-7)
    assert found.excluded == 0 and not found.reasons


# ---- properties: the same images asked in different ways


def weights_of(ids):
    return torch.stack([torch.randn(P, 4, generator=torch.Generator().manual_seed(int(i))) for i in ids]).double()


def game_of(ids):
    """Logits of three classes that are no sum of patches."""
    weights = weights_of(ids)

    def logits(masks):
        hidden = torch.einsum("irp,ipc->irc", masks, weights)
        return hidden[..., :3] + hidden[..., 3:] * hidden[..., :3].roll(1, -1)

    return FunctionGame(function=logits, grid=GRID, target=Target(classes=torch.tensor(list(ids)) % 3), ids=list(ids))


def maps_of(ids):
    return torch.stack([torch.randn(P, generator=torch.Generator().manual_seed(90 + int(i))) for i in ids]).double()


def pixels_of(ids):
    return torch.stack([torch.rand(3, 6, 9, generator=torch.Generator().manual_seed(50 + int(i))) for i in ids])


def masks_of(ids):
    masks = torch.zeros(len(ids), 6, 9)
    for row_, i in zip(masks, ids, strict=True):
        row_[: 3 + 3 * (i % 2), i % 4 : i % 4 + 5] = 1
    return masks.bool()


@pytest.fixture(scope="module")
def model():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DefaultPreprocessing)
        return mechvis.load(tiny("vit", image_size=(6, 9), patch_size=3, dtype=torch.float64))


def explained(factor, ids, shift=0.0):
    """A map that depends on pixels, smoothly."""
    return lambda pixels: (
        factor * (maps_of(ids) + pixels.double().mean((1, 2)).repeat_interleave(1, 1)[:, :P].sin() + shift)
    )


def with_fixed_training(one, factor, ids):
    values = maps_of(range(20, 32))
    labels = torch.arange(12) % 2
    train = Examples(
        inputs=lambda m: (values + labels[:, None]) * m, labels=labels, maps=values * factor, ids=range(12)
    )
    own = maps_of(ids)
    right = torch.tensor(list(ids)) % 2
    test = Examples(inputs=lambda m: (own + right[:, None]) * m, labels=right, maps=own * factor, ids=ids)
    return one.measure(train, test, remembered)


def by_kind(name):
    """How a metric is asked about some images, with its maps times a factor."""
    kind = metric(name)
    if issubclass(kind, GameMetric):
        return lambda one, factor, ids, model: one.measure(factor * maps_of(ids), game_of(ids))
    if issubclass(kind, MaskMetric):
        return lambda one, factor, ids, model: one.measure(factor * maps_of(ids), masks_of(ids), GRID)
    if kind.NEEDS == "maps":
        return lambda one, factor, ids, model: one.measure(factor * maps_of(ids))
    return None


def shifted(model, ids, factor):
    start = getattr(model, "title", "")
    return factor * (maps_of(ids) + len(start) / 10)


def stable(one, factor, ids, model):
    more = (
        {"read": lambda x: x.double().flatten(1)[:, :5].exp()}
        if hasattr(one, "_below") and "relative_" in one.NAME
        else {}
    )
    return one.measure(pixels_of(ids), explained(factor, ids), ids=list(ids), **more)


ASK = (
    {name: by_kind(name) for name in METRICS}
    | {
        "knob_agreement": lambda one, k, ids, model: one.measure(
            k * torch.stack([maps_of(ids), maps_of(ids).sin() + maps_of([i + 1 for i in ids])])
        ),
        "roar": lambda one, k, ids, model: with_fixed_training(one, k, ids),
        "kar": lambda one, k, ids, model: with_fixed_training(one, k, ids),
        "mprt": lambda one, k, ids, model: one.measure(
            k * maps_of(ids), lambda m: k * maps_of([i + m for i in ids]), [("a", lambda: 1), ("b", lambda: 2)]
        ),
        "smooth_mprt": lambda one, k, ids, model: one.measure(
            pixels_of(ids), lambda m, x: explained(k, [i + m for i in ids])(x), 0, [("a", lambda: 1)], ids
        ),
        "efficient_mprt": lambda one, k, ids, model: one.measure(
            k * maps_of(ids), lambda m: k * maps_of(ids).exp(), None
        ),
        "target_randomisation": lambda one, k, ids, model: one.measure(
            k * maps_of(ids),
            lambda c: k * (maps_of(ids) + c[:, None] * maps_of([i + 1 for i in ids])),
            torch.tensor(list(ids)) % 3,
            3,
            ids,
        ),
        "shift_invariance": lambda one, k, ids, model: one.measure(
            explained(k, ids)(pixels_of(ids)), lambda m, x: explained(k, ids)(x), model, pixels_of(ids).double()
        ),
        "batch_invariance": lambda one, k, ids, model: one.measure(
            k * maps_of(ids), lambda places: k * maps_of([ids[place] for place in places]) * 1.01
        ),
        "token_equivariance": lambda one, k, ids, model: one.measure(
            k * maps_of(ids), lambda m: k * maps_of(ids).flip(1), model, pixels_of(ids).double()
        ),
    }
    | {
        name: stable
        for name in (
            "max_sensitivity",
            "average_sensitivity",
            "local_lipschitz",
            "relative_input_stability",
            "relative_output_stability",
            "relative_representation_stability",
        )
    }
)


def asked(name, model, ids=range(N), factor=1.0, **settings):
    assert ASK.get(name), f"{name} is registered without a way to ask it here"
    return ASK[name](metric(name)(**settings), factor, list(ids), model)


@pytest.mark.parametrize("name", METRICS)
def test_same_value_in_any_batch_and_order(name, model):
    whole = torch.from_numpy(asked(name, model).values)
    threes = torch.cat([torch.from_numpy(asked(name, model, ids).values) for ids in ([0, 1, 2], [3, 4, 5], [6])])
    alone = torch.cat([torch.from_numpy(asked(name, model, [i]).values) for i in range(N)])
    mixed = [3, 0, 6, 1, 5, 2, 4]
    order = torch.from_numpy(asked(name, model, mixed).values)
    for other in (threes, alone):
        torch.testing.assert_close(other, whole, rtol=1e-9, atol=1e-12, equal_nan=True)
    torch.testing.assert_close(order, whole[mixed], rtol=1e-9, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("name", METRICS)
def test_values_differ_between_images(name, model):
    """Else the test above could not fail."""
    if name in ("batch_invariance", "shift_invariance", "roar", "kar", "token_equivariance"):
        return  # few values are possible, or all are the same by construction
    values = asked(name, model).values
    assert len(set(values[~torch.from_numpy(values).isnan().numpy()].round(9))) > 1


@pytest.mark.parametrize("name", METRICS)
def test_scale_of_maps(name, model):
    plain, scaled = asked(name, model), asked(name, model, factor=3.7)
    same = torch.allclose(torch.from_numpy(plain.values), torch.from_numpy(scaled.values), rtol=1e-9, equal_nan=True)
    assert same == metric(name).SCALE_FREE, f"SCALE_FREE of {name} is not what it does"


@pytest.mark.parametrize("name", METRICS)
def test_describes_itself(name):
    one = metric(name)()
    told = one.describe()
    assert told["metric"] == name and told["formula"] and told["unit"] and told["source"].split()[0].endswith(".md")
    assert told["direction"] in ("low", "high", "none") and one.id == f"{name}@{told['version']}"
    assert isinstance(one, Metric) and one == metric(name)() and hash(one) == hash(metric(name)())
    if isinstance(one, GameMetric):
        assert told["settings"]["operator"] and told["settings"]["order"] == "mean_of_ratios"


FROM_MAPS = [name for name in METRICS if by_kind(name)]


@pytest.mark.parametrize("name", FROM_MAPS)
def test_inputs_stay_as_they_are(name):
    maps, masks = maps_of(range(N)), masks_of(range(N))
    before = maps.clone(), masks.clone()
    if name == "knob_agreement":
        both = torch.stack([maps, maps.sin()])
        kept = both.clone()
        metric(name)().measure(both)
        assert torch.equal(both, kept)
        return
    one = metric(name)()
    one.measure(maps, *({"game": [game_of(range(N))], "masks": [masks, GRID]}.get(one.NEEDS, [])))
    assert torch.equal(maps, before[0]) and torch.equal(masks, before[1])


@pytest.mark.parametrize("name", FROM_MAPS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_maps_with_nan_are_refused(name, value, model):
    maps = maps_of(range(N))
    maps[2, 3] = value
    one = metric(name)()
    if name == "knob_agreement":
        maps = torch.stack([maps, maps])
    with pytest.raises(NotFinite, match="map of image 2 holds NaN or Inf, the first at patch 3"):
        one.measure(maps, *({"game": [game_of(range(N))], "masks": [masks_of(range(N)), GRID]}.get(one.NEEDS, [])))


@pytest.mark.parametrize("name", FROM_MAPS)
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1])
def test_constant_maps_are_counted_or_defined(name, value):
    one, maps = metric(name)(), torch.full((N, P), value)
    given = {"game": [game_of(range(N))], "masks": [masks_of(range(N)), GRID]}.get(one.NEEDS, [])
    found = one.measure(torch.stack([maps, maps]) if name == "knob_agreement" else maps, *given)
    assert found.excluded == sum(found.reasons.values())
    if name in ("mu_fidelity", "sensitivity_n", "monotonicity", "saco", "knob_agreement"):
        assert found.excluded == N and found.unreliable and "same" in next(iter(found.reasons))
    if name == "auroc":
        assert (found.values == 0.5).all()


@pytest.mark.parametrize("name", [name for name in METRICS if issubclass(metric(name), GameMetric)])
def test_score_that_depends_on_nothing(name):
    def nothing(masks):
        return torch.stack([torch.full(masks.shape[:2], 3.0), torch.zeros(masks.shape[:2])], -1).double()

    game = FunctionGame(function=nothing, grid=GRID, target=Target(classes=torch.zeros(N, dtype=torch.long)))
    found = metric(name)().measure(maps_of(range(N)), game)
    assert found.excluded == sum(found.reasons.values())
    if name in ("mu_fidelity", "sensitivity_n", "monotonicity", "saco", "n_inf"):
        assert found.excluded == N, "a correlation with a constant is not a number"
    if name in ("abpc", "pgi", "pgu", "irof", "sign_agreement"):
        assert (found.values == 0).all()


@pytest.mark.parametrize("name", FROM_MAPS)
def test_one_patch_is_a_number_or_a_clear_error(name):
    one = metric(name)()
    game = FunctionGame(
        function=lambda m: torch.stack([m[..., 0], 0.5 + 0 * m[..., 0]], -1),
        grid=(1, 1),
        target=Target(classes=torch.tensor([0])),
    )
    given = {"game": [game], "masks": [torch.ones(1, 4, 4).bool(), (1, 1)]}.get(one.NEEDS, [])
    maps = torch.ones(2, 1, 1) if name == "knob_agreement" else torch.ones(1, 1)
    try:
        found = one.measure(maps, *given)
    except OutOfRange as error:
        assert "patch" in str(error)
    else:
        assert found.excluded == sum(found.reasons.values())


@pytest.mark.parametrize("name", [name for name in METRICS if issubclass(metric(name), GameMetric)])
def test_perfect_and_random_maps(name):
    """In a game that adds up, the weights are the perfect map; 200 random maps are chance."""
    weights = torch.rand(200, 16, generator=torch.Generator().manual_seed(3)).double() + 0.1
    if name in ("positive_perturbation", "negative_perturbation", "road_morf", "road_lerf"):
        half = weights.sum(1) / 2
        game = FunctionGame(
            function=lambda m: torch.stack(
                [torch.einsum("ip,irp->ir", weights, m), half[:, None].expand(m.shape[:2])], -1
            ),
            grid=(4, 4),
            target=Target(classes=torch.zeros(200, dtype=torch.long)),
        )
    else:
        game = additive(weights, (4, 4))
    settings = {"cells": 1} if name == "irof" else {}
    one = metric(name)(**settings)
    perfect = one.measure(weights, game)
    noise = one.measure(torch.rand(200, 16, generator=torch.Generator().manual_seed(4)), game)
    if one.BEST is not None and name != "pgu":
        assert abs(perfect.values - one.BEST).max() < 1e-9
    better = perfect.values.mean() - noise.values.mean()
    if name != "sign_agreement":  # all effects and all values are positive: no map errs
        # n_inf: effects grow with sets, and any positive map knows that (so it has the baseline `constant_map`).
        least = 0.01 if name == "n_inf" else 0.02
        assert better > least if one.DIRECTION == "high" else better < -least
        if name == "n_inf":
            assert perfect.values.max() < noise.baselines["constant_map"].mean() < noise.values.mean()
    chance = {"abpc": 0.0, "mu_fidelity": 0.0, "sensitivity_n": 0.0, "monotonicity": 0.0, "saco": 0.0}
    if name in chance:
        found = noise.estimate()
        assert found.low[0] <= chance[name] <= found.high[0] or abs(found.effect[0]) < 0.02


@pytest.mark.parametrize("name", [name for name in METRICS if metric(name).NEEDS == "masks"])
def test_map_that_is_the_mask(name):
    masks = masks_of(range(N))
    maps = torch.nn.functional.adaptive_avg_pool2d(masks.double()[:, None], GRID).flatten(1)
    found = metric(name)(threshold=0.01).measure((maps > 0).double(), masks, GRID)
    if name == "relevance_mass":
        assert (found.values <= 1).all() and (found.values > 0.3).all()  # patches that belong in part count in part
    else:
        assert (found.values == 1).all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", [name for name in METRICS if issubclass(metric(name), GameMetric)])
def test_on_a_model_with_one_and_three_channels(name, channels):
    """A real model on a grid that is not square: a batch of rows of any size, and images alone, give the same."""
    from mechvis.removal import Game
    from mechvis.target import target_of

    model = mechvis.load(tiny("vit", num_channels=channels, image_size=(6, 9), patch_size=3, dtype=torch.float64))
    pixels = torch.randn(3, channels, 6, 9, generator=torch.Generator().manual_seed(1)).double()
    target = target_of(model, model.run(pixels).output)
    one = metric(name)()

    def value(places, batch_size):
        game = Game(
            model=model,
            pixels=pixels[places],
            target=target[places],
            operator=one.operator,
            ids=torch.tensor(places),
            batch_size=batch_size,
        )
        return torch.from_numpy(one.measure(maps_of(places), game).values)

    whole = value([0, 1, 2], 256)
    assert not whole.isnan().any()
    torch.testing.assert_close(value([0, 1, 2], 5), whole, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(value([2, 0], 7), whole[[2, 0]], rtol=1e-6, atol=1e-9)


def test_errors_are_ours():
    with pytest.raises(MechvisError, match="Nearest: abpc"):
        metric("abcp")
