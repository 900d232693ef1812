"""The study as a whole: splits, choices, files, report, and what it refuses."""

import base64
import html.parser
import re
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

import mechvis
from circuits import Study, cigma, load_study
from circuits.masks import MaskSettings
from mechvis import testing
from mechvis.errors import (
    BadData,
    FailedMasks,
    OutOfRange,
    OutputNotWritable,
    ResultMismatch,
    SplitOverlap,
    StoreCorrupt,
    UnknownName,
)
from mechvis.means import means

BUDGET = 2_000_000
"""Bytes: cuts the selection images of an interrupted study into a few pieces."""
QUICK = {"fill": "zero", "progress": False, "sensitivity": False}


def shortcut(n=150, seed=0, **changes):
    return replace(testing.shortcut_images(n, seed=seed).image_set(), **changes)


@pytest.fixture(scope="module")
def model():
    return testing.shortcut_vit()


@pytest.fixture(scope="module")
def study(model):
    return cigma(model, shortcut(), fill="zero", progress=False)


def assert_same(one, other, but=()):
    for name in ("ranking", "recommended", "chosen", "masks", "stability", "settings"):
        if name not in but:
            assert getattr(one, name) == getattr(other, name), name
    for name in ("curve", "evaluation", "controls", "images"):
        assert getattr(one, name).equals(getattr(other, name)), name
    for a, b in ((one.scores, other.scores), (one.true_positives, other.true_positives)):
        assert a.table.equals(b.table)
        assert list(a.values) == list(b.values)
        assert all(np.array_equal(a.values[m], b.values[m], equal_nan=True) for m in a.values)
    assert one.examples.keys() == other.examples.keys()
    assert all(np.array_equal(one.examples[key], other.examples[key]) for key in one.examples)


# saving and loading


def test_round_trip(study, tmp_path):
    folder = study.save(tmp_path / "study")
    loaded = load_study(folder)
    assert_same(study, loaded)
    assert loaded.provenance == study.provenance
    assert loaded.summary() == study.summary() == repr(loaded)
    assert loaded.against_random("BIR") == study.against_random("BIR")


@pytest.mark.parametrize("name", ["curve.parquet", "controls.parquet", "examples.safetensors"])
def test_a_damaged_file_is_named(study, tmp_path, name):
    folder = study.save(tmp_path / "study")
    file = folder / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(bytes(data))
    with pytest.raises(StoreCorrupt, match=re.escape(name)):
        load_study(folder)


def test_a_missing_file_or_manifest_is_named(study, tmp_path):
    folder = study.save(tmp_path / "study")
    (folder / "evaluation.parquet").unlink()
    with pytest.raises(StoreCorrupt, match=re.escape("evaluation.parquet")):
        load_study(folder)
    (folder / "study.json").unlink()
    with pytest.raises(StoreCorrupt, match=re.escape("study.json")):
        load_study(folder)


# choices


def test_nothing_is_recommended_without_a_shortcut(model):
    """Context and object always of one class: nothing to find, and the study says so."""
    drawn = testing.shortcut_images(400)
    agreeing = drawn.image_set()[drawn.agree.numpy()][:150]
    found = cigma(model, agreeing, **QUICK)
    assert found.recommended == () and found.chosen == ()
    assert found.summary().startswith("CIGMA: no head is recommended for removal")
    assert found.measure("BIR")["change"] == 0 and found.curve["K"].to_list() == [0]
    with pytest.raises(UnknownName, match="no random control: nothing was removed"):
        found.against_random()
    assert found.apply(model).pruned == ()


def test_nothing_is_recommended_for_a_random_model():
    wrapped = mechvis.load(testing.tiny("vit"), preprocess=testing.tiny_preprocess())
    found = cigma(wrapped, coloured(60, classes=8), progress=False, sensitivity=False)
    assert len(found.recommended) < 4
    assert found.measure("BIR")["n"] == found.settings["images"]["evaluation"]


