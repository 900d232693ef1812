"""A text span's names of heads, confirmed on images that it has not seen."""

from pathlib import Path
from typing import Any

import numpy as np

from mechvis.data.images import ImageSet
from mechvis.data.text_bank import TextBank, text_bank
from mechvis.data.text_encoding import encode_bank
from mechvis.errors import BadData, ResultMismatch, SplitOverlap
from mechvis.record import Record
from probes.textspan.confirm import confirm_heads
from probes.textspan.record import TextSpan, image_keys
from probes.textspan.tasks import property_tasks

ALONG = " (lies along)"
"""Added to the name of a group of heads that are named by how much of them lies along a property."""


def confirm_span(
    clip: Any,
    found: TextSpan,
    test: ImageSet,
    bank: str | Path | TextBank,
    *,
    reference: ImageSet,
    draws: int = 20,
    cache: str | Path | None = None,
    batch_size: int = 64,
    seed: int = 0,
    allow_overlap: bool = False,
    progress: bool = True,
) -> Record:
    """Ablate the heads that a text span has named, and ask the images for every property that is known of them.

    Two groups per property: heads named by their texts, and heads named by how much of them lies along it.

    Args:
        clip: the model of the text span.
        found: the text span.
        test: images to judge on, which say what the properties are, in columns or class names.
        bank: the texts of the text span.
        reference: images for the means of ablated heads; may be those of the text span.
        draws: random groups per number of heads.
        cache: a folder that keeps the embeddings of the texts.
        batch_size: images per forward pass.
        seed: of the random groups and the intervals.
        allow_overlap: accept images that the text span was found on, or that are in the reference.
        progress: show a progress bar.

    Returns:
        The Record of :func:`probes.textspan.confirm.confirm_heads`.

    Raises:
        SplitOverlap: the text span was found on some of the images: heads would be judged on what they were chosen by.
        ResultMismatch: a text span of another model, or of another bank.
        BadData: no head has a name, or nothing is known of the images.

    Example:
        >>> found = text_span(clip, images, "scenes", m=5)                                 # doctest: +SKIP
        >>> confirm_span(clip, found, others, "scenes", reference=images).table            # doctest: +SKIP
    """
    bank = text_bank(bank)
    said = found.provenance
    if said.get("model", {}).get("fingerprint") not in (None, clip.vision.fingerprint):
        raise ResultMismatch(f"this text span belongs to another model than {clip.vision.name}.")
    if said.get("bank") not in (None, bank.fingerprint):
        raise ResultMismatch(f"this text span was made with the bank {found.facts['bank']!r}, not with {bank.name!r}.")
    shared = np.isin(image_keys(test.ids), found.arrays["image_keys"])
    if shared.any() and not allow_overlap:
        raise SplitOverlap(
            f"{int(shared.sum())} images are among those that the heads were named on "
            f"({test.ids[int(shared.argmax())]} ...). Judge on others, or allow_overlap=True if you know why."
        )
    groups = found.labels() | {name + ALONG: heads for name, heads in found.labels(by="inside").items()}
    if not groups:
        raise BadData("no head of this text span is named by a property, so there is nothing to confirm.")
    tasks = property_tasks(bank, encode_bank(clip, bank, cache=cache), test)
    return confirm_heads(
        clip,
        test,
        groups,
        tasks,
        reference=reference,
        draws=draws,
        batch_size=batch_size,
        seed=seed,
        allow_overlap=allow_overlap,
        progress=progress,
    )
