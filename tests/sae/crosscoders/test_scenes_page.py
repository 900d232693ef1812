"""The page about the shortcut's crosscoder says what its numbers say, and they show what it is for."""

import json
from pathlib import Path

DOCS = Path(__file__).parents[3] / "docs"
GROUP = "background, twice as much with"


def test_the_page_holds_its_numbers():
    numbers = json.loads((DOCS / "scenes_crosscoder.json").read_text())
    text = (DOCS / "scenes_crosscoder.md").read_text()
    for row in [*numbers["ablated"], *numbers["transcoder"]["lines"]]:
        assert f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" in text
    for row in numbers["swapped"]:
        assert f"{row['moved']:.2f} [{row['moved_low']:.2f}, {row['moved_high']:.2f}]" in text
    assert (DOCS / "scenes_crosscoder.svg").exists() and "scenes_crosscoder.svg" in text


def test_background_latents_carry_the_shortcut():
    """Without them the model is right more often than without any random group, and the other model is as it was."""
    numbers = json.loads((DOCS / "scenes_crosscoder.json").read_text())
    row = next(r for r in numbers["ablated"] if r["latents"] == GROUP and r["scenes"] == "conflicting")
    plain = numbers["accuracy"]
    assert row["low"] > row["random_high"] and row["low"] > plain["with, conflicting"]["high"]
    assert abs(row["same_in_without"] - plain["without, conflicting"]["value"]) < 0.02
    moved = {r["model"]: r for r in numbers["swapped"] if r["group"] == GROUP}
    assert moved["with"]["moved_low"] > moved["without"]["moved_high"]
    lines = {r["in_its_place"]: r for r in numbers["transcoder"]["lines"]}
    assert lines["transcoder, k = 32"]["low"] > lines["its mean, token by token"]["high"]
