"""The bundled CLIP: heads named colour and shape by their texts, confirmed by ablation and masks; what texts explain.

Few images keep this quick. The figures with more of them are in the documentation.
"""

import numpy as np
import polars as pl
import pytest
import torch

import mechvis
from mechvis import testing
from mechvis.data.scene_factors import BACKGROUNDS, COLOURS, SHAPES
from mechvis.data.text_bank import TextBank, text_bank
from mechvis.data.text_encoding import encode_bank
from mechvis.errors import BadData, OutOfRange, ResultMismatch, ShapeMismatch, SplitOverlap, UnknownName
from mechvis.models.load import wrap
from mechvis.record import load_record
from probes.textspan import (
    TextSpan,
    class_task,
    compare_forms,
    compare_on_model,
    confirm_heads,
    confirm_span,
    localisation,
    property_tasks,
    remove_cue,
    replaced_accuracy,
    retrieval,
    segmentation,
    span_direct,
    subspace,
    term_shares,
    text_span,
)
from probes.textspan.controls import pca_bound
from probes.textspan.moments import gather
from probes.textspan.reading import read
from probes.textspan.retrieval import chance, neighbours

COLOUR, SHAPE, BACKGROUND = ("L1H0", "L1H1"), ("L3H0", "L3H1", "L3H2", "L3H3"), ("L0H0", "L0H2", "L0H3", "L1H2")


@pytest.fixture(scope="module")
def clip():
    return mechvis.load("scenes-clip")


@pytest.fixture(scope="module")
def bank():
    return text_bank("scenes")


@pytest.fixture(scope="module")
def pool(clip, bank):
    return encode_bank(clip, bank)


@pytest.fixture(scope="module")
def found(clip):
    return text_span(clip, mechvis.data.scenes(160, seed=31), "scenes", m=5, permutations=1999, progress=False)


@pytest.fixture(scope="module")
def images():
    return mechvis.data.scenes(64, seed=32)


@pytest.fixture(scope="module")
def reference():
    return mechvis.data.scenes(32, seed=33)


@pytest.fixture(scope="module")
def tasks(bank, pool, images):
    return property_tasks(bank, pool, images)


def test_heads_are_named_by_their_texts(found):
    named = found.labels()
    assert set(named["colour"]) == set(COLOUR) and set(named["shape"]) == set(SHAPE)
    assert set(BACKGROUND) <= set(found.labels(by="inside")["background"])
    assert not set(found.labelled("background", by="inside")) & {*COLOUR, *SHAPE}
    assert found.labelled("none") and set(found.texts("L1H0")["property"]) == {"colour"}


def test_shares_lie_between_their_controls(found):
    table = found.table
    assert (table["explained"] <= table["pca"] + 1e-9).all()
    assert (table["explained"] > table["shuffled"]).all()
    named = table.filter(pl.col("label") != "none")
    assert (named["explained"] > named["random_high"]).all()
    # Picks of one half explain the other half as well: the shares are no accident of these images.
    assert np.abs(table["explained"] - table["held_out"]).max() < 0.1


def test_it_is_the_direct_form_on_the_heads_of_the_model(clip, found, pool):
    """The slow twin, from vectors kept image by image."""
    images = mechvis.data.scenes(160, seed=31)
    vectors = np.concatenate([batch.heads for batch in read(clip, images)])
    for place in (4, 6, 15):
        direct = span_direct(vectors[:, place], pool, m=5, rank=32)
        fast = found.span(found.heads[place])
        assert direct.picks.tolist() == fast.picks.tolist()
        np.testing.assert_allclose(direct.cumulative, fast.cumulative, atol=1e-6)
        np.testing.assert_allclose(
            fast.reconstruct(vectors[:, place]), direct.reconstruct(vectors[:, place]), atol=1e-6
        )
    covariance = gather([vectors]).covariance[4]
    assert found.pick(head="L1H0")["pca"] == pytest.approx(pca_bound(covariance, 5)[-1])
    np.testing.assert_allclose(found.arrays["mean"], vectors.mean(0), atol=1e-6)


