"""What the self-test says of planted evidence, and the experiment on gates."""

import pytest

from mechvis.testing.evidence import checks


@pytest.fixture
def cheap(monkeypatch):
    monkeypatch.setattr(checks, "METHODS", ("act_x_grad", "centre"))
    monkeypatch.setattr(checks, "IMAGES", 3)
    checks.evidence_table.cache_clear()
    yield
    checks.evidence_table.cache_clear()


def test_the_printed_table_has_methods_down_and_variants_across(cheap):
    rows, head = checks.evidence_text(0)
    assert head == (
        "AUROC, hit rate", "wired", "wired_loud", "object", "redundant", "shortcut", "class_specific", "two_heads",
    )  # fmt: skip
    assert [row[0] for row in rows] == ["act_x_grad", "centre"]
    assert rows[0][1:3] == ("-", "-")  # its gradient is zero there by construction
    assert all(len(cell.split()) == 2 for cell in rows[1][1:])


@pytest.mark.slow
def test_every_check_holds():
    assert all(right for _, _, _, right in checks.evidence_figures(1)), checks.evidence_figures(1)


@pytest.mark.slow
def test_the_experiment_asks_the_card_s_own_gates():
    """Shortened as it is, it decides as the card does."""
    benchmark = pytest.importorskip("benchmarks.gates")
    from mechvis.cards import CardData, attribution_card
    from mechvis.testing.evidence.bad import BAD

    method = BAD["wrong_rollout"]()
    where = benchmark.subject(0, 12)
    short = pytest.importorskip("benchmarks.gates_rules").failed_gates(
        benchmark.gates_of(method, 0, n=12, planted_images=32)
    )
    whole = attribution_card(method, CardData(model=where.ask.model, images=where.ask.pixels), level="smoke", seed=0)
    assert short == sorted(gate.id for gate in whole.gates if gate.status == "fail")


def test_rules_are_decided_from_the_numbers_that_are_kept():
    rules = pytest.importorskip("benchmarks.gates_rules")
    row = {
        "gates": {"G3": ["pass", 0.1], "G6a": ["fail", -1.0]},  # G6 is decided again
        "better": {"random/mean": [3.0, 5.0], "centre/mean": [-0.1, 0.2], "input_norm/mean": [-0.3, -0.1]},
        "planted": {"wired": [1.0, 1.0], "object": [0.4, 0.9], "shortcut": [float("nan"), float("nan")]},
    }
    assert rules.failed_gates(row, 0.0, (0.75, 0.7)) == ["G6c", "G7a"]  # mean AUROC 0.7
    assert rules.failed_gates(row, 0.1, (0.65, 0.96)) == ["G7b"]  # a tenth of 4.2 is forgiven; mean contest 0.95
    assert rules.failed_gates({"gates": {"G8": ["fail", 1.0]}}) == ["G8"]


def test_the_page_counts_what_was_caught():
    page = pytest.importorskip("benchmarks.gates_page")
    rows = {
        "centre/0": {"subject": "B/object-0", "gates": {"G3": ["fail", 1.0], "G8": ["pass", 0.0]}},
        "centre/1": {"subject": "B/object-1", "gates": {"G3": ["pass", 0.1], "G8": ["pass", 0.0]}},
        "good: input_ig/0": {"subject": "B/object-0", "gates": {"G3": ["pass", 0.1], "G2": ["not applicable", None]}},
    }
    found = page.counts(rows)
    assert found["centre"] == {"n": 2, "caught": 1, "by": {"G3": 1}, "missed": ["B/object-1"]}
    text = page.page(rows)
    assert "1 of 2 (50.0 %)" in text and "| input_ig | 0 of 1 |" in text
