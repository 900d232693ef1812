"""A text bank as directions in a CLIP model's joint space, computed once and kept."""

import io
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from mechvis import files
from mechvis.data.text_bank import TextBank, text_bank
from mechvis.errors import BadData, MechvisWarning, NotFinite, ShapeMismatch, StoreCorrupt

logger = logging.getLogger(__name__)

FORMAT = "mechvis.texts"
FORMAT_VERSION = 1
MANIFEST = "texts.json"
_FILE = "texts.npy"


def encode_bank(
    clip: Any,
    bank: str | Path | TextBank,
    *,
    cache: str | Path | None = None,
    batch_size: int = 256,
    most_alike: float = 0.1,
) -> Float[np.ndarray, "text d_embed"]:
    """Unit-length embeddings of all texts of a bank, in float64.

    Args:
        clip: a model with a text tower, from `mechvis.load`.
        bank: a bank, its name, or its file.
        cache: a folder that keeps the embeddings; they are found again by the weights of the model and the texts.
        batch_size: texts that go through the tower together.
        most_alike: largest share of texts that the tower may be unable to tell from another one.

    Returns:
        One row per text.

    Raises:
        BadData: no text tower; or more than `most_alike` of the texts have the embedding of another text, as texts of
            words that the tokenizer does not know have.
        NotFinite: NaN or Inf in an embedding.
        StoreCorrupt: what the folder keeps is damaged.

    Example:
        >>> encode_bank(mechvis.load("scenes-clip"), "scenes").shape               # doctest: +SKIP
        (88, 64)
    """
    bank = text_bank(bank)
    if not hasattr(clip, "encode_text"):
        raise BadData(
            f"{type(clip).__name__} has no text tower; a text bank needs a CLIP model, such as "
            "mechvis.load('scenes-clip')."
        )
    if not 0 <= most_alike <= 1:
        raise BadData(f"most_alike is a share from 0 to 1, got {most_alike}.")
    kept = None if cache is None else Path(cache) / f"{clip.text.fingerprint}-{bank.fingerprint}"
    if kept is not None and (kept / MANIFEST).exists():
        return _read(kept, len(bank))
    found = clip.encode_text(list(bank.texts), batch_size=batch_size).detach().cpu().double().numpy()
    if not np.isfinite(found).all():
        place = int((~np.isfinite(found)).any(1).argmax())
        raise NotFinite(f"the embedding of {bank.texts[place]!r} holds NaN or Inf.")
    _tell_apart(found, bank, most_alike)
    if kept is not None:
        content = io.BytesIO()
        np.save(content, found, allow_pickle=False)
        about = {"format": FORMAT, "version": FORMAT_VERSION, "bank": bank.name}
        files.write_together(kept, {_FILE: content.getvalue()}, MANIFEST, about)
    return found


def directions(
    bank: TextBank, embeddings: Float[np.ndarray, "text d_embed"], name: str
) -> tuple[tuple[str, ...], Float[np.ndarray, "class d_embed"]]:
    """The values of a property as classes: for each the mean of the unit embeddings of its texts, again of unit length.

    This is how zero-shot classes are made of templates (methods.md 2.1, **C**).

    Args:
        bank: the texts.
        embeddings: from :func:`encode_bank`.
        name: a property of the bank.

    Returns:
        Names of the values, and one unit direction for each.

    Raises:
        UnknownName: no text is about the property.
        ShapeMismatch: not one embedding per text.

    Example:
        >>> bank = text_bank("scenes")
        >>> directions(bank, np.eye(88), "colour")[0][:2]
        ('red', 'green')
    """
    if embeddings.ndim != 2 or len(embeddings) != len(bank):
        raise ShapeMismatch(f"{len(bank)} texts, but embeddings of the shape {list(embeddings.shape)}.")
    values: Mapping[str, list[int]] = bank.values(name)
    means = np.stack([unit(embeddings[places]).mean(0) for places in values.values()])
    return tuple(values), unit(means)


def unit(rows: Float[np.ndarray, "*batch d_embed"]) -> Float[np.ndarray, "*batch d_embed"]:
    """Rows of length one.

    Raises:
        NotFinite: a row of length zero has no direction.

    Example:
        >>> unit(np.array([[3.0, 4.0]]))
        array([[0.6, 0.8]])
    """
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    if (norms == 0).any():
        raise NotFinite("a vector of length zero has no direction.")
    return rows / norms


def _tell_apart(found: np.ndarray, bank: TextBank, most: float) -> None:
    """Refuse (or warn of) texts that the tower reads as one."""
    _, first, counts = np.unique(found.round(6), axis=0, return_inverse=True, return_counts=True)
    alike = np.flatnonzero(counts[first.ravel()] > 1)
    if not len(alike):
        return
    some = ", ".join(repr(bank.texts[i]) for i in alike[:4])
    said = (
        f"the text tower cannot tell {len(alike)} of the {len(bank)} texts of {bank.name!r} from another one ({some})"
    )
    if len(alike) > most * len(bank):
        raise BadData(f"{said}: its tokenizer does not know their words. Use a bank of words that the model has read.")
    warnings.warn(f"{said}; only the first of such texts can ever be picked.", MechvisWarning, stacklevel=3)


def _read(kept: Path, n: int) -> np.ndarray:
    check = files.only_format(kept / MANIFEST, FORMAT, FORMAT_VERSION, "embeddings of texts")
    content = files.read_together(kept, files.read_manifest(kept, MANIFEST, check=check), _FILE)
    found = np.load(io.BytesIO(content), allow_pickle=False)
    if found.ndim != 2 or len(found) != n:
        raise StoreCorrupt(
            f"{kept} holds embeddings of the shape {list(found.shape)} for {n} texts; remove the folder."
        )
    logger.info("embeddings of %d texts from %s", n, kept)
    return found
