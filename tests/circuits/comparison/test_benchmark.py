"""The benchmark's plans, and its page from planted parts."""

from benchmarks.comparison import plans, targets
from benchmarks.comparison_page import page


def test_there_are_enough_models_and_every_one_has_its_name():
    names = [plan.name for plan in plans()]
    assert len(set(names)) == len(names) >= 24
    assert sum(plan.family == "fine-tuned" and plan.correlation == 0.95 for plan in plans()) >= 12
    assert list(targets(2)) == ["conflicting", "blur 4", "noise 4", "colour 5", "background 5"]


def test_the_page_says_what_was_measured():
    scores = ("ddb_out", "ddb_deep", "ddb_global", "id_accuracy", "confidence", "negative_entropy", "atc")
    known = [{"score": name, "statistic": "spearman", "value": 0.25, "low": -0.1, "high": 0.5} for name in scores]
    known[3] |= {"value": None, "low": None, "high": None}
    shifts = [
        {"score": name, "statistic": "spearman", "value": -0.75, "low": None, "high": None}
        for name in ("css", "matched", "confidence", "negative_entropy", "atc", "cosine, all edges")
    ]
    row = {"role": "other", "set": "blur 1", "matched": 0.3, "floor_99": 0.2, "p": 0.01, "accuracy": 0.5}
    data = {"table": [{**row, "confidence": 0.6}], "correlations": shifts, "distances": shifts[-1:], "seconds": 12.0}
    models = {"all": {"models": 4, "accuracy": [0.1, 0.9], "correlations": known}}
    text = page(
        {
            "known": {
                "depth": [{"g": 0.4, "asked": 3.6, "logit_diff": 3.6, "kl": 3.6}],
                "planted": {"0.1": {"spearman 1": 0.16, "spearman 0.95": 0.08, "cosine 1": 0.004}},
            },
            "models": {"conflicting": {"groups": models}},
            "data": {"scenes-vit": {**data, "alarm": {"error": "none bad"}}},
            "false alarms": {
                "windows": 9, "n": 80, "references": 4, "below 0.05": 0.04, "beyond 99 %": 0.01, "matched": 0.2,
                "floor": 0.2,
            },
        }
    )  # fmt: skip
    assert "| conflicting | all (4) | 0.10 to 0.90 | +0.25 [-0.10, +0.50] |" in text
    assert "undefined" in text and "| cosine, all edges | -0.75 |" in text and "none bad" in text
    assert "| 0.4 | +3.6 | +3.6000000000 | +3.6000000000 |" in text
