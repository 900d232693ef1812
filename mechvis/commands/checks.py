"""`mechvis selftest`: does this installation compute what it should?"""

import logging

from mechvis.cli import columns, say
from mechvis.commands.words import calls


@calls("mechvis.selftest:selftest")
def selftest(*, seed: int = 0) -> int:
    """Check this installation on models whose answer is known; takes less than a minute.

    Args:
        seed: of the random models and images.
    """
    from mechvis.selftest import selftest as run

    logging.getLogger("mechvis").setLevel(logging.WARNING)  # the table says it
    checks = run(seed=seed)
    rows = [(check.name, check.expected, check.measured, "ok" if check.ok else "FAILED") for check in checks]
    say(columns(rows, ("check", "expected", "measured", "")))
    failed = sum(not check.ok for check in checks)
    say(f"\n{len(checks) - failed} of {len(checks)} checks passed")
    return int(failed > 0)