def coloured(n=60, classes=3, names=(), groups=None, seed=0, masks=True):
    """RGB noise with a square object: something every tiny Hugging Face model takes."""
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, 256, (n, 12, 12, 3), dtype=np.uint8)
    mask = np.zeros((12, 12), bool)
    mask[3:9, 4:10] = True
    return mechvis.data.ImageSet(
        name="noise",
        ids=tuple(f"noise/{seed}/{i}" for i in range(n)),
        read=drawn.__getitem__,
        rows=np.arange(n),
        labels=np.arange(n) % classes,
        class_names=names,
        groups=groups,
        read_mask=(lambda i: mask) if masks else None,
    )


def test_a_number_of_heads_is_obeyed(model):
    three = cigma(model, shortcut(), k=3, **QUICK)
    assert len(three.chosen) == 3 and "L1H1" in three.chosen
    assert "Not recommended, but asked for" in three.summary()
    none = cigma(model, shortcut(), k=0, **QUICK)
    assert none.chosen == () and none.recommended == ("L1H1",)
    assert "k=0 was asked for" in none.summary()
    assert none.measure("accuracy")["change"] == 0


def test_removing_every_head_has_no_control(model, tmp_path):
    everything = cigma(model, shortcut(), k=8, **QUICK)
    assert len(everything.chosen) == 8 and not everything.has_control
    assert "only one set" in everything.settings["no random control"]
    assert everything.report(tmp_path / "r.html").exists()


def test_only_the_candidates_are_tried(model):
    found = cigma(model, shortcut(), candidates=(0,), **QUICK)
    assert found.chosen == () and found.recommended == ("L1H1",)
    assert "no set of them is validated" in found.summary()


def test_a_costly_removal_is_not_chosen():
    """A group that the shortcut helps: without the context head its images, labelled by their context, are lost."""
    drawn = testing.shortcut_images(300)
    by_context = np.arange(300) % 3 == 0
    labels = np.where(by_context, drawn.contexts.numpy(), drawn.labels.numpy())
    groups = np.where(by_context, "by context", "by object")
    images = replace(drawn.image_set(), labels=labels, groups=groups)
    model = testing.shortcut_vit()
    strict, loose = (cigma(model, images, max_cost=cost, **QUICK) for cost in (0.05, 1.0))
    row = strict.curve.filter(pl.col("K") == 1).row(0, named=True)
    assert not row["validated"] and row["largest cost"] > 0.2
    assert strict.chosen == ()
    assert loose.curve["validated"].all()


def redundant(gain):
    """ShortcutViT with its context head twice, both with this gain."""
    from mechvis.models.load import wrap

    bare = testing.ShortcutViT()
    second = bare.layers[1]
    with torch.no_grad():
        for linear in (second.q_proj, second.k_proj, second.v_proj):
            linear.weight[12:16] = linear.weight[4:8]
        second.q_proj.bias[12:16] = second.q_proj.bias[4:8]
        for head in (1, 3):
            at = slice(4 * head, 4 * head + 4)
            second.o_proj.weight[:, at] = second.o_proj.weight[:, 4:8] * (gain / 3.0 if head == 1 else 1.0)
    return wrap(bare, family=testing.shortcut_parts, preprocess=testing.shortcut_preprocess(), title="redundant")


def test_greedy_finds_the_second_of_two_context_heads():
    found = cigma(redundant(3.0), shortcut(240), greedy=True, **QUICK)
    assert set(found.recommended[:2]) == {"L1H1", "L1H3"} <= set(found.chosen)
    assert found.measure("accuracy: conflict")["after"] == 1.0
    limited = cigma(redundant(3.0), shortcut(240), greedy=True, k=2, **QUICK)
    assert set(limited.chosen) == {"L1H1", "L1H3"}


