"""The one table: ends of the scale, splits, every kind of dictionary and site, the command."""

import importlib
import inspect

import numpy as np
import pytest
import torch

import mechvis
import sae
from mechvis.errors import BadData, ShapeMismatch, SplitOverlap, UnknownName, UnknownSite
from mechvis.record import load_record
from sae import baselines
from sae.commands.evaluate import evaluate as command
from sae.evaluation.evaluation import DictionaryEvaluation
from sae.evaluation.folders import load_dictionaries
from sae.evaluation.reference import BASELINES, baseline, refuse_training_images
from sae.evaluation.table import evaluate

SITE = "blocks.2.hook_resid_post"


@pytest.fixture(scope="module")
def model():
    return mechvis.load("scenes-vit")


@pytest.fixture(scope="module")
def images():
    return mechvis.data.scenes(60, seed=821)


@pytest.fixture(scope="module")
def rows(model):
    return model.run(mechvis.data.scenes(40, seed=822), capture=SITE).cache[SITE].flatten(0, 1)


@pytest.fixture(scope="module")
def trained(rows):
    jobs = {"topk": sae.TopK(n_latents=64, k=4), "batch": sae.BatchTopK(n_latents=64, k=4)}
    return sae.train({SITE: rows}, jobs, sae.Training(tokens=12_000, batch=400, lr=3e-3), progress=False).dictionaries


@pytest.fixture(scope="module")
def evaluated(trained, model, images):
    settings = {"baselines": ("random", "identity", "zero", "mean"), "ks": (1,), "progress": False}
    return evaluate(trained, model, images, **settings)


def test_identity_scores_zero_and_all_recovered_and_zero_nothing(evaluated):
    """D2: scaled compared with unscaled (SAELens #518), normalisation missing in evaluations (#150)."""
    one, nothing = evaluated.of("identity"), evaluated.of("zero")
    assert one["fvu"] == 0 and one["cosine"] == pytest.approx(1) and one["embedding_cosine"] == pytest.approx(1)
    shares = [name for name in evaluated.table.columns if name.endswith(("_zero", "_mean"))]
    assert {"loss_zero", "accuracy_mean", "kl_zero", "own_mean", "embedding_zero"} <= set(shares)
    for name in shares:
        assert one[name] == pytest.approx(1, abs=1e-5), name
        if name.endswith("_zero"):
            assert nothing[name] == pytest.approx(0, abs=1e-5), name
    assert one["agree"] == 1 and nothing["dead"] == 1 and nothing["l0"] == 0
    # The mean of reference rows is not quite that of the judged ones.
    assert evaluated.of("mean")["fvu"] == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("normalise", ["mean_square", "mean_norm", "token_norm", "layer_norm"])
