"""The card itself: decisions, hashes, views, what is refused. No model is needed for it."""

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mechvis import stats
from mechvis.cards import CardData, Draft, FaithfulnessCard, scope_of
from mechvis.errors import BadData, FailedCheck, ResultMismatch, ShapeMismatch, SplitOverlap, StoreCorrupt, UnknownName

HOSTILE = "<script>alert(1)</script> | `x` [a](http://evil) \n# head"


def draft(**changed):
    fields = {
        "kind": "attribution",
        "object_id": "3f",
        "subject": {"name": "a ViT", "fingerprint": "w1"},
        "method": {"name": "m", "settings": {"layer": 2}, "claims": {"random": False, "reads": "outputs"}},
        "data": {"name": "scenes", "n": 6, "fingerprint": "d1"},
        "task": {"score": "logit"},
        "level": "smoke",
        "seed": 3,
    }
    return Draft(**(fields | changed))


def card(shift=0.0, **changed):
    made = draft(**changed)
    made.gate("G8", 0.0, "<=", 0.05, "share of bad maps")
    made.gate("G4", 1.0, "<", 0.95, "rank correlation with another class")
    made.no_gate("G7", "not run", "no planted model")
    values = np.array([1.0, 2.0, 3.0, np.nan, 5.0, 6.0]) + shift
    made.measure("abpc", values, formula="abpc v1", direction="high", operator="mean")
    made.measure("abpc", np.zeros(6), formula="abpc v1", direction="high", operator="mean", control="random")
    made.ratio("fvu", [1.0, 2.0, 3.0], [2.0, 4.0, 6.0], formula="fvu v1", direction="low")
    made.given("auroc", 0.9, n=6, formula="auroc v1", direction="high")
    made.tables["planted"] = pl.DataFrame({"suite": ["A"], "auroc": [float("nan")]})
    return made.done(scope="Tested: maps.", forwards=10)


def test_a_gate_is_decided_by_its_number():
    made = draft()
    assert made.gate("G5", 0.1, "<=", 0.1, "x").status == "pass"
    assert made.gate("G6a", 0.0, ">", 0.0, "x").status == "fail"
    assert made.gate("G3", float("nan"), "<", 1.0, "x").status == "fail"
    with pytest.raises(BadData, match="no gate 'X1'"):
        made.gate("X1", 0.0, "<", 1.0, "x")


def test_measures_are_means_with_intervals_and_undefined_ones_are_counted():
    found = card().measure("abpc")
    expected = stats.bootstrap(np.array([1.0, 2.0, 3.0, np.nan, 5.0, 6.0]), seed=3)
    assert (found.value, found.low, found.high) == (3.4, expected.low[0], expected.high[0])
    assert (found.n, found.excluded, found.unreliable) == (5, 1, True)
    assert card().measure("fvu").value == 0.5 and card().measure("fvu").low == 0.5
    assert any("Unreliable: abpc/mean/this" in line for line in card().warnings)
    assert card().measure("abpc", control="random").value == 0.0
    with pytest.raises(UnknownName, match="abpc/mean"):
        card().measure("abcp")


def test_a_measure_has_one_value_per_example_and_is_there_once():
    made = draft()
    made.measure("a", [1.0], formula="f", direction="high")
    with pytest.raises(BadData, match="already"):
        made.measure("a", [1.0], formula="f", direction="high")
    with pytest.raises(ShapeMismatch, match="one value per example"):
        made.measure("b", [[1.0]], formula="f", direction="high")


def test_two_runs_give_the_same_bytes_but_for_cost_and_time():
    first, second = card(), card()
    assert first.json(volatile=False) == second.json(volatile=False) and first.sha256 == second.sha256
    assert first.sha256 != card(0.5).sha256
    content = json.loads(first.json())
    assert content["tables"]["planted"]["values"]["auroc"] == [None] and content["cost"]["forwards"] == 10


def test_failed_gates_come_first_in_every_view(tmp_path):
    found = card()
    assert [gate.id for gate in found.failed] == ["G4"]
    text = found.markdown()
    assert text.index("FAIL") < text.index("✓ pass") and "1 failed, 1 not run" in text and "not run" in text
    assert "G4" in repr(found).splitlines()[1] and "Tested: maps." in repr(found)
    page = found.report(tmp_path / "card.html").read_text()
    assert page.index("✗ FAIL") < page.index("✓ pass") and found.sha256 in page
    assert "<table>" in found._repr_html_()


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.scripts = 0

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script"
        assert not [name for name, _ in attrs if name.startswith("on")]