def test_greedy_cannot_see_heads_that_are_fully_redundant():
    """Either of the two is enough: each alone scores about zero, so no first head stands out (documented)."""
    found = cigma(redundant(400.0), shortcut(240), greedy=True, **QUICK)
    rows = {row["unit"]: row["effect"] for row in found.scores.rows("cigma").iter_rows(named=True)}
    assert abs(rows["L1H1"]) < 0.01 and abs(rows["L1H3"]) < 0.01
    assert "L1H1" not in found.chosen and "L1H3" not in found.chosen
    assert found.measure("accuracy: conflict")["after"] < 0.5


# splits and repetition


def test_the_three_sets_are_disjoint(study):
    assert sum(study.settings["images"].values()) == 150
    selection, evaluation = set(study.scores.images["id"]), set(study.images["id"])
    assert not selection & evaluation
    assert {"selection", "validation", "evaluation"} == set(study.provenance["splits"])
    assert len({facts["fingerprint"] for facts in study.provenance["splits"].values()}) == 3


def test_overlap_is_refused_and_said_where_it_is_wanted(model, tmp_path):
    images = shortcut(120)
    sets = {"selection": images[:60], "validation": images[50:80], "evaluation": images[80:]}
    with pytest.raises(SplitOverlap, match="selection and validation images must not share images: 10 in both"):
        cigma(model, **sets, **QUICK)
    found = cigma(model, **sets, allow_overlap=True, **QUICK)
    page = found.report(tmp_path / "r.html").read_text(encoding="utf-8")
    assert "which may overlap" in page and "too good to be true" in page


def test_given_sets_are_used_as_given(model):
    images = shortcut(150)
    found = cigma(model, selection=images[:60], validation=images[60:90], evaluation=images[90:], **QUICK)
    assert found.settings["images"] == {"selection": 60, "validation": 30, "evaluation": 60}
    assert list(found.images["id"]) == list(images[90:].ids)


def test_same_seed_same_study_and_nothing_else_changes(model, study):
    images = shortcut()
    kept = {name: np.copy(getattr(images, name)) for name in ("labels", "groups", "rows")}
    with testing.assert_untouched(model):
        again = cigma(model, images, fill="zero", progress=False)
    assert_same(study, again)
    assert all(np.array_equal(getattr(images, name), value) for name, value in kept.items())
    assert cigma(model, images, seed=1, **QUICK).scores.images["id"].to_list() != study.scores.images["id"].to_list()