def test_the_names_depend_on_the_bank_unless_the_mean_of_the_texts_is_off(clip, bank):
    """Texts that name two things take the place of plain ones, and no head is about colour any more."""
    pairs = tuple(f"a photo of a {colour} {shape}" for colour in COLOURS for shape in SHAPES)
    mixed = TextBank(
        name="mixed", texts=bank.texts + pairs, properties=bank.properties + ("",) * 48, words=bank.words + pairs
    )
    settings = {"m": 5, "permutations": 4999, "progress": False}
    images = mechvis.data.scenes(96, seed=31)
    assert "colour" not in text_span(clip, images, mixed, **settings).labels()
    assert set(text_span(clip, images, mixed, center_pool=True, **settings).labels()["colour"]) == set(COLOUR)


class Babble:
    """The bundled image tower with a text tower that says nothing: random embeddings."""

    def __init__(self, clip):
        self.vision, self.text = clip.vision, clip.text

    def encode_text(self, texts, **settings):
        return torch.nn.functional.normalize(torch.randn(len(texts), 64, generator=torch.manual_seed(3)), dim=1)


def test_texts_without_meaning_name_hardly_a_head(clip):
    """The general bank, 3,537 texts of 29 properties, through a text tower that knows nothing."""
    found = text_span(Babble(clip), mechvis.data.scenes(64, seed=31), m=8, draws=1, permutations=1999, progress=False)
    assert found.facts["texts"] > 3000 and len(found.facts["properties"]) == 29
    assert (found.table["label"] != "none").sum() <= 1 and (found.table["inside"] != "none").sum() <= 1
    # As many random directions explain as much: such a bank is no better than noise, and the control says so.
    assert (found.table["explained"] < found.table["random"] + 0.1).all()


def test_a_bank_without_properties_names_nobody(clip):
    texts = ("a star", "a red shape", "a circle", "a blue shape")
    plain = TextBank(name="plain", texts=texts, properties=("",) * 4, words=texts)
    named = text_span(clip, mechvis.data.scenes(8, seed=31), plain, m=2, layers=-1, progress=False)
    assert set(named.table["label"]) == {"none"} and "properties" not in named.tables
    assert named.heads == ("L3H0", "L3H1", "L3H2", "L3H3") and named.figures() == []


def test_it_is_kept_shown_and_reported(found, tmp_path):
    assert isinstance(TextSpan.load(found.save(tmp_path / "span")), TextSpan)
    again = load_record(tmp_path / "span")
    assert again.table.equals(found.table) and again.facts["n"] == 160
    page = found.report(tmp_path / "report.html").read_text()
    assert page.count("<svg") + page.count("<img") >= 2 and "L1H0" in page
    assert "The texts are a basis, not names" in repr(found)


# what the names are worth


def test_ablating_named_heads_takes_their_property_and_no_other(clip, images, reference, tasks):
    groups = {"shape": SHAPE, "colour": COLOUR, "background": BACKGROUND}
    record = confirm_heads(clip, images, groups, tasks, reference=reference, draws=3, progress=False)
    for group in groups:
        own = record.pick(group=group, task=group)
        assert own["margin_drop"] > 0.15 and own["margin_low"] > 0.1
        assert own["margin_drop"] > 2 * abs(own["margin_random"]) and own["margin_p"] == 1 / 4
        for other in set(groups) - {group}:
            assert record.pick(group=group, task=other)["margin_drop"] < own["margin_drop"] / 3
            assert record.pick(group=group, task=other)["drop"] < 0.06
    for group in ("shape", "background"):
        assert record.pick(group=group, task=group)["low"] > 0.2
    assert record.tables["draws"].height == 3 * 3 * 3
    drawn = record.tables["draws"].filter(pl.col("group") == "shape")["random_heads"]
    assert all(len(heads.split()) == 4 and not set(heads.split()) & set(SHAPE) for heads in drawn)


def test_ablation_in_the_forward_pass_is_that_of_the_edits(clip, images, reference, tasks):
    from mechvis import edits
    from mechvis.means import means

    record = confirm_heads(clip, images, {"one": ["L1H2"]}, tasks, reference=reference, draws=1, progress=False)
    average = means(clip.vision, reference, "blocks.1.attn.hook_z")
    run = clip.vision.run(images, edits=[edits.mean_positional("blocks.1.attn.hook_z", average, heads=[2])])
    unit = torch.nn.functional.normalize(run.output.double(), dim=1).numpy()
    right = tasks["background"].correct(unit, np.arange(64)).mean()
    assert record.pick(group="one", task="background")["ablated"] == pytest.approx(right)


