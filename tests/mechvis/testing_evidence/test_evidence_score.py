"""Scores against planted evidence: an oracle gets 1, ignorance gets chance, failures are told and not hidden."""

from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from mechvis.attribution.method import Claims, Maps, Method
from mechvis.errors import BadData, UnknownName
from mechvis.testing import evidence
from mechvis.testing.evidence.score import contest, score_maps


@pytest.mark.parametrize("name", evidence.variants_of("all"))
def test_an_oracle_scores_one_and_its_negative_zero(name):
    asked = evidence.load(name, 0).ask(12)
    truth = asked.truth.double()
    best, worst = score_maps(truth + 0.01 * torch.rand_like(truth), asked), score_maps(-truth, asked)
    assert all(float(values.min()) == 1.0 for values in best.values())
    assert float(worst["auroc"].max()) == 0.0 and float(worst["hit"].max()) == 0.0
    assert float(worst["contest"].max()) == 0.0
    assert float(score_maps(-truth, asked, "magnitude")["auroc"].min()) == 1.0


@pytest.mark.parametrize("name", ["wired", "object", "two_heads"])
def test_random_maps_score_chance(name):
    found = evidence.score("random", name, n=128).table.row(0, named=True)
    for value, chance in (("auroc", 0.5), ("contest", 0.5), ("hit", found["chance_hit"]), ("ap", found["chance_ap"])):
        assert found[f"{value}_low"] - 0.02 <= chance <= found[f"{value}_high"] + 0.02, value


def test_a_class_independent_map_is_at_chance_where_it_counts():
    """Patches of both shapes marked: a high AUROC, and a contest of one half."""
    asked = evidence.load("class_specific", 0).ask(40)
    both = torch.zeros(len(asked), 64)
    for image in range(40):
        rows = asked.image == image
        both[rows] = asked.truth[rows].any(0).float()
    found = score_maps(both, asked)
    assert found["auroc"].mean() > 0.95
    assert np.allclose(found["hit"], 0.5)
    shapes = asked.decoys & both.bool()
    assert np.allclose(contest(both, asked.truth, shapes), 0.5)


def test_scores_agree_with_scikit_learn():
    asked = evidence.load("object", 0).ask(10)
    maps = torch.randn(10, 64, generator=torch.Generator().manual_seed(0)).double().round(decimals=1)
    found = score_maps(maps, asked)
    for row in range(10):
        truth, values = asked.truth[row].numpy(), maps[row].numpy()
        assert found["auroc"][row] == pytest.approx(roc_auc_score(truth, values))
        assert found["ap"][row] == pytest.approx(average_precision_score(truth, values))
        marked = (asked.truth | asked.decoys)[row].numpy()
        assert found["contest"][row] == pytest.approx(roc_auc_score(truth[marked], values[marked]))


def test_chance_of_average_precision_is_that_of_random_maps():
    row = evidence.score("centre", "object", n=4).table.row(0, named=True)
    generator = np.random.default_rng(0)
    truth = np.arange(64) < 4
    drawn = np.mean([average_precision_score(truth, generator.random(64)) for _ in range(300)])
    assert row["chance_ap"] == pytest.approx(drawn, abs=0.03)


def test_the_table_of_cheap_methods_and_what_it_keeps():
    found = evidence.table_of(["act_x_grad", "centre"], ["object", "class_specific"], models=[0, 1], n=6)
    assert found.table.height == 8
    assert found.tables["images"].height == 8 * 6
    again = found.tables["images"].filter((pl.col("method") == "centre") & (pl.col("variant") == "object"))
    means = again.group_by("model").agg(pl.col("auroc").mean()).sort("model")["auroc"].to_list()
    told = found.table.filter((pl.col("method") == "centre") & (pl.col("variant") == "object")).sort("model")
    assert means == pytest.approx(told["auroc"].to_list())
    assert found.wide("hit").columns == ["method", "object", "class_specific"]
    assert set(found.words) >= set(found.table.columns)


def test_scores_do_not_depend_on_how_many_images_are_asked():
    few = evidence.score("act_x_grad", "redundant", n=4).tables["images"]["auroc"].to_numpy()
    more = evidence.score("act_x_grad", "redundant", n=9).tables["images"]["auroc"].to_numpy()
    np.testing.assert_allclose(few, more[:4], atol=1e-3)


@dataclass(frozen=True, kw_only=True)
class Nothing(Method):
    """The same number everywhere."""

    NAME = "nothing"
    CLAIMS = Claims(class_specific=False, signed=False)

    def maps(self, ask):
        return Maps(values=torch.ones(len(ask.pixels), ask.n_patches))


def test_a_method_that_fails_has_a_row_that_says_why():
    found = evidence.score(Nothing(), "object", n=4)
    row = found.table.row(0, named=True)
    assert np.isnan(row["auroc"]) and row["excluded"] == 4
    assert row["failed"].startswith("FailedCheck: every map of nothing")
    assert any("No numbers for nothing" in line for line in found.caveats)


def test_scores_are_saved_and_read_again(tmp_path):
    found = evidence.score("centre", "object", n=4)
    again = evidence.PlantedScores.load(found.save(tmp_path / "scores"))
    assert again.table.equals(found.table)


def test_bad_inputs_say_what_there_is():
    asked = evidence.load("object", 0).ask(3)
    with pytest.raises(UnknownName, match="class_specific"):
        evidence.score("act_x_grad", "class-specific")
    with pytest.raises(UnknownName, match="act_x_grad"):
        evidence.score("act_x_gra", "object")
    with pytest.raises(BadData, match="no methods"):
        evidence.table_of([], "object")
    with pytest.raises(BadData, match="'magnitude'"):
        score_maps(asked.truth.double(), asked, "size")
    with pytest.raises(BadData, match="contest"):
        evidence.score("centre", "object", n=2).wide("f1")