def test_an_interrupted_study_continues(model, tmp_path, monkeypatch):
    import mechvis.engine as engine

    whole = cigma(model, shortcut(), budget=BUDGET, **QUICK)
    real, calls = engine._compute, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(engine, "_compute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cigma(model, shortcut(), budget=BUDGET, out=tmp_path / "s", **QUICK)
    assert not (tmp_path / "s" / "study.json").exists()
    monkeypatch.setattr(engine, "_compute", lambda *args: calls.append(1) or real(*args))
    found = cigma(model, shortcut(), budget=BUDGET, out=tmp_path / "s", **QUICK)
    first = len(calls)
    assert_same(whole, found)
    assert_same(whole, load_study(tmp_path / "s"))
    cigma(model, shortcut(), budget=BUDGET, out=tmp_path / "s", **QUICK)
    assert len(calls) == first, "a third call computes no piece again"
    with pytest.raises(ResultMismatch, match="differs in: tau"):
        cigma(model, shortcut(), out=tmp_path / "s", tau=2.0, **QUICK)


def test_another_reference_is_another_job(model, tmp_path):
    options = {**QUICK, "mode": "mean_positional", "out": tmp_path / "s"}
    cigma(model, shortcut(120), reference=shortcut(40, seed=8), **options)
    with pytest.raises(ResultMismatch, match="means"):
        cigma(model, shortcut(120), reference=shortcut(40, seed=9), **options)


# modes


def test_mean_ablation_with_reference_images(model):
    images, other = shortcut(150), renamed(shortcut(60, seed=9), "other")
    found = cigma(model, images, mode="mean_positional", reference=other, **QUICK)
    assert found.chosen == ("L1H1",) and found.settings["reference"]["n"] == 60
    assert found.measure("accuracy: conflict")["after"] > 0.9
    computed = means(model, other, "blocks.*.attn.hook_z")
    assert_same(found, cigma(model, images, mode="mean_positional", reference=computed, **QUICK))


def renamed(images, word):
    return replace(images, ids=tuple(f"{word}/{i}" for i in range(len(images))))


def test_mean_ablation_takes_its_reference_from_the_selection(model):
    found = cigma(model, shortcut(150), mode="mean_positional", **QUICK)
    assert found.settings["images"]["selection"] + found.settings["reference"]["n"] == 60
    assert found.chosen == ("L1H1",)


def test_reference_images_must_be_others(model):
    images = shortcut(150)
    with pytest.raises(SplitOverlap, match="reference and selection images"):
        cigma(model, images, mode="mean_positional", reference=images[:30], **QUICK)
    computed = means(model, images[:30], "blocks.*.attn.hook_z")
    with pytest.raises(SplitOverlap, match=r"reference and selection images must not share images: \d+ ids"):
        cigma(model, images, mode="mean_positional", reference=computed, **QUICK)
    with pytest.raises(BadData, match="reference= is for mode='mean_positional'"):
        cigma(model, images, reference=images[:30], **QUICK)


@pytest.mark.filterwarnings("ignore::mechvis.errors.FailedMasks")
def test_images_without_masks_get_optimised_ones(model):
    images = shortcut(45, read_mask=None)
    settings = MaskSettings(grid=4, steps=15)
    with pytest.warns(FailedMasks, match="the images have no masks: the model's own"):
        found = cigma(model, images, mask_settings=settings, **QUICK)
    assert found.masks["source"] == found.settings["mask_source"] == "optimised"
    assert found.masks["n"] == 45 and 0 <= found.masks["failed self-check"] <= 45
    assert "IoU with given masks" not in found.masks


@pytest.mark.filterwarnings("ignore::mechvis.errors.FailedMasks")
def test_optimised_masks_are_compared_with_given_ones(model, tmp_path):
    settings = MaskSettings(grid=4, steps=15)
    found = cigma(model, shortcut(45), mask_source="optimised", mask_settings=settings, out=tmp_path, **QUICK)
    assert 0 <= found.masks["IoU with given masks"] <= 1
    assert {path.name for path in (tmp_path / "masks").iterdir()} == {"selection", "validation", "evaluation"}
    assert "turn around" in found.report(tmp_path / "r.html").read_text(encoding="utf-8")


def test_without_groups(model, tmp_path):
    found = cigma(model, shortcut(150, groups=None), **QUICK)
    assert found.chosen == ("L1H1",)
    assert not any(name.startswith("accuracy: ") for name in found.evaluation["measure"])
    assert found.measure("worst group")["after"] == found.measure("accuracy")["after"]
    assert found.settings["Locate-Then-Correct looks at"] == "all selection images"
    assert found.report(tmp_path / "r.html").exists()


def test_stability_is_reported(study):
    assert study.stability["images scored again"] == 60
    assert {"rank correlation, tau 2", "rank correlation, tau 5"} <= set(study.stability)
    assert all(-1 <= value <= 1 for name, value in study.stability.items() if name.startswith("rank"))


def test_a_distilled_model_says_which_comparators_are_missing(tmp_path, caplog):
    wrapped = mechvis.load(testing.tiny("deit-distilled"), preprocess=testing.tiny_preprocess())
    found = cigma(wrapped, coloured(60, classes=8), k=2, progress=False, sensitivity=False)
    assert "Hugging Face DeiT reads 2 tokens" in found.settings["no direct effects"]
    assert "direct effect" not in found.controls["selection"].to_list()
    assert "comparators by direct effect are left out" in caplog.text
    assert "There are no direct effects to compare with" in found.report(tmp_path / "r.html").read_text("utf-8")


def test_half_precision_and_two_classes():
    bare = testing.tiny("vit", dtype=torch.bfloat16, num_labels=2)
    wrapped = mechvis.load(bare, preprocess=testing.tiny_preprocess())
    found = cigma(wrapped, coloured(45, classes=2), k=1, progress=False, sensitivity=False)
    assert np.isfinite(found.scores.table["effect"].to_numpy()).all()
    assert 0 <= found.measure("BIR")["after"] <= 1


# the report


class _Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)