def test_maps_of_colour_and_background_lie_where_they_should(clip, images, tasks):
    groups = {"colour heads": COLOUR, "background heads": BACKGROUND}
    few = {name: tasks[name] for name in ("colour", "background")}
    record = localisation(clip, images, few, groups=groups, progress=False)
    found = record.pick(map="all heads", task="colour")
    prior, area = record.pick(map="centre prior", task="colour"), record.pick(map="mask area", task="colour")
    assert found["auroc_low"] > prior["auroc_high"] and found["low"] > area["high"]
    assert record.pick(map="all heads, another text", task="colour")["auroc"] < 0.3
    assert record.pick(map="background heads", task="background")["auroc_high"] < 0.2
    assert area["auroc"] == 0.5 and 0.1 < area["pointing"] < 0.2
    assert record.arrays["colour/all heads"].shape == (64, 8, 8)


def test_segmentation_is_above_the_prior_and_above_nothing(clip, images, tasks):
    record = segmentation(clip, images, tasks["colour"], progress=False)
    heads, prior, nothing = (record.pick(map=name) for name in ("heads", "centre prior", "all background"))
    assert heads["low"] > max(prior["high"], nothing["high"]) and heads["miou_low"] > prior["miou_high"]
    assert heads["map_score"] > prior["map_score"] > nothing["map_score"]


def test_heads_find_images_alike_in_their_property(clip, images, tasks):
    record = retrieval(clip, images, tasks, groups={"shape": SHAPE}, k=5, progress=False)
    assert record.pick(by="L1H0", task="colour")["low"] > record.pick(by="whole embedding", task="colour")["high"]
    assert record.pick(by="L1H0", task="shape")["high"] < 0.3
    assert record.pick(by="shape", task="shape")["low"] > record.pick(by="whole embedding", task="shape")["precision"]
    counts = np.bincount(tasks["shape"].target)
    assert chance(tasks["shape"]) == pytest.approx(sum(n * (n - 1) for n in counts) / (64 * 63))


def test_five_texts_keep_what_heads_know_and_others_do_not(clip, images, found, tasks):
    record = replaced_accuracy(clip, images, found, tasks, ks=(1, 5), progress=False)

    def accuracy(task, heads, k=None):
        rows = record.table.filter((pl.col("task") == task) & (pl.col("heads") == heads))
        return rows.filter(pl.col("k").is_null() if k is None else pl.col("k") == k)["accuracy"][0]

    for task in ("shape", "colour"):
        assert accuracy(task, "texts", 5) > accuracy(task, "heads whole") - 0.1
        assert accuracy(task, "texts", 5) > accuracy(task, "other heads", 5) + 0.1
        assert accuracy(task, "nothing") < 0.35 < accuracy(task, "model")
    # The background is for the most part not in the heads.
    assert accuracy("background", "heads whole") < accuracy("background", "model") - 0.1


def test_shares_add_up_and_say_where_a_property_is_written(clip, images, bank, pool):
    spaces = {name: subspace(bank, pool, name) for name in bank.property_names}
    record = term_shares(clip, images, spaces, batch_size=40, progress=False)
    for within in ("everything", *spaces):
        assert record.tables["terms"].filter(within=within)["share"].sum() == pytest.approx(1)
    # By hand, all images at once.
    batch = next(read(clip, images, batch_size=64))
    whole = batch.whole - batch.whole.mean(0)
    head = batch.heads[:, 4] - batch.heads[:, 4].mean(0)
    share = record.tables["terms"].filter(within="everything", term="L1H0")["share"][0]
    assert share == pytest.approx((head * whole).sum() / np.square(whole).sum())
    kinds = {row["within"]: row["share"] for row in record.table.filter(kind="head").iter_rows(named=True)}
    assert kinds["background"] < 0.4 < kinds["colour"]