def test_scaling_is_undone_before_anything_is_measured(normalise, rows, model, images):
    """D2 once more, with dictionaries that scale: complete ones (more latents than columns, all active)."""
    d = sae.start(sae.TopK(n_latents=256, k=256, normalise=normalise), {SITE: rows})
    with torch.no_grad():  # +1 and -1 of every column: ReLU of both is the column itself
        eye = torch.eye(128)
        for name in ("W_enc", "W_dec"):
            getattr(d, name).copy_(torch.cat([eye, -eye]))
        d.b_dec.zero_()
    found = evaluate({"d": d}, model, images[:24], metrics=("recovered",), baselines=(), progress=False).of("d")
    assert found["fvu"] < 1e-9 and found["loss_zero"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("normalise", ["none", "mean_square", "mean_norm", "token_norm", "layer_norm"])
@pytest.mark.parametrize("decoder", ["unit", "free"])
def test_a_saved_dictionary_writes_what_it_wrote(normalise, decoder, rows, tmp_path):
    """D1: scaling folded in part only: decoder (SAELens #212), bias (#354), checkpoints (#381)."""
    d = sae.start(sae.TopK(n_latents=64, k=4, normalise=normalise, decoder=decoder), {SITE: rows})
    with torch.no_grad():
        d.b_enc.normal_()
        d.W_dec.mul_(1 if decoder == "unit" else torch.linspace(0.5, 2, 64)[:, None])
        again = sae.load(d.save(tmp_path / "d"))
        torch.testing.assert_close(again(rows), d(rows), atol=1e-4, rtol=1e-4)


def test_trained_dictionaries_lie_between(evaluated):
    for name in ("topk", "batch"):
        row = evaluated.of(name)
        assert 0.05 < row["fvu"] < evaluated.of("random")["fvu"] and row["kind"] == "trained"
        assert row["fvu_low"] < row["fvu"] < row["fvu_high"] and row["images"] == 40 and row["rows"] == 40 * 65
        assert evaluated.above("kl_zero", name, "random") > 0
        assert 0 <= row["dead"] < 1 and row["probe_1"] > row["probe_random_1"]
        assert row["ms"] is not None and row["moran"] is not None and 0 < row["coherence"] <= 1
    assert evaluated.of("topk")["l0"] == 4 == evaluated.facts["active"]


def test_fvu_of_the_table_is_the_plain_one(evaluated, trained, model, images):
    _, judged = images.split(1 / 3, 2 / 3, seed=0)
    x = model.run(judged, capture=SITE).cache[SITE]
    with torch.no_grad():
        y = trained["topk"](x)
    types = {r["type"]: r["fvu"] for r in evaluated.tables["types"].iter_rows(named=True) if r["dictionary"] == "topk"}
    assert evaluated.of("topk")["fvu"] == pytest.approx(sae.evaluation.fvu(x.flatten(0, 1), y.flatten(0, 1)), rel=1e-5)
    assert types["cls"] == pytest.approx(sae.evaluation.fvu(x[:, 0], y[:, 0]), rel=1e-5)
    assert types["patch"] == pytest.approx(sae.evaluation.fvu(x[:, 1:].flatten(0, 1), y[:, 1:].flatten(0, 1)), rel=1e-5)


def test_recovered_loss_of_the_table_is_the_plain_one(evaluated, trained, model, images):
    _, judged = images.split(1 / 3, 2 / 3, seed=0)
    labels = judged.label_tensor

    def loss(edit=()):
        return float(torch.nn.functional.cross_entropy(model.run(judged, edits=edit).logits, labels).detach())

    with torch.no_grad():
        spliced = loss(mechvis.edits.call(SITE, lambda x: trained["topk"](x)))
    gone, clean = loss(mechvis.edits.zero(SITE)), loss()
    assert evaluated.of("topk")["loss_zero"] == pytest.approx((gone - spliced) / (gone - clean), abs=1e-4)


def test_the_record_saves_prints_reports(evaluated, tmp_path):
    again = DictionaryEvaluation.load(evaluated.save(tmp_path / "e"))
    assert again.table.equals(evaluated.table) and isinstance(
        load_record(tmp_path / "e"), sae.evaluation.evaluation.Record
    )
    assert "topk" in repr(again) and set(again.tables) >= {"types", "outputs", "density", "probing", "absorption"}
    undescribed = [c for c in again.table.columns if c not in again.words and not c.endswith(("_low", "_high"))]
    assert not undescribed
    page = again.report(tmp_path / "r.html").read_text()
    assert "those that never fire are left out" in page
    assert again.arrays["frequency/topk"].shape == (64,)
    np.testing.assert_allclose(again.arrays["frequency/topk"].sum(), 4, rtol=1e-6)


def test_training_images_do_not_judge(model, images, rows):
    small = mechvis.data.scenes(6, seed=823)
    source = sae.from_model(model, small, SITE, size=64)
    d = sae.train(source, sae.TopK(n_latents=16, k=2), sae.Training(tokens=640, batch=64), progress=False).dictionary
    with pytest.raises(SplitOverlap, match="images that trained 'd' and images that judge it must not share"):
        evaluate({"d": d}, model, small, trained_on=small[:3], progress=False)
    assert "Give trained_on=" in refuse_training_images("d", d, images)
    assert "nothing says which images" in refuse_training_images("i", baselines.identity(rows), images)
    assert refuse_training_images("d", d, images, trained_on=small) is None
    d.provenance["rows"]["data"]["fingerprint"] = small.fingerprint
    with pytest.raises(SplitOverlap, match="'d' was trained on these very images"):
        evaluate({"d": d}, model, small, progress=False)
    assert "not the same set" in refuse_training_images("d", d, images)
    found = evaluate({"d": d}, model, small, metrics=(), baselines=(), allow_overlap=True, progress=False)
    assert "may have been trained on the images" in found.caveats[0]
    with pytest.raises(SplitOverlap, match="reference images and images that judge"):
        evaluate({"d": d}, model, images, reference=images[:5], progress=False)


def test_one_head_is_judged_and_no_other_touched(model, images):
    """D3 in the table: the zero ablation of the scale is that of the head."""
    site = "blocks.1.attn.hook_z"
    rows = model.run(images[:20], capture=site).cache[site][:, :, 2].flatten(0, 1)
    d = {"d": baselines.pca({site: rows}, 8)}
    found = evaluate(d, model, images, metrics=("recovered",), baselines=("identity",), head=2, progress=False)
    _, judged = images.split(1 / 3, 2 / 3, seed=0)
    expected = torch.nn.functional.cross_entropy(
        model.run(judged, edits=mechvis.edits.zero(site, heads=[2])).logits, judged.label_tensor
    )
    outputs = {row["variant"]: row for row in found.tables["outputs"].iter_rows(named=True)}
    assert outputs["zero ablation"]["loss"] == pytest.approx(float(expected.detach()), abs=1e-5)
    assert found.of("identity")["fvu"] == 0 and found.of("d")["rows"] == 40 * 65


def test_transcoders_and_crosscoders_are_judged_too(model, images, rows):
    reads, writes = "blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out"
    cache = model.run(images[:20], capture=[reads, writes]).cache
    by_site = {name: cache[name].flatten(0, 1) for name in (reads, writes)}
    job = sae.Job(architecture=sae.TopK(n_latents=64, k=8), reads=reads, writes=writes)
    d = sae.train(by_site, job, sae.Training(tokens=8000, batch=400, lr=3e-3), progress=False).dictionary
    found = evaluate({"t": d}, model, images, metrics=("recovered",), progress=False)
    x, y = (
        model.run(images.split(1 / 3, 2 / 3, seed=0)[1], capture=[s]).cache[s].flatten(0, 1) for s in (reads, writes)
    )
    with torch.no_grad():
        assert found.of("t")["fvu"] == pytest.approx(sae.evaluation.fvu(y, d(x)), rel=1e-5)
    assert found.table.height == 1 and any(
        "Beside a transcoder" in c or "beside a transcoder" in c for c in found.caveats
    )
    sites = {"blocks.1.hook_resid_post": rows[:900], SITE: rows[:900]}
    both = evaluate(baselines.identity(sites), model, images[:18], baselines=(), metrics=("recovered",), progress=False)
    assert both.of("dictionary")["fvu"] == 0 and both.of("dictionary")["loss_zero"] == pytest.approx(1, abs=1e-5)


def test_clip_is_judged_by_its_classifier_and_without_one_by_its_embedding(images):
    clip = mechvis.load("scenes-clip")
    site = "blocks.2.hook_resid_post"
    rows = clip.vision.run(images[:10], capture=site).cache[site].flatten(0, 1)
    d = {"pca8": baselines.pca({site: rows}, 8)}
    settings = {"metrics": ("recovered",), "baselines": ("identity",), "progress": False}
    judged = evaluate(d, clip.classifier(images.class_names), images[:30], **settings)
    assert judged.of("identity")["loss_zero"] == pytest.approx(1, abs=1e-4)
    plain = evaluate(d, clip.vision, images[:30], **settings)
    assert "loss_zero" not in plain.table.columns
    assert plain.of("pca8")["embedding_cosine"] == pytest.approx(judged.of("pca8")["embedding_cosine"], abs=1e-5)


def test_tokens_and_plain_matrices(model, images, rows):
    d = baselines.pca(rows, 8)
    with pytest.raises(BadData, match="say which site it was"):
        evaluate({"d": d}, model, images, progress=False)
    settings = {"metrics": ("recovered",), "baselines": ("zero",), "progress": False}
    cls = evaluate({"d": d}, model, images, SITE, tokens="cls", **settings)
    assert cls.of("d")["rows"] == 40 and cls.of("zero")["loss_zero"] == pytest.approx(0, abs=1e-6)


@pytest.mark.filterwarnings("ignore:.*did not settle")
@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_of_the_table_can_be_made(name):
    x = torch.randn(120, 10, generator=torch.Generator().manual_seed(0))
    d = baseline(name, {"site": x}, 16, 3)
    most = {"kmeans": 1, "identity": 10, "zero": 0, "mean": 0}.get(name, 3)
    assert (d.encode(x) != 0).sum(1).max() <= most
    with pytest.raises(UnknownName, match="baseline"):
        baseline("lda", {"site": x}, 16, 3)


def test_bad_input_is_refused(trained, model, images, rows):
    d = trained["topk"]
    for error, told, call in [
        (BadData, "no dictionary to evaluate", lambda: evaluate({}, model, images)),
        (BadData, "not a sae.Dictionary", lambda: evaluate({"a": 3}, model, images)),
        (BadData, "images is an ImageSet", lambda: evaluate(d, model, torch.zeros(2, 3, 64, 64))),
        (UnknownName, "metric 'fvus'", lambda: evaluate(d, model, images, metrics=("fvus",))),
        (UnknownName, "baseline", lambda: evaluate(d, model, images[:9], baselines=("pcaa",), progress=False)),
        (UnknownSite, "no site matches", lambda: evaluate(d, model, images, "blocks.2.hook_x")),
        (ShapeMismatch, "width 128", lambda: evaluate(d, model, images, "blocks.1.mlp.hook_post")),
        (BadData, "a dictionary is called 'pca'", lambda: evaluate({"pca": d}, model, images[:9], progress=False)),
        (
            BadData,
            "in one table they read and write the same sites",
            lambda: evaluate({"a": d, "b": baselines.identity({"x": rows})}, model, images),
        ),
        (
            BadData,
            "spatial is not possible here: maps need all patches",
            lambda: evaluate(d, model, images, tokens="cls", metrics=("spatial",)),
        ),
        (BadData, "trained_on is an ImageSet", lambda: evaluate(d, model, images, trained_on=3)),
    ]:
        with pytest.raises(error, match=told):
            call()


def test_the_command_gives_one_table(trained, tmp_path, capsys):
    for name, d in trained.items():
        d.save(tmp_path / "run" / "dictionaries" / name)
    out = tmp_path / "out"
    command(
        (tmp_path / "run",), model="scenes-vit", images="scenes:30:824", out=out, metrics=("recovered",),
        baselines=("identity",), progress=False,
    )  # fmt: skip
    said = capsys.readouterr().out
    assert all(word in said for word in ("topk", "batch", "identity", "fvu", "loss_zero", "report.html"))
    assert (out / "report.html").exists() and DictionaryEvaluation.load(out).of("identity")["fvu"] == 0
    with pytest.raises(BadData, match="no dictionary to evaluate"):
        command((), model="scenes-vit", images="scenes:30:824")


def test_folders_give_names(trained, tmp_path):
    for run in ("a", "b"):
        trained["topk"].save(tmp_path / run / "dictionaries" / "dictionary")
    assert list(load_dictionaries([tmp_path / "a" / "dictionaries" / "dictionary"])) == ["dictionary"]
    assert list(load_dictionaries([tmp_path / "a", tmp_path / "b"])) == ["a-dictionary", "b-dictionary"]
    with pytest.raises(BadData, match="two folders are called 'a-dictionary'"):
        load_dictionaries([tmp_path / "a", tmp_path / "a"])


def test_every_flag_of_the_command_is_a_parameter_of_what_it_calls():
    places = {"model", "images", "device", "out", "templates", "metadata", "masks", "progress"}
    known = set(places)
    for called in command.calls:
        module, path = called.split(":")
        thing = importlib.import_module(module)
        for word in path.split("."):
            thing = getattr(thing, word)
        known |= set(inspect.signature(thing).parameters)
    flags = inspect.signature(command).parameters
    assert not set(flags) - known
    theirs = inspect.signature(evaluate).parameters
    for name in set(flags) & set(theirs) - {"folders", "site", "model", "images"}:
        assert flags[name].default == theirs[name].default, name
