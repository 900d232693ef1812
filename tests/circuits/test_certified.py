"""Certified CIGMA: the heads of the full study from fewer evaluations, what is not known is missing and said."""

import re

import numpy as np
import polars as pl
import pytest

import mechvis
from circuits import cigma, load_study
from circuits.certified import RANGES, Certified, rank_top
from circuits.head_scores import SCORES, score_heads
from circuits.masks import Masks, read_masks
from circuits.ranking import Work, rank_all
from circuits.study_inputs import Split
from mechvis import testing
from mechvis.certified import certificate
from mechvis.errors import BadData, OutOfRange, ResultMismatch, UnknownName
from mechvis.units import units_of

QUICK = {"fill": "zero", "progress": False, "sensitivity": False}
CERTIFIED = {**QUICK, "certified": True, "top": 1}


def shortcut(n, seed=0):
    return testing.shortcut_images(n, seed=seed).image_set()


@pytest.fixture(scope="module")
def model():
    return testing.shortcut_vit()


@pytest.fixture(scope="module")
def images():
    return shortcut(1200)


@pytest.fixture(scope="module")
def full(model, images):
    return cigma(model, images, **QUICK)


@pytest.fixture(scope="module")
def study(model, images):
    return cigma(model, images, **CERTIFIED)


def noise(n):
    """RGB noise with a square object, for a random model: no head stands out, and none is surely harmful."""
    generator = np.random.default_rng(0)
    drawn = generator.integers(0, 256, (n, 12, 12, 3), dtype=np.uint8)
    mask = np.zeros((12, 12), bool)
    mask[3:9, 4:10] = True
    return mechvis.data.ImageSet(
        name="noise",
        ids=tuple(f"noise/{i}" for i in range(n)),
        read=drawn.__getitem__,
        rows=np.arange(n),
        labels=np.arange(n) % 8,
        read_mask=lambda i: mask,
    )


# known answers


@pytest.mark.parametrize("rank_by", ["guarded", "cigma"])
def test_the_planted_head_is_chosen_in_every_seed_and_for_several_times_less(model, rank_by):
    """The raw score puts the collapse head L0H0 first, in both studies alike; the guard then keeps it out."""
    for seed in range(3):
        drawn, settings = shortcut(1500, seed), {"rank_by": rank_by, "seed": seed}
        top = 1 if rank_by == "guarded" else 2
        whole = cigma(model, drawn, **QUICK, **settings)
        found = cigma(model, drawn, **{**CERTIFIED, "top": top, "audit": 0.0}, **settings)
        assert found.chosen == whole.chosen and found.recommended == whole.recommended == ("L1H1",)
        assert found.ranking[:top] == whole.ranking[:top]
        assert found.certificate["certified"]
        cost = found.certificate["evaluations"]
        assert cost["full"] == 8 * 600 and cost["elimination"] + cost["fresh"] == cost["total"]
        assert cost["total"] < cost["full"] / (3 if rank_by == "guarded" else 1.5)
        # Everything after the scores is the full study's, on the same images.
        assert found.evaluation.equals(whole.evaluation)


def test_small_sets_are_measured_whole_and_give_the_full_study(model):
    """Of 40 selection images nothing is decided before all are measured: the scores are the full study's."""
    drawn = shortcut(100)
    whole, found = cigma(model, drawn, **QUICK), cigma(model, drawn, **{**CERTIFIED, "top": 3})
    assert found.certificate["exhausted"]
    order = np.argsort([list(whole.scores.images["id"]).index(name) for name in found.scores.images["id"]])
    for name in SCORES:
        assert np.allclose(found.scores.values[name][:, order], whole.scores.values[name], atol=1e-12, rtol=0)
    assert found.recommended == whole.recommended and found.ranking[:3] == whole.ranking[:3]


@pytest.mark.slow
def test_the_bundled_shortcut_is_found_as_by_the_full_study():
    model, drawn = mechvis.load("scenes-vit"), mechvis.data.scenes(n=900, seed=3001, correlation=0.5)
    settings = {"progress": False, "sensitivity": False, "seed": 3001}
    whole = cigma(model, drawn, **settings)
    found = cigma(model, drawn, certified=True, top=3, **settings)
    assert set(found.chosen) == set(whole.chosen) == {"L0H0", "L0H2", "L0H3"}
    assert found.certificate["certified"] and found.evaluation.equals(whole.evaluation)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3002, 4001])
