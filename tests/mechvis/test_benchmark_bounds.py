"""What a task needs at the least: the benchmark's counts against hand-computed ones and torch's own counter."""

from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bounds(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import bounds

    return bounds


@pytest.fixture
def small(bounds):
    """5 tokens, two blocks of two heads: small enough to count by hand."""
    return bounds.Shape(layers=2, heads=2, width=4, hidden=8, patch=2, patches=4, classes=3)


def test_counts_of_one_forward_by_hand(bounds, small):
    assert bounds.attention(small) == 4 * 5 * 16 + 2 * 25 * 4 == 520
    assert bounds.mlp(small) == 2 * 5 * 4 * 8 == 320
    assert bounds.embedding(small) == 4 * 12 * 4 == 192
    assert bounds.forward(small) == 192 + 2 * (520 + 320) + 4 * 3 == 1884
    assert bounds.last_block(small, classic=True) == 2 * 5 * 16 + 2 * 16 + 2 * 5 * 4 + 2 * 4 * 8 == 296
    assert bounds.last_block(small) == 4 * 16 + 2 * 2 * 5 * 4 + 2 * 4 * 8 == 208
    assert bounds.clean(small) == 192 + 840 + 208 + 12
    plain = bounds.plain(small, 3, kept=10, item=2)
    assert (plain.multiply_adds, plain.bytes) == (3 * 1884, 2 * (small.parameters + 3 * (48 + 3) + 10))


@pytest.mark.parametrize(
    ("kind", "first", "classic", "last", "made"),
    [
        ("heads", 5 * 2 * 4 + 5 * (2 + 4) * 8 + 208 + 12, 5 * 2 * 4 + 320 + 296 + 12, 2 * 4 + 64 + 12, 2 * 4 * 8),
        ("tokens", 840 + 208 + 12, 840 + 296 + 12, 208 + 12, 0),
        ("neurons", 5 * 4 + 208 + 12, 5 * 4 + 296 + 12, 4 + 12, 0),
    ],
)
def test_counts_of_a_row_by_hand(bounds, small, kind, first, classic, last, made):
    assert [bounds.row(small, kind, layer) for layer in (0, 1)] == [first, last]
    assert bounds.row(small, kind, 0, classic=True) == classic
    least = bounds.sweep(small, kind, [0, 1, 1], images=3)
    assert least.multiply_adds == 3 * (1252 + first + 2 * last) + made
    assert least.full == 3 * 3 * 1884
    assert least.bytes == 4 * (small.parameters + 3 * 48 + 3 * 4 * 3)
    again = bounds.sweep(small, kind, [0, 1, 1], images=3, recheck=[1])
    assert (again.low_precision, again.multiply_adds) == (least.multiply_adds, 3 * (1252 + last))


def test_unknown_kinds_are_not_counted(bounds, small):
    with pytest.raises(ValueError, match="no count for 'edges'"):
        bounds.row(small, "edges", 0)


def test_counts_of_a_vit_b_16(bounds):
    """2529 and 1130 billion were counted elsewhere (without what a head's entering costs); 86,567,656 is published."""
    shape = bounds.Shape(layers=12, heads=12, width=768, hidden=3072, patch=16, patches=196, classes=1000)
    least = bounds.sweep(shape, "heads", [layer for layer in range(12) for _ in range(12)])
    assert shape.parameters == 86_567_656
    assert least.full / 1e9 == pytest.approx(2529, rel=1e-3)
    assert least.classic / 1e9 == pytest.approx(1130, rel=2e-3)
    assert least.classic / least.full == pytest.approx(0.447, abs=5e-4)
    assert least.multiply_adds / least.full == pytest.approx(0.421, abs=5e-4)


def test_counts_agree_with_torch(bounds):
    """Against torch's own counter, on a model with explicit attention (it does not count the fused one on a CPU)."""
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks import models

    model, place = models.bare("toy", models.Place()), models.Place()
    model.set_attn_implementation("eager")
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(models.pixels("toy", place, 2))
    finally:
        models.forget()
    shape = bounds.Shape.of(model.config)
    assert counter.get_total_flops() == 2 * 2 * bounds.forward(shape)
    assert shape == models.shape("toy")
    assert shape.parameters == sum(p.numel() for p in model.parameters())


def test_seconds_of_a_bound(bounds):
    least = bounds.Least(multiply_adds=50, bytes=1000, low_precision=200)
    assert least.seconds(100, 1e9, 400) == pytest.approx(1 + 1)
    assert least.seconds(100, 100, 400) == pytest.approx(10)
