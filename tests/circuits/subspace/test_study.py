"""A whole study: what it holds, prints, saves and refuses; its edits in a real run."""

import json

import numpy as np
import pytest
import torch

import mechvis
from circuits.subspace import (
    BoundlessSettings,
    DasSettings,
    SubspaceStudy,
    Variable,
    interchange,
    label_variable,
    load_subspace_study,
    read_tail,
    site_tail,
    subspace_study,
)
from mechvis import edits, testing
from mechvis.errors import (
    BadData,
    NotFinite,
    OutOfRange,
    RefusedMethod,
    ResultMismatch,
    ShapeMismatch,
    StoreCorrupt,
    UnknownName,
)
from mechvis.testing.rotated_pair import rotated_pair

QUICK = {"settings": DasSettings(steps=200, rate=2e-2), "pairs": 300, "progress": False}


@pytest.fixture(scope="module")
def pair():
    return rotated_pair()


@pytest.fixture(scope="module")
def planted(pair):
    """Tail and variable of F9, and which images are unusual."""
    images = pair.images(500, seed=3)
    tail = read_tail(images.h, pair.read, pair.head, name="F9")
    variable = Variable(name="a", values=images.a, answer=lambda b, s: pair.answer(images.a[s], images.b[b]))
    return tail, variable, images.unusual


@pytest.fixture(scope="module")
def study(pair, planted):
    tail, variable, unusual = planted
    drawn = torch.Generator().manual_seed(5)
    other = read_tail(tail.h, torch.randn(8, 3, generator=drawn, dtype=torch.float64), pair.head, name="random")
    return subspace_study(
        tail,
        variable,
        ks=(1, 2),
        seeds=3,
        held_out=unusual,
        directions={"planted": pair.direction("copy", "dead")[None]},
        random_tail=other,
        boundless=BoundlessSettings(steps=50, rate=1e-2),
        **QUICK,
    )


@pytest.fixture(scope="module")
def model():
    return mechvis.load(testing.tiny("vit"), preprocess=testing.tiny_preprocess())