def test_a_cue_is_taken_out_and_the_other_ablations_alone_do_much_of_it(clip, reference):
    """Prompts that name the partner background: a classifier with a shortcut."""
    images = mechvis.data.scenes(120, seed=34, correlation=0.5)
    texts = [f"a photo of a {shape} on a {other} background" for shape, other in zip(SHAPES, BACKGROUNDS, strict=True)]
    task = class_task("shape", SHAPES, clip.encode_text(texts).numpy(), images.labels)
    record = remove_cue(clip, images, BACKGROUND, task, reference=reference, draws=3, progress=False)
    names = ("nothing (the model)", "heads", "others alone", "heads and others (the recipe)")
    model, heads, others, recipe = (record.pick(ablated=name) for name in names)
    random = record.pick(ablated="random heads (3 draws)")
    assert model["worst_group"] == "conflicting" and model["worst"] < 0.5
    assert heads["worst"] > model["worst"] + 0.15 and random["worst"] < heads["worst"] - 0.15
    assert others["worst"] > model["worst"] + 0.2 and recipe["worst"] > others["worst"]
    assert record.tables["groups"].height == 2 * 7
    assert "others alone" in record.caveats[0]


def test_both_forms_on_the_model_agree_and_are_timed(clip):
    timed = compare_on_model(clip, mechvis.data.scenes(200, seed=35), "scenes", m=5, layers=-1, progress=False)
    assert timed["n"] == 200 and timed["heads"] == 4 and timed["texts"] == 88
    assert timed["ratio"] > 0 and timed["decompose_s"] > 0
    assert timed["direct_bytes"] > 200 * 4 * 64 * 8 and timed["covariance_bytes"] > 0


def test_a_span_is_confirmed_on_images_that_it_has_not_seen(clip, found, images, reference, bank):
    few = images[:24]
    record = confirm_span(clip, found, few, bank, reference=reference, draws=1, progress=False)
    assert record.facts["groups"]["colour"] == list(COLOUR) and "background (lies along)" in record.facts["groups"]
    with pytest.raises(SplitOverlap, match="8 images are among those that the heads were named on"):
        confirm_span(clip, found, mechvis.data.scenes(8, seed=31), bank, reference=reference)
    with pytest.raises(ResultMismatch, match="made with the bank 'scenes', not with 'general'"):
        confirm_span(clip, found, few, "general", reference=reference)


def test_pixels_without_names_will_do_for_a_span(clip, reference):
    found = text_span(clip, reference.pixels, "scenes", m=2, layers=-1, permutations=99, progress=False)
    assert found.facts["n"] == 32 and len(found.arrays["image_keys"]) == 0


def test_heads_of_an_attention_pooling():
    """Random weights: nothing to find, but every step has to work on heads that are in no block."""
    siglip = wrap(testing.tiny("siglip"), preprocess=testing.tiny_preprocess())
    images, reference = mechvis.data.scenes(12, seed=36), mechvis.data.scenes(8, seed=37)
    width = next(read(siglip, images)).whole.shape[1]
    task = class_task("shape", SHAPES, np.random.default_rng(0).normal(size=(8, width)), images.labels)
    record = confirm_heads(
        siglip, images, {"a": ["pool H0"]}, {"shape": task}, reference=reference, draws=2, progress=False
    )
    assert record.facts["groups"] == {"a": ["pool H0"]}
    cue = remove_cue(siglip, images, ["pool H1"], task, reference=reference, draws=1, progress=False)
    assert cue.pick(ablated="nothing (the model)")["n"] == 12
    shares = term_shares(siglip, images, progress=False)
    assert shares.table["share"].sum() == pytest.approx(1)


# small parts