def test_hostile_words_stay_words(tmp_path):
    plain, hostile = card(), card(method={"name": HOSTILE, "settings": {HOSTILE: HOSTILE}}, task={HOSTILE: HOSTILE})
    counts = []
    for number, one in enumerate((plain, hostile)):
        parser = Tags()
        parser.feed(one.report(tmp_path / f"{number}.html").read_text())
        counts.append(parser.scripts)
    assert counts[0] == counts[1]
    assert "<script>" not in hostile._repr_html_()
    text = hostile.markdown()
    assert "\\<script\\>" in text and "[a](" not in text and "http://" not in text and "\n# head" not in text


def test_saved_and_loaded_and_every_change_is_found(tmp_path):
    found = card()
    assert FaithfulnessCard.load(found.save(tmp_path / "c")).json() == found.json()
    path = tmp_path / "c" / "card.json"
    path.write_text(path.read_text().replace('"value":3.4', '"value":9.4').replace('"value": 3.4', '"value": 9.4'))
    with pytest.raises(StoreCorrupt):
        FaithfulnessCard.load(tmp_path / "c")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["measures"][0].update(value=9.0), "abpc/mean/this: the card says value 9.0"),
        (lambda c: c["measures"][2].update(high=0.7), "fvu/this: the card says high 0.7"),
        (lambda c: c["gates"][1].update(status="pass"), "G4 says pass"),
        (lambda c: c.update(examples="0"), "per-example values are not those"),
    ],
)
def test_verify_computes_again(change, said):
    found = card()
    assert found.verify() is found
    content = json.loads(found.json())
    change(content)
    with pytest.raises(FailedCheck, match=said.replace("/", "/")):
        FaithfulnessCard(content=content, examples=found.examples).verify()


def test_a_card_is_void_for_other_weights():
    class Other:
        fingerprint = "w2"

    with pytest.raises(ResultMismatch, match="void for this model"):
        card().verify(Other())


def test_cards_are_compared_example_by_example():
    found = card(1.0).compare(card())
    row = found.pick(measure="abpc")
    assert row["difference"] == 1.0 and row["n"] == 5 and row["better"] == "first"
    assert found.tables["gates"].filter(pl.col("gate") == "G4").row(0) == ("G4", "fail", "fail")
    assert card().compare(card()).pick(measure="abpc")["better"] == ""
    with pytest.raises(ResultMismatch, match="differ in their model"):
        card().compare(card(subject={"name": "a ViT", "fingerprint": "w2"}))


def test_the_older_template_is_filled_in_from_the_card():
    fields = card().saliency_card()
    assert fields["determinism"] == "deterministic" and fields["hyperparameter dependence"] == "layer=2"
    assert fields["label sensitivity"] == "no (1)" and fields["model sensitivity"] == "not tested"


def test_images_that_chose_may_not_judge():
    import mechvis

    images = mechvis.data.scenes(n=12, seed=3)
    with pytest.raises(SplitOverlap):
        CardData(model=None, images=images, chosen_on=images[:2])
    with pytest.raises(BadData, match="needs images"):
        CardData(model=None, images=[])
    data = CardData(model=None, images=images)
    assert (len(data.at("smoke").images), len(data.at("smoke").reference)) == (8, 4)
    assert len(data.at("smoke", reference=False).images) == 12
    with pytest.raises(UnknownName, match="smoke"):
        data.at("smok")


def test_the_scope_says_what_was_not_tested():
    said = scope_of("maps", {"name": "a ViT"}, {"n": 4, "name": "scenes"}, ["x", "y"])
    assert said == "Tested: maps, on 4 images of scenes, with a ViT. Says nothing about x or y."


def test_the_golden_card_opens_and_follows_from_what_is_stored():
    found = FaithfulnessCard.load(Path(__file__).parent / "golden" / "card-v1").verify()
    assert found.content["card_version"] == 1 and [gate.id for gate in found.failed] == ["G4"]
    assert found.measure("abpc").value == 3.4 and found.table("planted").columns == ["suite", "auroc"]