def test_of_many_images_few_are_scored(seed):
    """On 1,500 selection images of the bundled shortcut: the ranking and the recommendation of the full study."""
    model, drawn = mechvis.load("scenes-vit"), mechvis.data.scenes(n=1500, seed=seed, correlation=0.5)
    masks = Masks(read_masks(drawn, model.preprocess), np.zeros(len(drawn)), "given")
    work = Work(
        model=model,
        select=Split(drawn, masks),
        options={"mode": "zero", "fill": "mean", "tau": 1.0, "means": None},
        run={"budget": None, "progress": False},
        rank_by="guarded",
        seed=seed,
        where={},
    )
    whole = rank_all(work)
    for tails, saved in (("student", 2.5), ("guarded", 1.5)):
        found = rank_top(work, Certified(top=3, tails=tails, fresh_images=2000))
        assert [unit.name for unit in found.judged] == [unit.name for unit in whole.order[:3]]
        assert found.recommended == whole.recommended
        cost = found.scores.provenance["certificate"]["evaluations"]
        print(tails, cost)
        assert cost["total"] < cost["full"] / saved


# what was measured, and what was not


def test_measured_scores_are_the_full_ones_and_the_rest_is_missing(study, full):
    place = {name: i for i, name in enumerate(full.scores.images["id"])}
    at = [place[name] for name in study.scores.images["id"]]
    rows = study.scores.rows()
    for name in SCORES:
        values, known = study.scores.values[name], full.scores.values[name][:, at]
        seen = ~np.isnan(values)
        assert np.allclose(values[seen], known[seen], atol=1e-12, rtol=0)
        assert np.array_equal(seen.sum(1), rows["n"].to_numpy()) and (rows["excluded"] == 0).all()
    assert np.isnan(study.scores.values["guarded"]).mean() > 0.5
    top = rows.filter(pl.col("selected")).row(0, named=True)
    assert (top["unit"], top["n"], top["fresh"]) == ("L1H1", 480, False)
    assert top["effect"] == pytest.approx(full.scores.top(1)["effect"][0], abs=1e-12), "the full study's score"
    assert (rows.filter(~pl.col("selected"))["n"] >= 64).all()
    assert study.scores.rows("damage")["bound_low"].null_count() == 8 and rows["bound_low"].null_count() == 0
    assert study.true_positives is not None and study.true_positives.values["cigma"].shape[0] == 8


def test_of_many_images_only_fresh_ones_count(model, images):
    """Where not all are measured, the images on which it was decided when to stop say nothing on the score."""
    found = cigma(model, images, **CERTIFIED, fresh_images=100)
    top = found.scores.rows().filter(pl.col("selected")).row(0, named=True)
    values = found.scores.values["guarded"][int(top["layer"] * 4 + top["head"])]
    assert top["fresh"] and top["n"] == 100 and top["decided_n"] < 300
    assert np.isnan(values[: top["decided_n"]]).all() and not np.isnan(values[top["decided_n"] :][:100]).any()
    assert found.certificate["evaluations"]["fresh"] == 100


def test_only_the_top_heads_are_judged(study, full):
    inert = cigma(mechvis.load(testing.tiny("vit"), preprocess=testing.tiny_preprocess()), noise(250), **CERTIFIED)
    assert inert.curve["K"].max() <= 1, "heads outside the top are not tried"
    assert study.recommended == study.chosen == ("L1H1",)
    assert set(study.ranking) == set(full.ranking)
    everything = study.summary()
    assert "the top 1 of 8" in everything and "neither recommended nor ruled out" in everything
    assert "All of the top 1 heads are recommended, so there may be more: raise top." in everything
    assert "raise top" not in full.summary() and "certif" not in full.summary()


def test_nothing_recommended_says_who_was_judged(model):
    """Context and object always of one class: nothing to find."""
    drawn = testing.shortcut_images(700)
    agreeing = drawn.image_set()[drawn.agree.numpy()][:300]
    found = cigma(model, agreeing, **{**CERTIFIED, "top": 2})
    assert found.recommended == () and found.chosen == ()
    assert "none of the top 2 heads' (the others were not judged) guarded score is reliably above" in found.summary()