def test_report_holds_what_was_found_and_the_command(study, tmp_path):
    known = replace(study, provenance={**study.provenance, "command": "mechvis cigma --model a --images 'b c'"})
    page = known.report(tmp_path / "deep" / "report.html").read_text(encoding="utf-8")
    read = _Page(page)
    text = " ".join(" ".join(read.words).split())
    bir = study.measure("BIR")
    for expected in (
        f"{bir['before']:.3f} → {bir['after']:.3f}",
        "0.0% → 100.0%",
        "removing L1H1 lowers the background influence ratio",
        "mechvis cigma --model a --images 'b c'",
        study.provenance["model"]["fingerprint"],
        "Against other ways to choose heads",
        "Locate-Then-Correct",
        "disjoint",
    ):
        assert expected in text, expected
    pictures = [attributes["src"] for tag, attributes in read.tags if tag == "img"]
    assert len(pictures) > 10 and all(source.startswith("data:image/") for source in pictures)
    assert not [tag for tag, attributes in read.tags if tag in ("link", "iframe") or "onerror" in attributes]
    assert all(base64.b64decode(source.split(",")[1]) for source in pictures if ";base64," in source)


def test_hostile_names_stay_text(tmp_path):
    nasty = "<script>alert(1)</script>"
    wrapped = mechvis.load(testing.tiny("vit"), preprocess=testing.tiny_preprocess())
    groups = np.array([nasty, "$x^{", '"><img src=x onerror=alert(1)>'])[np.arange(60) % 3]
    images = replace(coloured(60, classes=8, groups=groups), ids=tuple(f"{nasty}{i}" for i in range(60)), name=nasty)
    found = cigma(wrapped, images, k=1, progress=False, sensitivity=False)
    page = found.report(tmp_path / "r.html").read_text(encoding="utf-8")
    assert nasty not in page and "&lt;script&gt;alert(1)" in page
    read = _Page(page)
    assert len([tag for tag, _ in read.tags if tag == "script"]) == 1
    assert not [tag for tag, attributes in read.tags if "onerror" in attributes]
    assert load_study(found.save(tmp_path / "s")).summary() == found.summary()


def test_report_of_a_study_that_removes_nothing(model, tmp_path):
    found = cigma(model, shortcut(), k=0, **QUICK)
    assert "Nothing is removed" in found.report(tmp_path / "r.html").read_text(encoding="utf-8")


def test_summary_has_the_numbers(study):
    text = study.summary()
    bir = study.measure("BIR")
    assert f"{bir['before']:.3f} before, {bir['after']:.3f} after" in text
    assert "accuracy: conflict" in text and "95 % interval" in text and "different" in text
    assert "L1H1" in text and "recommended" in text


def test_measures_by_name(study):
    with pytest.raises(UnknownName, match="no measure 'bir'; there are: BIR"):
        study.measure("bir")
    with pytest.raises(UnknownName, match="no measure 'heads'"):
        study.against_random("heads")
    assert study.against_random("worst group")["p"] <= 1
    assert study.against_random("NLL")["observed"] == study.measure("NLL (nats)")["after"]


