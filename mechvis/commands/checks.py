"""`mechvis selftest`: does this installation compute what it should?"""

import logging

from mechvis.cli import columns, say
from mechvis.commands.words import calls


@calls("mechvis.selftest:selftest")
def selftest(*, seed: int = 0) -> int:
    """Check this installation on models whose answer is known; takes a minute or two.

    Args:
        seed: of the random models and images.
    """
    from mechvis.selftest import selftest as run

    logging.getLogger("mechvis").setLevel(logging.WARNING)  # the table says it
    checks = run(seed=seed)
    rows = [(check.name, check.expected, check.measured, "ok" if check.ok else "FAILED") for check in checks]
    say(columns(rows, ("check", "expected", "measured", "")))
    if any(check.name.startswith("planted evidence:") for check in checks):
        from mechvis.testing.evidence.checks import evidence_text

        # No check: which methods find planted evidence is for the reader to know, not for the installation to pass.
        say("\nDo attribution methods find planted evidence? A is wired by hand (wired...), the others are trained.")
        say(columns(*evidence_text(seed)))
    failed = sum(not check.ok for check in checks)
    say(f"\n{len(checks) - failed} of {len(checks)} checks passed")
    return int(failed > 0)
