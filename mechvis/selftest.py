"""Is this installation right? Models whose answer is known, run through the same code as real ones.

Other packages add checks through the entry-point group `mechvis.selftests`: functions `(seed) -> list[Check]`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points

import torch


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that must hold."""

    name: str
    """What is checked."""
    expected: str
    """What must come out."""
    measured: str
    """What came out."""
    ok: bool
    """Whether it is right."""


def selftest(*, seed: int = 0) -> list[Check]:
    """All checks of all installed packages; a check that raises is a check that failed.

    Args:
        seed: of the random models and images.

    Example:
        >>> all(check.ok for check in selftest())
        True
    """
    others = sorted(entry_points(group="mechvis.selftests"), key=lambda point: point.name)
    found: list[Check] = []
    for name, load in [
        ("parity", lambda: parity),
        ("planted head", lambda: planted_head),
        ("twins", lambda: twins),
        ("planted evidence", lambda: planted_evidence),
        *((point.name, point.load) for point in others),
    ]:
        found += _guarded(name, load, seed)
    return found


def _guarded(name: str, load: Callable[[], Callable[[int], list[Check]]], seed: int) -> list[Check]:
    try:
        return load()(seed)
    except Exception as error:
        return [Check(name=name, expected="no error", measured=f"{type(error).__name__}: {error}", ok=False)]


def parity(seed: int) -> list[Check]:
    """Every family's wrapped model gives what the bare one gives."""
    from mechvis.models.load import TOLERANCE, wrap
    from mechvis.testing import tiny, tiny_families, tiny_preprocess

    checks = []
    for family in tiny_families():
        wrapped = wrap(tiny(family, seed=seed), preprocess=tiny_preprocess())
        towers = [wrapped.vision, wrapped.text] if hasattr(wrapped, "vision") else [wrapped]
        worst = max(max(tower.parity.plain, tower.parity.hooked) for tower in towers)
        allowed = TOLERANCE[torch.float32]
        checks.append(
            Check(
                name=f"{family}: wrapped = bare model",
                expected=f"<= {allowed:.0e} of the output",
                measured=f"{worst:.1e}" if worst else "bitwise equal",
                ok=worst <= allowed,
            )
        )
    return checks


def planted_head(seed: int) -> list[Check]:
    """On the hand-wired ViT, head (0, 0) does everything and three louder heads do nothing."""
    from mechvis.models.load import load
    from mechvis.sweep import sweep
    from mechvis.testing import assert_untouched, hand_wired_images, hand_wired_vit, tiny_preprocess

    bare = hand_wired_vit(dtype=torch.float64)
    pixels, brightness = hand_wired_images(64, seed=seed, dtype=torch.float64)
    left = "as it was found"
    try:
        with assert_untouched(bare):
            model = load(bare, preprocess=tiny_preprocess())
            result = sweep(model, pixels, units="heads", edit="zero", metric="logit_diff", progress=False)
    except AssertionError as difference:
        left = str(difference)
    effects = result.cube("layer", "head")
    # Logit 0 is 0.75 x brightness and logit 1 minus that, so without the head their difference is lost whole.
    expected = 1.5 * float(brightness[:, 4].mean())
    others = float(abs(effects).max()) if effects.argmax() else float(abs(effects.ravel()[1:]).max())
    return [
        Check(
            name="hand-wired ViT: effect of the planted head",
            expected=f"{expected:.4f} +- 1 %",
            measured=f"{effects[0, 0]:.4f}",
            ok=abs(effects[0, 0] - expected) <= 0.01 * expected,
        ),
        Check(
            name="hand-wired ViT: largest effect of the others",
            expected=f"< {0.01 * expected:.4f}",
            measured=f"{others:.1e}",
            ok=others < 0.01 * expected,
        ),
        Check(
            name="hand-wired ViT: module after the sweep",
            expected="as it was found",
            measured=left,
            ok=left == "as it was found",
        ),
    ]


def twins(seed: int) -> list[Check]:
    """The wave front gives what one full forward per unit gives."""
    import numpy as np

    from mechvis.models.load import load
    from mechvis.sweep import sweep
    from mechvis.testing import rand_vit, tiny_input, tiny_preprocess

    model = load(rand_vit(seed), preprocess=tiny_preprocess())
    pixels = tiny_input("vit", n=6, seed=seed + 1, dtype=torch.float64)
    checks = []
    for units, edit in (("heads", "zero"), ("heads", "mean_positional"), ("mlp_out", "resample"), ("neurons", "zero")):
        fast, plain = (
            sweep(model, pixels, units=units, edit=edit, engine=engine, seed=seed, progress=False)
            for engine in ("wave", "plain")
        )
        worst = float(np.abs(fast.values["logit_diff"] - plain.values["logit_diff"]).max())
        checks.append(
            Check(
                name=f"sweep of {units}, {edit}: wave front = one forward each",
                expected="<= 1e-10",
                measured=f"{worst:.1e}",
                ok=worst <= 1e-10,
            )
        )
    return checks


def planted_evidence(seed: int) -> list[Check]:
    """Attribution methods find what is planted, and fail where they are known to fail; the table is printed below."""
    from mechvis.testing.evidence.checks import evidence_figures

    return [
        Check(name=what, expected=expected, measured=measured, ok=right)
        for what, expected, measured, right in evidence_figures(seed)
    ]
