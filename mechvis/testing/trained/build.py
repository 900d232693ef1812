"""Train a planted model and its twin again: `python -m mechvis.testing.trained.build colour_if_shape --out DIR`.

One CPU thread takes a few minutes. The folders that come with the package were made by this command.
"""

import argparse
import logging
import sys
from collections.abc import Sequence

from mechvis.cli import say
from mechvis.errors import MechvisError


def main(words: Sequence[str] | None = None) -> int:
    """Run the build.

    Args:
        words: command line; None: that of this process.

    Returns:
        0 built and certified, 1 a gate does not hold, 2 wrong use.
    """
    import torch

    from mechvis.testing.trained.tasks import TASKS
    from mechvis.testing.trained.training.recipe import build

    parser = argparse.ArgumentParser(
        prog="python -m mechvis.testing.trained.build", description=__doc__.splitlines()[0]
    )
    parser.add_argument("task", help=", ".join(TASKS))
    parser.add_argument("--seed", type=int, default=0, help="of heads, weights, images and interchanges")
    parser.add_argument("--out", required=True, help="where both folders go")
    parser.add_argument("--no-decoys", action="store_true", help="let unused heads fall silent")
    parser.add_argument("--steps", type=int, help="optimiser steps instead of the recipe's")
    parser.add_argument("--images", type=int, default=1000, help="images of the certificate")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch; the bundled models used one")
    given = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    torch.set_num_threads(given.threads)
    try:
        folders = build(
            given.task, given.out, seed=given.seed, decoys=not given.no_decoys, steps=given.steps, n=given.images
        )
    except MechvisError as error:
        say(str(error))
        return 1
    for folder in folders:
        say(str(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