@pytest.fixture(scope="module")
def of_a_vit(model):
    """A study of the model's own answers: it names them, whatever they are."""
    pixels = torch.randn(60, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    tail = site_tail(model, pixels, "blocks.1.hook_resid_post")
    variable = label_variable(tail.clean.argmax(1))
    settings = {**QUICK, "settings": DasSettings(steps=5)}
    with testing.assert_untouched(model):
        return subspace_study(tail, variable, ks=(2,), seeds=2, control_seeds=1, **settings), pixels


def test_it_finds_a_and_takes_one_row(study):
    assert study.k == 1 and study.iia > 0.97
    assert study.rows.shape == (1, 8) and len(study.subspaces) == 6
    assert study.images["dropped"] == 0 and study.images["unseen"] > 50


def test_every_baseline_is_there(study):
    methods = {"DAS", "mean difference", "probe", "PCA", "random", "planted", "no edit", "full swap"}
    controls = {"DAS, shuffled V", "DAS, random weights", "no edit, shuffled V", "no edit, random weights"}
    assert methods | controls | {"boundless DAS"} == set(study.curve["method"])
    assert study.accuracy("planted")["iia"].item() == 1.0
    assert study.accuracy("mean difference", k=1)["iia"].item() > 0.97
    assert study.accuracy("mean difference", k=2).is_empty(), "two means span one direction"
    for name in ("no edit", "full swap", "DAS, shuffled V", "DAS, random weights"):
        assert study.accuracy(name)["iia"].max() < 0.7, name
    assert len(study.accuracy("random", k=1)) == 5 and len(study.accuracy("DAS")) == 6
    assert set(study.accuracy("DAS", split="unseen")["k"]) == {1}
    assert study.accuracy("DAS, shuffled V", split="train").height == 2


def test_it_prints_accuracy_and_diagnosis_side_by_side(study):
    text = repr(study)
    assert text == study.summary()
    for part in (
        "'a' at F9 (width 8): k = 1",
        "0 dropped (the model's answer is not Y)",
        "k=1                 k=2",
        "mean difference",
        "no edit",
        "DAS, shuffled V, k = 1",
        "component test",
        "stability over seeds",
        "generalisation drop",
        "logit difference destroyed",
        study.verdict,
    ):
        assert part in text, part
    assert "proof" in text or "Alarms" in text


def test_it_comes_back_from_disk(study, tmp_path):
    study.save(tmp_path / "study")
    again = load_subspace_study(tmp_path / "study")
    assert repr(again) == repr(study)
    assert again.curve.equals(study.curve) and again.diagnosis.equals(study.diagnosis)
    assert torch.equal(again.rows, study.rows) and again.rows.dtype == torch.float64
    assert again.settings["ks"] == [1, 2] and again.provenance["seeds"] == {"seed": 0}
    assert again.place is None and SubspaceStudy.load(tmp_path / "study").key == study.key


def test_damaged_and_foreign_folders_are_refused(study, tmp_path):
    folder = study.save(tmp_path / "study")
    manifest = json.loads((folder / "subspace.json").read_text())
    with pytest.raises(StoreCorrupt, match=r"subspace\.json"):
        load_subspace_study(tmp_path / "nothing")
    data = (folder / "subspaces.safetensors").read_bytes()
    (folder / "subspaces.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(StoreCorrupt, match=r"subspaces\.safetensors is damaged"):
        load_subspace_study(folder)
    (folder / "subspace.json").write_text(json.dumps({**manifest, "version": 99}))
    with pytest.raises(ResultMismatch, match="version 99"):
        load_subspace_study(folder)
    (folder / "subspace.json").write_text(json.dumps({**manifest, "format": "mechvis.cigma"}))
    with pytest.raises(ResultMismatch, match=r"'mechvis\.cigma', not 'mechvis\.subspace'"):
        load_subspace_study(folder)


def test_report_and_figure(study, tmp_path):
    page = study.report(tmp_path / "study.html").read_text()
    assert "Where is a?" in page and "component test" in page and study.verdict in page
    assert study.plot().axes[0].get_ylabel() == "IIA"


def test_unknown_methods_are_refused(study):
    with pytest.raises(UnknownName, match="mean difference"):
        study.accuracy("mean diff")
    with pytest.raises(UnknownName, match="validation"):
        study.accuracy("DAS", split="dev")
    with pytest.raises(BadData, match="no site of a wrapped model"):
        study.edit(torch.zeros(1, 8, dtype=torch.float64))


# edits of a wrapped model


def test_the_edit_is_the_interchange(of_a_vit, model):
    study, pixels = of_a_vit
    base, source = pixels[:4], pixels[4:8]
    site = study.place.site
    h_base, h_source = study.take(model, base), study.take(model, source)
    run = model.run(base, edits=[study.edit(h_source)], capture=[site])
    expected = interchange(h_base, h_source, study.rows)
    testing.assert_close(study.place.take(run.cache[site]), expected, 1e-5)
    twin = model.run(base, capture=[site]).cache[site].clone()
    twin[:, 0] = expected
    testing.assert_close(run.logits, model.run(base, edits=[edits.patch(site, twin)]).logits, 1e-5)
    # It composes: with another edit, and for some rows only.
    some = model.run(base, edits=[study.edit(h_source[:1], rows=[2]), edits.zero("blocks.2.attn.hook_z", heads=[0])])
    alone = model.run(base, edits=[edits.zero("blocks.2.attn.hook_z", heads=[0])])
    same = (some.logits == alone.logits).all(1)
    assert same.tolist() == [True, True, False, True]


def test_projecting_removes_the_subspace(of_a_vit, model):
    study, pixels = of_a_vit
    site = study.place.site
    edit = study.project()
    assert edit.kind == "project"
    after = study.place.take(model.run(pixels[:3], edits=[edit], capture=[site]).cache[site])
    assert (after @ study.rows.T).abs().max() < 1e-4
    before = study.take(model, pixels[:3])
    testing.assert_close(after, before - before @ study.rows.T @ study.rows, 1e-5)


def test_a_place_survives_saving(of_a_vit, model, tmp_path):
    study, pixels = of_a_vit
    again = load_subspace_study(study.save(tmp_path / "vit"))
    assert again.place == study.place and again.provenance["model"]["fingerprint"] == model.fingerprint
    source = again.take(model, pixels[:1])
    one, other = (model.run(pixels[1:3], edits=[s.edit(source)]).logits for s in (study, again))
    assert torch.equal(one, other)


def test_sources_that_do_not_fit_are_refused(of_a_vit, model):
    study, pixels = of_a_vit
    with pytest.raises(ShapeMismatch, match=r"\[row 16\]"):
        study.edit(torch.zeros(2, 5))
    with pytest.raises(NotFinite, match="NaN"):
        study.edit(torch.full((1, 16), float("nan")))
    with pytest.raises(ShapeMismatch, match="4 rows are edited, and there are 2 sources"):
        model.run(pixels[:4], edits=[study.edit(torch.zeros(2, 16))])


def test_several_tokens_of_one_head(model):
    pixels = torch.randn(40, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    tail = site_tail(model, pixels, "blocks.0.attn.hook_z", tokens=[0, 3], head=2)
    assert tail.width == 2 * model.cfg.d_head
    settings = {**QUICK, "settings": DasSettings(steps=3, penalty=0.01)}
    study = subspace_study(tail, label_variable(tail.clean.argmax(1)), ks=(1,), seeds=2, control_seeds=1, **settings)
    source = study.take(model, pixels[:3])
    run = model.run(pixels[3:6], edits=[study.edit(source)], capture=[study.place.site])
    expected = interchange(study.take(model, pixels[3:6]), source, study.rows)
    testing.assert_close(study.place.take(run.cache[study.place.site]), expected, 1e-5)
    assert study.project().kind == "call"
    assert "effective" in study.diagnosis["note"][0]


# what is refused


def test_a_behaviour_that_is_not_there_is_refused(planted):
    tail, variable, _ = planted
    wrong = label_variable(variable.values, name="a as the label")
    with pytest.raises(RefusedMethod, match="does not do what is to be explained"):
        subspace_study(tail, wrong, **QUICK)


@pytest.mark.parametrize(
    ("more", "error", "text"),
    [
        ({"ks": ()}, OutOfRange, "1 to 8 rows"),
        ({"ks": (0, 1)}, OutOfRange, "1 to 8 rows"),
        ({"ks": (9,)}, OutOfRange, "1 to 8 rows"),
        ({"seeds": 0}, OutOfRange, "at least one each"),
        ({"directions": {"PCA": torch.eye(8, dtype=torch.float64)[:1]}}, BadData, "measured anyway"),
        ({"directions": {"mine": 2 * torch.eye(8, dtype=torch.float64)[:1]}}, ShapeMismatch, "orthonormal"),
    ],
)
def test_settings_that_cannot_be(planted, more, error, text):
    tail, variable, _ = planted
    with pytest.raises(error, match=text):
        subspace_study(tail, variable, **{**QUICK, **more})


def test_a_variable_that_changes_nothing_is_refused(planted, pair):
    tail, variable, _ = planted
    labels = tail.clean.argmax(1)
    idle = Variable(name="idle", values=variable.values, answer=lambda base, source: labels[base])
    with pytest.raises(BadData, match="changes the right answer in none of"):
        subspace_study(tail, idle, **QUICK)


def test_lengths_must_fit(planted, pair):
    tail, variable, _ = planted
    with pytest.raises(ShapeMismatch, match="3 images, F9 500"):
        subspace_study(tail, label_variable(torch.tensor([0, 1, 0])), **QUICK)
    short = read_tail(tail.h[:10], pair.read, pair.head)
    with pytest.raises(ShapeMismatch, match="same hook and images"):
        subspace_study(tail, variable, random_tail=short, **QUICK)


def test_the_result_depends_on_the_seed_only(planted):
    tail, variable, _ = planted
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    options = {**QUICK, "settings": DasSettings(steps=20), "ks": (1,), "seeds": 1, "control_seeds": 1}
    one, other = (subspace_study(tail, variable, **options) for _ in range(2))
    assert torch.equal(one.rows, other.rows) and one.curve.equals(other.curve)
    assert torch.equal(before[0], torch.get_rng_state()) and (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert "not measured: one subspace only" in repr(one) and "not measured: hold images out" in repr(one)