def test_every_score_lies_in_its_range(model):
    """`bernstein` rests on these ranges; random logits come near them."""
    import torch

    from circuits.information import information
    from mechvis.metrics import jensen_shannon

    generator = torch.Generator().manual_seed(0)
    clean, edited = (60 * torch.randn(3, 20000, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.zeros(20000, dtype=torch.int64)
    raw = information(clean, labels).big - information(edited, labels).big
    guarded = raw - jensen_shannon(clean[1].softmax(-1), edited[1].softmax(-1))
    for name, scores in (("cigma", raw), ("guarded", guarded)):
        assert 0.95 * RANGES[name] < scores.max() - scores.min() <= RANGES[name] + 1e-12
    found = cigma(model, shortcut(400), **{**CERTIFIED, "tails": "bernstein"})
    assert found.certificate["certified"] and found.chosen == ("L1H1",)


def test_the_sensitivity_is_measured_where_every_head_was(model):
    found = cigma(model, shortcut(600), **{**CERTIFIED, "sensitivity": True})
    assert found.stability["images scored again"] == 64
    assert all(-1 <= found.stability[f"rank correlation, {name}"] <= 1 for name in ("fill blur", "tau 2", "tau 5"))


def test_scores_in_an_order_are_those_scores(model):
    drawn = shortcut(40)
    masks = testing.shortcut_images(40).masks
    order, units = np.array([7, 3, 30]), units_of(model, "heads")[2:5]
    everything = score_heads(model, drawn, masks, progress=False)
    some = score_heads(model, drawn, masks, order=order, units=units, progress=False)
    for name, values in some.items():
        known = everything[name][order] if name.startswith("clean/") else everything[name][2:5][:, order]
        assert np.array_equal(values, known), name


# words, files, repetition


def test_certificate_in_words_and_in_the_report(study, tmp_path):
    text = certificate(study.scores)
    assert text.startswith(
        "With probability 0.95 none of the 1 returned units lies more than 0.1 of it below the mean score on rank 1 of "
        "8 units over all 480 selection images (guarded)"
    )
    assert "the full sweep: 3,840" in text
    assert all(line in study.summary() for line in text.splitlines())
    assert "nothing else: not other images" in study.summary()
    page = study.report(tmp_path / "r.html").read_text(encoding="utf-8")
    assert "none of the 1 returned units" in page and "neither recommended nor ruled out" in page
    assert "their places among each other not known" in page
    assert study.settings["certified"]["top"] == 1


def test_round_trip(study, full, tmp_path):
    loaded = load_study(study.save(tmp_path / "study"))
    assert loaded.certificate == study.certificate and loaded.summary() == study.summary()
    assert loaded.scores.table.equals(study.scores.table)
    assert full.certificate is None and load_study(full.save(tmp_path / "full")).certificate is None


def test_a_contradiction_by_the_audit_is_said(model, images, monkeypatch, tmp_path):
    """A certificate that the audit withdraws is none, in the study and in its report."""
    from dataclasses import replace

    from circuits import certified

    real = certified.eliminate
    monkeypatch.setattr(
        certified, "eliminate", lambda *a, **k: replace(real(*a, **k), certified=False, contradicted=(0,))
    )
    found = cigma(model, images, **CERTIFIED)
    assert not found.certificate["certified"] and "No certificate: the audit found units above" in found.summary()
    page = found.report(tmp_path / "r.html").read_text(encoding="utf-8")
    assert re.search(r"warning[^<]*>[^<]*(<[^>]*>[^<]*)?No certificate", page)


def test_interrupted_and_continued(model, tmp_path, monkeypatch):
    from mechvis import engine

    settings = {**CERTIFIED, "top": 2, "budget": 2_000_000}
    drawn = shortcut(400)
    whole = cigma(model, drawn, **settings)
    real, calls = engine._compute, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(engine, "_compute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cigma(model, drawn, out=tmp_path / "s", **settings)
    assert not (tmp_path / "s" / "study.json").exists() and (tmp_path / "s" / "rounds" / "01").is_dir()
    found = cigma(model, drawn, out=tmp_path / "s", **settings)
    done = len(calls)
    assert found.scores.table.equals(whole.scores.table) and found.summary() == whole.summary()
    assert load_study(tmp_path / "s").summary() == whole.summary()
    cigma(model, drawn, out=tmp_path / "s", **settings)
    assert len(calls) == done, "every piece was kept"
    for change in ({"eps": 0.2}, {"top": 3}, {"tails": "student"}, {"rank_by": "cigma"}):
        with pytest.raises(ResultMismatch, match="holds another job"):
            cigma(model, drawn, out=tmp_path / "s", **{**settings, **change})
    with pytest.raises(ResultMismatch, match="holds a certified study"):
        cigma(model, drawn, out=tmp_path / "s", **QUICK)
    cigma(model, drawn, out=tmp_path / "full", **QUICK)
    with pytest.raises(ResultMismatch, match="every head is scored on every image"):
        cigma(model, drawn, out=tmp_path / "full", **settings)


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"top": 8}, OutOfRange, "top=8 of 8 units"),
        ({"k": 3, "top": 2}, OutOfRange, "k=3 heads to remove, but only the top 2 are looked for. Raise top="),
        ({"greedy": True}, BadData, "greedy=True scores all other heads again"),
        ({"fresh_images": 10}, OutOfRange, "fresh_images=10 must be at least 64"),
        ({"eps": 1.0}, OutOfRange, "eps=1.0"),
        ({"tails": "normal"}, UnknownName, "unknown bound 'normal'"),
    ],
)
def test_refused_before_any_work(model, settings, error, text, monkeypatch):
    import circuits.study_inputs as inputs

    monkeypatch.setattr(inputs, "read_masks", lambda *a: pytest.fail("masks were read"))
    with pytest.raises(error, match=text):
        cigma(model, shortcut(120), **{**CERTIFIED, **settings})