# what is refused, before any work


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"controls": 19}, OutOfRange, "at least 20 draws"),
        ({"k": -1}, OutOfRange, "k is 'auto' or a number"),
        ({"k": True}, OutOfRange, "k is 'auto' or a number"),
        ({"k": 1.5}, OutOfRange, "k is 'auto' or a number"),
        ({"k": 9}, OutOfRange, "k=9: the model has only 8 heads"),
        ({"candidates": ()}, OutOfRange, "candidates are such numbers"),
        ({"candidates": (1, -2)}, OutOfRange, "candidates are such numbers"),
        ({"tau": 0.0}, OutOfRange, "tau must be above 0"),
        ({"max_cost": -0.1}, OutOfRange, "max_cost between 0 and 1"),
        ({"fill": "grey"}, UnknownName, "unknown fill 'grey'"),
        ({"mode": "mean"}, UnknownName, "Nearest: mean_positional"),
        ({"rank_by": "guard"}, UnknownName, "Nearest: guarded"),
        ({"mask_source": "yes"}, UnknownName, "unknown mask_source"),
    ],
)
def test_settings_that_cannot_work(model, settings, error, message):
    with pytest.raises(error, match=message):
        cigma(model, shortcut(40), **{**QUICK, **settings})


def test_labels_are_needed_and_must_be_the_models(model):
    with pytest.raises(BadData, match="the selection images have no labels"):
        cigma(model, shortcut(40, labels=None, class_names=()), **QUICK)
    with pytest.raises(OutOfRange, match=r"labels from 0 to 5, the model's classes are 0 to 2"):
        cigma(model, shortcut(40, labels=np.arange(40) % 6, class_names=()), **QUICK)
    with pytest.raises(BadData, match=r"has the class 'x'.*unknown to the model"):
        cigma(model, shortcut(40, class_names=("x", "y", "z")), **QUICK)


def test_models_that_are_no_classifiers():
    base = mechvis.load(testing.tiny("vit-base"), preprocess=testing.tiny_preprocess())
    with pytest.raises(BadData, match="has no classes"):
        cigma(base, coloured(), **QUICK)
    clip = mechvis.load(testing.tiny("clip"), preprocess=testing.tiny_preprocess())
    with pytest.raises(BadData, match=r"got HookedCLIP. Use clip.classifier\(class_names\)"):
        cigma(clip, coloured(), **QUICK)
    with pytest.raises(BadData, match=r"Use mechvis.load\(model\)"):
        cigma(testing.tiny("vit"), coloured(), **QUICK)
    one = mechvis.load(testing.tiny("vit", num_labels=1), preprocess=testing.tiny_preprocess())
    with pytest.raises(BadData, match="the model's head has 1 output"):
        cigma(one, coloured(60, classes=1), **QUICK)


def test_masks_that_mask_nothing_or_all_are_named(model):
    images = shortcut(40)
    empty = replace(images, read_mask=lambda i: np.zeros((4, 4), bool))
    with pytest.raises(BadData, match=r"16 selection masks are empty and 0 cover the whole image .*shortcut/"):
        cigma(model, empty, **QUICK)
    with pytest.raises(BadData, match="mask_source='given', but the images have no masks"):
        cigma(model, replace(images, read_mask=None), mask_source="given", **QUICK)


def test_sets_that_are_incomplete(model):
    images = shortcut(40)
    with pytest.raises(BadData, match="no validation and no evaluation images"):
        cigma(model, selection=images, **QUICK)
    with pytest.raises(BadData, match="pass either images="):
        cigma(model, images, selection=images, **QUICK)
    with pytest.raises(BadData, match="20 images are too few"):
        cigma(model, images[:20], **QUICK)


def test_unwritable_output_is_said_first(model, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OutputNotWritable):
        cigma(model, shortcut(40), out=tmp_path / "file", **QUICK)
    with pytest.raises(OutputNotWritable, match="it is a folder"):
        cigma(model, shortcut(40), k=0, **QUICK).report(tmp_path)


def test_a_study_of_another_architecture(study):
    wrapped = mechvis.load(testing.tiny("vit", num_hidden_layers=1), preprocess=testing.tiny_preprocess())
    with pytest.raises(ResultMismatch, match="the model has no head L1H1"):
        study.units(wrapped)
    assert isinstance(study, Study)
