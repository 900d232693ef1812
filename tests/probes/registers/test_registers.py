"""Long tokens, register neurons, test-time registers: a planted neuron writes length 100 on one random patch."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import mechvis
from mechvis import edits, testing
from mechvis.data.images import ImageSet
from mechvis.data.preprocess import Preprocess
from mechvis.errors import BadData, NotFinite, OutOfRange, RefusedMethod, ShapeMismatch, SplitOverlap, UnknownName
from mechvis.plots.norm_histogram import norm_histogram
from mechvis.record import load_record
from mechvis.testing.planted.wired import WiredViT, wrapped
from probes.features import collect
from probes.registers import (
    RegisterDiagnosis,
    TokenNorms,
    diagnose_registers,
    outlier_content,
    register_effect,
    register_neurons,
    suggest_threshold,
    token_norms,
    what_tokens_hold,
    with_registers,
)

GRID, FLAG, BIG, MARK, SCRATCH = 4, 2, 3, 4, 5
PLANTED, LOUD = (0, 1), (0, 2)


def planted_vit():
    """Channels 0, 1: class evidence of every patch, 2: the flag. Neuron (0, 1) turns the flag into length 100 in slot
    BIG; neuron (0, 2) is as loud everywhere and writes nowhere. Head (1, 0) reads the evidence of all patches into CLS;
    head (1, 1) looks at whatever is long in BIG and copies that into SCRATCH, which nobody reads."""
    model = WiredViT(
        channels=3, d_model=6, n_layers=3, n_heads=2, d_head=2, d_mlp=4, n_classes=2, grid=(GRID, GRID), cls=True,
        activation=torch.nn.ReLU,
    )  # fmt: skip
    with torch.no_grad():
        model.embedding[[0, 1, 2], [0, 1, FLAG]] = 1.0
        model.places[1:, MARK] = 1.0
        first = model.neurons(0)
        first.w_in[FLAG, PLANTED[1]], first.w_out[PLANTED[1], BIG] = 1.0, 100.0
        first.b_in[LOUD[1]] = 2.0
        reads, looks = model.head(1, 0), model.head(1, 1)
        reads.q_bias[0], reads.k[MARK, 0] = 1.0, 40.0
        reads.v[0, 0], reads.v[1, 1], reads.o[0, 0], reads.o[1, 1] = 1.0, 1.0, 1.0, 1.0
        looks.q_bias[0], looks.k[BIG, 0], looks.v[BIG, 0], looks.o[0, SCRATCH] = 1.0, 1.0, 0.01, 1.0
        model.readout[0, 0], model.readout[1, 1] = 5.0, 5.0
    return model


def _as_made(images, **settings):
    return {"pixel_values": torch.from_numpy(np.stack(images)).double().permute(0, 3, 1, 2).contiguous() / 100}


PREPROCESS = Preprocess(
    processor=_as_made, height=GRID, width=GRID, mean=(0.0,) * 3, std=(1.0,) * 3, source="made here"
)  # fmt: skip


def planted_images(n=80, seed=0):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, n)
    drawn = generator.integers(0, 100, (n, GRID * GRID, 3))
    drawn[np.arange(n), :, labels] = np.minimum(drawn[np.arange(n), :, labels] + 40, 199)
    drawn[:, :, FLAG] = 0
    flagged = generator.integers(0, GRID * GRID, n)
    drawn[np.arange(n), flagged, FLAG] = 100
    pixels = drawn.reshape(n, GRID, GRID, 3).astype(np.uint8)
    images = ImageSet(
        name="flags",
        ids=tuple(f"flags/{seed}/{i}" for i in range(n)),
        read=pixels.__getitem__,
        rows=np.arange(n),
        labels=labels,
        class_names=("a", "b"),
        preprocess=PREPROCESS,
    )
    return images, flagged


@pytest.fixture(scope="module")
def model():
    return wrapped(planted_vit(), "planted registers", class_names=("a", "b"), preprocess=PREPROCESS)


@pytest.fixture(scope="module")
def images():
    return planted_images()[0]


@pytest.fixture(scope="module")
def norms(model, images):
    return token_norms(model, images, progress=False)


def test_lengths_are_those_of_the_stream(model, images, norms):
    run = model.run(images, capture=["blocks.*.hook_resid_post"])
    for layer in range(3):
        expected = run.cache[f"blocks.{layer}.hook_resid_post"].norm(dim=-1).numpy()
        np.testing.assert_allclose(norms.of(layer), expected, atol=1e-12)


def test_the_long_patches_are_the_flagged_ones(norms, tmp_path):
    flagged = planted_images()[1]
    np.testing.assert_array_equal(norms.outliers(0), np.eye(GRID * GRID, dtype=bool)[flagged])
    row = norms.pick(layer=2)
    assert 3 < row["threshold"] < 90 and row["share"] == pytest.approx(1 / 16) and row["images_with"] == 1
    assert row["max"] == pytest.approx(100, abs=1) and row["median"] < 3
    assert norms.last_with_outliers() == 2
    assert norms.positions().shape == (GRID, GRID) and norms.positions().sum() == pytest.approx(1)
    norms.save(tmp_path / "norms")
    assert TokenNorms.load(tmp_path / "norms").of(1).shape == (80, 17)
    assert load_record(tmp_path / "norms").table.equals(norms.table)
    assert norms.report(tmp_path / "page.html").stat().st_size > 10_000


def test_the_planted_neuron_is_detected_first(model, images, norms):
    found = register_neurons(model, images, norms.outliers(), n=3, rank_by="excess", progress=False)
    first = found.table.row(0, named=True)
    assert (first["layer"], first["neuron"]) == PLANTED and first["activation"] == pytest.approx(1.0)
    assert first["elsewhere"] == 0 and first["n"] == 80
    assert found.by_layer(1) == {0: [1]}


def test_a_neuron_that_is_loud_everywhere_fools_the_plain_ranking(model, images, norms):
    """The released rule ranks by loudness at the long patches alone; the table shows how loud it is elsewhere."""
    found = register_neurons(model, images, norms.outliers(), n=2, upto=2, progress=False)
    first, second = found.table.iter_rows(named=True)
    assert (first["layer"], first["neuron"]) == LOUD and first["excess"] == pytest.approx(0)
    assert (second["layer"], second["neuron"]) == PLANTED
    assert "1 of these 2 are nearly as loud elsewhere" in found.caveats[0]


def test_means_at_long_patches_by_hand(model, images, norms):
    mask = norms.outliers().copy()
    mask[3] = False  # an image without a long patch does not count
    found = register_neurons(model, images, mask, n=2, progress=False)
    post = model.run(images, capture=["blocks.0.mlp.hook_post"]).cache["blocks.0.mlp.hook_post"][:, 1:].abs().numpy()
    by_hand = [post[i][mask[i]].mean(0) for i in range(80) if mask[i].any()]
    expected = np.mean(by_hand, 0)
    for row in found.table.iter_rows(named=True):
        assert row["activation"] == pytest.approx(expected[row["neuron"]]) and row["n"] == 79


def test_the_register_carries_the_length_and_patches_are_normal(model, images, norms):
    with testing.assert_untouched(model):
        found = register_effect(model, planted_images(60, seed=5)[0], {0: [1]}, layer=2, threshold=20.0)
    rows = {row["arm"]: row for row in found.table.iter_rows(named=True)}
    assert rows["as it is"]["longest"] == pytest.approx(100, abs=1)
    assert rows["as it is"]["share"] == pytest.approx(1 / 16)
    assert rows["registers"]["longest"] < 5 and rows["registers"]["share"] == 0
    assert rows["registers"]["register"] == pytest.approx(100, abs=1)
    assert rows["registers"]["changed"] < 1e-6, "what the classifier reads is left alone"
    assert rows["registers"]["longest_change_high"] < -90
    for control in ("tokens only", "random neurons"):
        assert rows[control]["longest"] == pytest.approx(100, abs=1) and rows[control]["register"] < 5
    assert rows["registers"]["accuracy"] == rows["as it is"]["accuracy"] > 0.9


def test_what_the_edit_does_by_hand(model, images):
    registered = with_registers(model, {0: [1, 2]}, n=2)
    assert registered.model.parts.prefix == ("cls", "register0", "register1")
    site = "blocks.0.mlp.hook_post"
    pixels = images.pixels
    pixels[0, FLAG] *= -1  # nothing of the planted neuron in this image
    before = model.run(pixels, capture=[site]).cache[site]
    # `hook_pre` is where the register tokens' own activations come from: the loud neuron's bias reaches them too.
    after = registered.run(pixels, capture=[site]).cache[site]
    assert after.shape[1] == before.shape[1] + 2
    np.testing.assert_array_equal(after[:, 0], before[:, 0], err_msg="CLS is left alone")
    assert (after[:, 3:, [1, 2]] == 0).all()
    np.testing.assert_array_equal(after[:, 3:, [0, 3]], before[:, 1:, [0, 3]], err_msg="other neurons too")
    for token in (1, 2):
        np.testing.assert_array_equal(after[:, token, 1], before[:, 1:, 1].max(1).values)
    np.testing.assert_array_equal(after[:, 1, 2], torch.full((80,), 2.0))


def test_the_sign_of_the_largest_magnitude_is_kept():
    from probes.registers.added_tokens import _Move

    neurons = torch.tensor([[[9.0], [0.0], [1.0], [-4.0], [3.0]]])
    np.testing.assert_array_equal(_Move(1, 1)(neurons), [[[9.0], [-4.0], [0.0], [0.0], [0.0]]])


def _load(name):
    found = mechvis.load(testing.tiny(name, dtype=torch.float64), preprocess=testing.tiny_preprocess())
    return getattr(found, "vision", found)


def _deaf(model, first, end):
    """Edits under which nobody attends to some tokens."""

    def cut(scores):  # [row query head key]
        scores = scores.clone()
        scores[..., first:end] = -1e9
        return scores

    return [edits.call(f"blocks.{at}.attn.hook_attn_scores", cut) for at in range(len(model.parts.blocks))]


@pytest.mark.parametrize(
    "name", ["vit", "vit-base", "deit", "deit-distilled", "clip", "clip-classifier", "dinov2", "dinov2-classifier"]
)
def test_added_tokens_that_nobody_attends_to_change_nothing(name):
    """Whatever the read-out is: CLS, two tokens side by side, mean of the patches, both."""
    model = _load(name)
    pixels = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    registered = with_registers(model, {0: [3], 1: [2, 5]}, n=2)
    prefix = len(model.parts.prefix)
    deaf = registered.model.run(pixels, edits=_deaf(model, prefix, prefix + 2)).output
    testing.assert_close(deaf, model.run(pixels).output, 1e-6, "deaf tokens")
    heard = registered.model.run(pixels).output
    testing.assert_close(heard, registered.model.parts.reference(pixels), 1e-6, "hooked against plain")
    assert (heard - deaf).abs().max() > 1e-5


@pytest.mark.parametrize("name, why", [("dinov3", "depends on the place"), ("siglip", "pools by attention")])
def test_models_in_which_an_added_token_has_no_place_are_refused(name, why):
    with pytest.raises(RefusedMethod, match=why):
        with_registers(_load(name), {0: [1]})


def test_scenes_vit_with_registers_answers_as_its_plain_twin():
    vit = mechvis.load("scenes-vit")
    images = mechvis.data.scenes(n=6, seed=3)
    registered = with_registers(vit, {1: [5, 7]}, n=3)
    pixels = vit.inputs(images)
    plain = registered.model.parts.reference(pixels)
    run = registered.model.run(pixels, capture=["*"])
    testing.assert_close(run.logits, plain, 1e-5, "hooked against plain")
    assert run.cache["blocks.3.hook_resid_post"].shape[1] == vit.parts.n_tokens + 3
    assert (run.logits - vit.run(pixels).logits).abs().max() > 1e-4, "zero tokens take part in attention"
    with registered.model.edited(registered.edits):
        testing.assert_close(registered.model(pixels), registered.run(pixels).logits, 1e-6, "context")
    on_patches = registered.run(pixels, edits=[edits.zero("blocks.2.hook_resid_post", tokens="registers")])
    assert on_patches.logits.shape == (6, 8)


def test_features_of_a_model_with_registers_know_where_patches_are():
    vit = mechvis.load("scenes-vit")
    images = mechvis.data.scenes(n=4, seed=3)
    site = "blocks.1.hook_resid_post"
    registered = with_registers(vit, {1: [5, 7]}, n=2)
    found = collect(registered.model, images, site, tokens=["registers", "patches", "cls"], progress=False)
    stream = registered.model.run(images, capture=[site]).cache[site].numpy()
    np.testing.assert_allclose(found[f"{site}:registers"], stream[:, 1:3].mean(1), atol=1e-6)
    np.testing.assert_allclose(found[f"{site}:patches"], stream[:, 3:].reshape(-1, 128), atol=1e-6)


def test_a_family_with_registers_holds_what_a_family_must():
    from mechvis.models.transformers.vit import vit
    from probes.registers.added_tokens import registered_parts

    def family(module):
        # The upstream's own modules see no registers: their outputs have another shape than our sites.
        return replace(registered_parts(vit(module), 2), aliases={})

    (found,) = testing.check_family(testing.tiny("vit", dtype=torch.float64), family=family)
    assert found.wave < 1e-6 and found.outputs < 1e-6


def test_who_looks_at_long_patches_and_what_they_hold(model, images, norms):
    found = outlier_content(model, images, norms.outliers(), layer=0)
    rows = {(row["layer"], row["query"]): row for row in found.tables["attention"].iter_rows(named=True)}
    # Head (1, 1) is one of two and looks nowhere else; head (1, 0) spreads over 16 patches.
    assert rows[1, "patches"]["to_long"] == pytest.approx(0.5 + 0.5 / 16, abs=1e-6)
    assert rows[1, "patches"]["to_other"] == pytest.approx(0.5 / 16, abs=1e-6)
    assert rows[1, "first token"]["low"] > 0.4
    assert rows[2, "patches"]["ratio"] == pytest.approx(1), "a head that asks nothing looks everywhere"
    assert set(found.table["token"]) == {"long", "other"} and found.table["n"][0] == 40


def test_what_tokens_hold_finds_label_and_place_where_they_are():
    generator = np.random.default_rng(0)
    n, labels = 300, np.random.default_rng(1).integers(0, 3, 300)
    places = generator.integers(0, 16, n)
    rows, columns = np.divmod(places, 4)
    noise = generator.normal(size=(n, 8)) * 0.1
    long = noise + np.eye(8)[labels]
    other = noise + np.stack([rows, columns], 1) @ generator.normal(size=(2, 8))
    found = what_tokens_hold({"long": long, "other": other}, {"long": places, "other": places}, labels, (4, 4))
    held = {row["token"]: row for row in found.iter_rows(named=True)}
    assert held["long"]["label_accuracy"] > 0.95 and held["long"]["place_r2"] < 0.1
    assert held["other"]["place_r2"] > 0.95 and held["other"]["high"] < 0.55
    assert held["other"]["low"] <= held["other"]["chance"] + 0.1
    with pytest.raises(BadData, match="too few to fit and judge"):
        what_tokens_hold({"long": long[:12]}, {"long": places[:12]}, labels[:12], (4, 4))
    with pytest.raises(OutOfRange, match="train=1"):
        what_tokens_hold({"long": long}, {"long": places}, labels, (4, 4), train=1.0)


def test_the_whole_diagnosis(model, images, tmp_path):
    others = planted_images(60, seed=5)[0]
    found = diagnose_registers(model, images, others, n_neurons=1, rank_by="excess", progress=False)
    assert found.found and found.facts["layer"] == 2
    assert set(found.tables) == {"layers", "neurons", "held", "arms"}
    assert "from 6.25% to 0.00%" in found.caveats[0] and "(random neurons: 6.25%)" in found.caveats[0]
    found.save(tmp_path / "diagnosis")
    again = RegisterDiagnosis.load(tmp_path / "diagnosis")
    assert again.neurons().by_layer() == {0: [1]} and again.norms().outliers().sum() == 80
    assert again.report(tmp_path / "page.html").stat().st_size > 10_000
    with pytest.raises(SplitOverlap, match="images that choose register neurons"):
        diagnose_registers(model, images, images, progress=False)
    vit = mechvis.load("scenes-vit")
    none = diagnose_registers(vit, mechvis.data.scenes(n=16, seed=1), mechvis.data.scenes(n=16, seed=2), progress=False)
    assert not none.found and set(none.tables) == {"layers"}
    with pytest.raises(BadData, match="no neurons that write them"):
        none.neurons()


@pytest.mark.parametrize("share", [0.002, 0.02, 0.1])
@pytest.mark.parametrize("factor", [3.5, 10.0])
def test_threshold_lies_between_two_hills(share, factor):
    generator = np.random.default_rng(0)
    n = 20_000
    lengths = np.exp(generator.normal(np.log(12), 0.15, n))
    long = generator.permutation(n)[: int(share * n)]
    lengths[long] = np.exp(generator.normal(np.log(12 * factor), 0.1, len(long)))
    found = suggest_threshold(lengths)
    assert found is not None and found.share == pytest.approx(share, rel=0.05)
    assert 12 * 1.3 < found.value < 12 * factor * 0.9
    assert found.normal == pytest.approx(12, rel=0.1) and found.long == pytest.approx(12 * factor, rel=0.2)


@pytest.mark.parametrize("seed", range(5))
def test_one_hill_has_no_threshold(seed):
    generator = np.random.default_rng(seed)
    assert suggest_threshold(np.exp(generator.normal(2, 0.15, 20_000))) is None
    assert suggest_threshold(np.exp(generator.normal(2, 0.5, 20_000))) is None, "broad, but one hill"
    half = np.concatenate([np.full(500, 1.0), np.full(500, 10.0)])
    assert suggest_threshold(half + 0.01 * generator.random(1000)) is None, "half of the tokens are no outliers"


def test_scenes_vit_has_no_long_patches():
    vit = mechvis.load("scenes-vit")
    found = token_norms(vit, mechvis.data.scenes(n=64, seed=4), progress=False)
    assert found.table["threshold"].null_count() == 4 and found.last_with_outliers() is None
    assert "no outlier tokens" in found.caveats[0]
    with pytest.raises(BadData, match="one hill in every layer"):
        found.outliers()
    forced = found.outliers(3, threshold=float(found.pick(layer=3)["p99"]))
    assert forced.mean() == pytest.approx(0.01, abs=0.002)


def test_bad_input(model, images, norms):
    mask = norms.outliers()
    with pytest.raises(OutOfRange, match="layer 7 was not measured"):
        norms.of(7)
    with pytest.raises(BadData, match="no patch after layer 2 is longer than 1000"):
        norms.outliers(2, 1000)
    with pytest.raises(OutOfRange, match=r"layers=\[9\]"):
        token_norms(model, images, layers=[9], progress=False)
    with pytest.raises(UnknownName, match="text tower has no patches"):
        token_norms(mechvis.load("scenes-clip").text, torch.zeros(1, 4, dtype=torch.int64), progress=False)
    with pytest.raises(ShapeMismatch, match=r"bool \[image patch\] = \[80 16\]"):
        register_neurons(model, images, mask[:, :5], progress=False)
    with pytest.raises(BadData, match="no patch is marked"):
        register_neurons(model, images, mask & False, progress=False)
    with pytest.raises(OutOfRange, match="upto=3"):
        register_neurons(model, images, mask, upto=3, progress=False)
    with pytest.raises(UnknownName, match="unknown ranking"):
        register_neurons(model, images, mask, rank_by="norm", progress=False)
    with pytest.raises(BadData, match="no register neuron"):
        with_registers(model, {})
    with pytest.raises(OutOfRange, match="neuron 9 does not exist in block 0, which has 4"):
        with_registers(model, {0: [9]})
    with pytest.raises(OutOfRange, match="layer 5 does not exist"):
        with_registers(model, {5: [0]})
    with pytest.raises(OutOfRange, match="at least one register"):
        with_registers(model, {0: [1]}, n=0)
    with pytest.raises(RefusedMethod, match="this one reads text"):
        with_registers(mechvis.load("scenes-clip").text, {0: [1]})
    with pytest.raises(BadData, match="no head"):
        register_effect(mechvis.load("scenes-clip").vision, images, {0: [1]}, layer=1, threshold=1.0)
    with pytest.raises(BadData, match="no others for the control"):
        register_effect(model, images, {0: [0, 1, 2, 3]}, layer=2, threshold=20.0)
    with pytest.raises(NotFinite, match="NaN or Inf"):
        suggest_threshold(np.array([1.0, np.nan]))
    with pytest.raises(BadData, match="be positive"):
        suggest_threshold(np.array([-1.0, 2.0]))
    with pytest.raises(OutOfRange, match=r"ratio=0\.5"):
        suggest_threshold(np.array([1.0, 2.0]), ratio=0.5)
    with pytest.raises(ShapeMismatch, match="as many names"):
        norm_histogram(["a", "b"], [np.ones(3)])
    with pytest.raises(NotFinite, match="must be positive for a logarithmic axis"):
        norm_histogram(["a"], [np.zeros(3)])
