"""What `mechvis selftest` checks of this package: CIGMA on ShortcutViT, whose every head is known (methods.md 1.5)."""

import numpy as np

from mechvis.selftest import Check

_FIXTURE_SEED = 0
"""The expected numbers are those of these 200 images."""
_TOLERANCE = 0.02


def checks(seed: int) -> list[Check]:
    """The planted shortcut is found, the head that carries everything is not blamed, and removing works as computed.

    Args:
        seed: not used: the fixture's numbers are known for its own images only.
    """
    from circuits.head_scores import score_heads
    from circuits.outcome import outcome
    from mechvis.testing import shortcut_images, shortcut_vit
    from mechvis.units import head_units

    model, drawn = shortcut_vit(), shortcut_images(200, seed=_FIXTURE_SEED)
    images, masks = drawn.image_set(), drawn.masks
    options = {"fill": "zero"}
    values = score_heads(model, images, masks, progress=False, **options)
    guarded = values["guarded"].mean(1).reshape(2, -1)
    raw = values["cigma"].mean(1).reshape(2, -1)
    first = tuple(int(i) for i in np.unravel_index(guarded.argmax(), guarded.shape))
    before = outcome(model, images, masks, **options)
    after = outcome(model, images, masks, head_units([(1, 1)]), **options)
    collapsed = outcome(model, images, masks, head_units([(0, 0)]), **options)

    def near(name: str, expected: float, measured: float) -> Check:
        return Check(
            name=f"ShortcutViT: {name}",
            expected=f"{expected:.3f} +- {_TOLERANCE}",
            measured=f"{measured:.3f}",
            ok=abs(measured - expected) <= _TOLERANCE,
        )

    return [
        Check(
            name="ShortcutViT: head with the largest guarded score",
            expected="(1, 1), the shortcut",
            measured=str(first),
            ok=first == (1, 1),
        ),
        Check(
            name="ShortcutViT: collapse head (0, 0), guarded score",
            expected="< 0, though its raw score is > 0",
            measured=f"{guarded[0, 0]:.3f} (raw {raw[0, 0]:.3f})",
            ok=guarded[0, 0] < 0 < raw[0, 0],
        ),
        near("background influence ratio", 0.781, before.bir),
        near("... without head (1, 1)", 0.073, after.bir),
        near("accuracy", 0.675, float(before.correct.mean())),
        near("... without head (1, 1)", 1.0, float(after.correct.mean())),
        near("... without head (0, 0)", 0.275, float(collapsed.correct.mean())),
    ]