def test_neighbours_by_brute_force():
    vectors = np.random.default_rng(0).normal(size=(30, 4))
    centred = vectors - vectors.mean(0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    cosine = centred @ centred.T
    np.fill_diagonal(cosine, -2)
    np.testing.assert_array_equal(neighbours(vectors, 3, chunk=7), np.argsort(-cosine, axis=1)[:, :3])


def test_tasks_from_columns_labels_and_prompts(clip, bank, pool, images):
    tasks = property_tasks(bank, pool, images)
    assert list(tasks) == ["shape", "colour", "background"]
    assert tasks["shape"].target.tolist() == images.labels.tolist()
    names = np.array(tasks["colour"].classes)[tasks["colour"].target]
    assert names.tolist() == images.columns["colour"].tolist()
    unit = clip.encode_image(images).double().numpy()
    assert tasks["colour"].correct(unit, np.arange(64)).mean() == 1.0
    margin = tasks["colour"].margin(unit, np.arange(64))
    scores = np.sort(tasks["colour"].scores(unit), axis=1)
    np.testing.assert_allclose(margin, scores[:, -1] - scores[:, -2])


def test_bad_input(clip, images, reference, found, tasks, bank, pool):
    with pytest.raises(BadData, match="no text tower"):
        text_span(mechvis.load("scenes-vit"), images, "scenes")
    with pytest.raises(BadData, match="too few"):
        text_span(clip, images[:3], "scenes")
    with pytest.raises(OutOfRange, match="m=0"):
        text_span(clip, images, "scenes", m=0)
    with pytest.raises(BadData, match="cannot tell"):
        text_span(clip, images, "general")
    with pytest.raises(UnknownName, match="unknown head 'L7H0'"):
        found.texts("L7H0")
    with pytest.raises(UnknownName, match="unknown property 'size'"):
        found.labelled("size")
    with pytest.raises(UnknownName, match="kind of label 'x'"):
        found.labelled("shape", by="x")
    with pytest.raises(SplitOverlap, match="reference and evaluation"):
        confirm_heads(clip, images, {"a": SHAPE}, tasks, reference=images)
    with pytest.raises(UnknownName, match="unknown head 'L9H0'"):
        confirm_heads(clip, images, {"a": ["L9H0"]}, tasks, reference=reference)
    with pytest.raises(BadData, match="the group 'a' holds no head"):
        confirm_heads(clip, images, {"a": []}, tasks, reference=reference)
    with pytest.raises(BadData, match="no group of heads"):
        confirm_heads(clip, images, {}, tasks, reference=reference)
    with pytest.raises(BadData, match="holds 9 of 16 heads"):
        confirm_heads(clip, images, {"a": found.heads[:9]}, tasks, reference=reference)
    with pytest.raises(OutOfRange, match="draws=0"):
        confirm_heads(clip, images, {"a": SHAPE}, tasks, reference=reference, draws=0)
    with pytest.raises(SplitOverlap, match="160 images are among those"):
        replaced_accuracy(clip, mechvis.data.scenes(160, seed=31), found, tasks)
    with pytest.raises(OutOfRange, match="none lies between 1 and the 5"):
        replaced_accuracy(clip, images, found, tasks, ks=(6,))
    other = mechvis.load("scenes-clip")
    with torch.no_grad():
        other.bare.visual_projection.weight[0] += 1
    with pytest.raises(ResultMismatch, match="belongs to another model"):
        replaced_accuracy(other, images, found, tasks)
    with pytest.raises(ShapeMismatch, match="about 64 images, and there are 20"):
        retrieval(clip, images[:20], tasks, progress=False)
    with pytest.raises(OutOfRange, match="k=64"):
        retrieval(clip, images, tasks, k=64, progress=False)
    with pytest.raises(BadData, match="needs an ImageSet"):
        retrieval(clip, images.pixels, tasks, progress=False)
    with pytest.raises(ShapeMismatch, match="not orthonormal"):
        term_shares(clip, images, {"x": np.ones((2, 64))}, progress=False)
    with pytest.raises(BadData, match="has no groups"):
        remove_cue(clip, images, SHAPE, tasks["shape"], reference=reference, groups=np.zeros(3))
    with pytest.raises(OutOfRange, match="last=0"):
        remove_cue(clip, images, SHAPE, tasks["shape"], reference=reference, last=0)
    with pytest.raises(BadData, match="does not say what the colour of an image is"):
        property_tasks(bank, pool, testing.shortcut_images(4).image_set(), ["colour"])
    with pytest.raises(BadData, match="no property of the text bank 'scenes' is known"):
        property_tasks(bank, pool, testing.shortcut_images(4).image_set())
    with pytest.raises(ShapeMismatch, match="targets outside its 2 classes"):
        class_task("x", ["a", "b"], np.eye(2), np.array([2]))
    with pytest.raises(ShapeMismatch, match=r"\[image head d_embed\]"):
        compare_forms(np.zeros((3, 2)), pool)
