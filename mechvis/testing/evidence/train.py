"""Train a model of suite B again: `python -m mechvis.testing.evidence.train --variant object --seed 0 --out DIR`.

The models that come with the package were made by this command. Fresh images at every step, AdamW at 2e-3 with a
warm-up of 50 steps and a cosine over the second half; the last thing it does is the certificate.
"""

import argparse
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from mechvis.cli import say
from mechvis.errors import FailedCheck, MechvisError, NotFinite, OutOfRange
from mechvis.testing.evidence.certificate import IMAGES, certify
from mechvis.testing.evidence.model import new_model, save_model
from mechvis.testing.evidence.names import VARIANTS, variant
from mechvis.testing.evidence.task import Variant

logger = logging.getLogger(__name__)
BATCH, RATE, WARMUP, CLIP = 64, 2e-3, 50, 1.0
_FIRST_SEED = 1_000_000_007
"""Images of training never meet those of certificates and scores, whose seeds are small."""


def train(
    given: str | Variant, out: str | Path, *, seed: int = 0, steps: int | None = None, images: int = IMAGES
) -> Path:
    """Train, certify and save one model.

    Args:
        given: a variant or its name.
        out: where the folder `<variant>-<seed>` goes.
        seed: of weights and images.
        steps: optimiser steps instead of the recipe's.
        images: images of the certificate.

    Returns:
        The Hugging Face folder.

    Raises:
        UnknownName: no such variant.
        NotFinite: the loss became NaN or Inf.
        FailedCheck: the certificate does not hold; nothing is written.
    """
    chosen = variant(given)
    steps = chosen.STEPS if steps is None else steps
    if steps < 1:
        raise OutOfRange(f"steps={steps}: give at least 1.")
    model = new_model(chosen, seed=seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    started, used = time.perf_counter(), time.process_time()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / WARMUP) * _falling(step / steps)
        scenes = chosen.draw(BATCH, _FIRST_SEED + seed * 1_000_003 + step, training=True)
        loss = chosen.loss(model(scenes.pixels).logits, scenes)
        if not bool(torch.isfinite(loss)):
            raise NotFinite(f"the loss of {chosen.NAME} became {float(loss.detach())} at step {step}.")
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimiser.step()
        if step % 50 == 0:
            logger.info("step %d: loss %.4f", step, float(loss.detach()))
    cost = {
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - used, 1),
        "threads": torch.get_num_threads(),
    }
    found = certify(model, chosen, n=images)
    if not found["certified"]:
        failed = [f"{row['name']} ({row['share']:.3f})" for row in found["checks"] if not row["holds"]]
        raise FailedCheck(
            f"{chosen.NAME}, seed {seed}, {steps} steps: accuracy {found['accuracy']:.3f}; "
            f"failed: {'; '.join(failed) or 'accuracy'}. Train longer, or take another seed."
        )
    return save_model(
        model, Path(out) / f"{chosen.NAME}-{seed}", found | {"seed": seed, "steps": steps, "batch": BATCH} | cost
    )


def _falling(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * max(0.0, 2 * done - 1)))


def main(words: Sequence[str] | None = None) -> int:
    """Run the training.

    Returns:
        0 trained and certified, 1 a check does not hold.
    """
    parser = argparse.ArgumentParser(
        prog="python -m mechvis.testing.evidence.train", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--variant", required=True, help=", ".join(VARIANTS))
    parser.add_argument("--seed", type=int, default=0, help="of weights and images")
    parser.add_argument("--out", required=True, help="where the folder goes")
    parser.add_argument("--steps", type=int, help="optimiser steps instead of the recipe's")
    parser.add_argument("--images", type=int, default=IMAGES, help="images of the certificate")
    given = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        say(str(train(given.variant, given.out, seed=given.seed, steps=given.steps, images=given.images)))
    except MechvisError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
