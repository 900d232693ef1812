"""Progress of long jobs: one place, so that notebooks, terminals and logs all behave."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def track(total: int, what: str, unit: str, *, show: bool = True, done: int = 0) -> Iterator[Any]:
    """A progress bar with rate and remaining time; call `.update(n)` on it.

    Args:
        total: size of the whole job.
        what: what is being done.
        unit: what is counted, e.g. ` rows`.
        show: False for silence.
        done: already finished in an earlier run.
    """
    from tqdm.auto import tqdm

    # leave=False keeps notebooks tidy; mininterval keeps log files short.
    bar = tqdm(
        total=total, desc=what, unit=unit, disable=not show, initial=done, mininterval=0.5, unit_scale=total > 9999
    )
    try:
        yield bar
    finally:
        bar.close()
