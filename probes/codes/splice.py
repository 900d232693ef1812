"""SpLiCE: an image embedding as a sparse, non-negative sum of words.

    1. words: unit length, minus their mean, unit length again
    2. image: x = norm(norm(z) - mu), mu the mean normalised embedding of a reference set of images
    3. w = argmin over w >= 0 of |x - w T|^2 + l1 sum(w)
    4. back: norm(norm(w T) + mu); its cosine with z says how much the words explain. This gives the word part length
       one, whatever |norm(z) - mu| was; `keep_length` gives it the image's own length, which is closer to z (**X**)

Both means must be taken off: texts and images lie in two narrow cones that have little to do with each other (the
modality gap), and without it no word is close enough to any image for its price: the codes are empty.

Then intervene: weights of chosen words to zero, recompose, classify again, beside the same amount of other words.

Source: methods.md 2.5 (**C**). A code is about directions of this CLIP; correlated words share their weight at random,
and a word that fits is not a cause of anything.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import polars as pl
from jaxtyping import Float

from mechvis.errors import BadData, OutOfRange, ShapeMismatch, unknown
from mechvis.progress import track
from mechvis.provenance import provenance
from mechvis.record import Record, finite
from mechvis.stats import RESAMPLES, bootstrap
from probes.codes.lasso import admm, coordinate_descent, kkt, working_set
from probes.codes.words import WordList, unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mechvis.report.blocks import Block

Solver = Literal["coordinate_descent", "admm", "working_set"]
_SOLVERS = {"coordinate_descent": coordinate_descent, "admm": admm, "working_set": working_set}
_AT_ONCE = 512


class SpliceCodes(Record):
    """Codes of some images, from :func:`splice`.

    Tables: `words` (mean weight with its interval, share of the images with the word; the most used first), `images`
    (l0, cosines, kkt), `codes` (image, word, weight of every active word). `arrays`: `words` (the dictionary as it was
    used), `mean` (what was taken off the images) and `lengths` (what was left of each: |norm(z) - mu|).
    """

    KIND: ClassVar[str] = "splice"

    @property
    def names(self) -> tuple[str, ...]:
        """All words, in the order of the dictionary."""
        return tuple(self.facts["dictionary"])

    def dense(self) -> Float[np.ndarray, "image word"]:
        """The codes as a matrix."""
        codes = np.zeros((self.tables["images"].height, len(self.names)))
        place = {name: i for i, name in enumerate(self.names)}
        known = self.tables["codes"]
        columns = [place[name] for name in known["word"]]
        codes[known["image"].to_numpy(), columns] = known["weight"].to_numpy()
        return codes

    def of(self, image: int) -> list[tuple[str, float]]:
        """Words and weights of one image, the heaviest first.

        Raises:
            OutOfRange: no such image.
        """
        if not 0 <= image < self.tables["images"].height:
            raise OutOfRange(f"image {image}: there are 0 to {self.tables['images'].height - 1}.")
        rows = self.tables["codes"].filter(pl.col("image") == image).sort("weight", descending=True)
        return list(zip(rows["word"].to_list(), rows["weight"].to_list(), strict=True))

    def plot(self, most: int = 20) -> "Figure":
        """Mean weights of the most used words, with intervals.

        Raises:
            BadData: all codes are empty.
        """
        from mechvis.plots.bars import bars

        if self.table.is_empty():
            raise BadData("all codes are empty: there is nothing to draw. Lower l1, and take both means off.")
        top = self.table.head(most)
        ends = {end: top[f"weight_{end}"].fill_null(float("nan")).to_numpy() for end in ("low", "high")}
        return bars(top["word"].to_list(), top["weight"].to_numpy(), title=self.title, label="mean weight", **ends)

    def figures(self) -> "list[Block]":
        """The most used words."""
        from mechvis.report.blocks import Figure

        return [] if self.table.is_empty() else [Figure(self.plot(), caption="Mean weight over the images.")]

    def recompose(self, without: Sequence[str] = (), *, keep_length: bool = False) -> Float[np.ndarray, "image d"]:
        """Embeddings made of the words again, at unit length; an image without words is at the mean.

        Args:
            without: words whose weights are set to zero.
            keep_length: the word part gets the length that was left of the image; False: length one, as published.

        Raises:
            UnknownName: a word that is not in the dictionary.
        """
        codes = self.dense()
        for name in without:
            if name not in self.names:
                raise unknown("word", name, self.names)
            codes[:, self.names.index(name)] = 0.0
        lengths = self.arrays["lengths"] if keep_length else None
        return recomposed(codes, self.arrays["words"], self.arrays["mean"], lengths)


def splice(
    embeddings: Float[np.ndarray, "image d"],
    words: WordList,
    *,
    mean: Float[np.ndarray, "..."] | None = None,
    l1: float = 0.25,
    solver: Solver = "coordinate_descent",
    centre_words: bool = True,
    centre_images: bool = True,
    names: Sequence[str] | None = None,
    batch_size: int = _AT_ONCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: bool = False,
    **settings: Any,
) -> SpliceCodes:
    """Sparse non-negative word codes of image embeddings.

    Args:
        embeddings: of images, of any length but zero.
        words: the dictionary, of the same CLIP.
        mean: `[d]`, or embeddings `[image d]` of reference images whose mean direction it is; None: of these images.
        l1: price of a unit of weight: 0.15 to 0.35 give 5 to 30 words on CLIP with 10,000 words (**C**).
        solver: `coordinate_descent`, `admm`, or `working_set` (exact, and the fastest with many words).
        centre_words: take the mean of the words off.
        centre_images: take the mean of the images off.
        names: of the images.
        batch_size: images that are solved together.
        resamples: of the bootstrap over images.
        seed: of the bootstrap.
        progress: show a progress bar.
        settings: of the solver: iterations, tolerance, rho, step.

    Returns:
        SpliceCodes: codes, their words and how well they explain.

    Raises:
        UnknownName: no such solver.
        ShapeMismatch, NotFinite, OutOfRange: arrays or settings that do not fit.

    Example:
        >>> words = WordList.of_texts(clip, ["red", "blue", "star", "circle"])                 # doctest: +SKIP
        >>> codes = splice(clip.encode_image(images).cpu().numpy(), words, mean=others)        # doctest: +SKIP
        >>> codes.of(0)                                                                        # doctest: +SKIP
        [('star', 0.31), ('red', 0.12)]
    """
    if solver not in _SOLVERS:
        raise unknown("solver", solver, _SOLVERS)
    if batch_size < 1:
        raise OutOfRange(f"batch_size={batch_size}: give at least 1.")
    z = unit(_rows("embeddings", embeddings, words), "embedding")
    if names is not None and len(names) != len(z):
        raise ShapeMismatch(f"{len(z)} images need as many names, got {len(names)}.")
    own = mean is None
    mu = np.zeros(z.shape[1]) if not centre_images else _mean(z if own else mean, z.shape[1])
    if centre_images and own and len(z) < 2:
        raise BadData("one image alone is its own mean, and nothing is left of it: give mean= from other images.")
    atoms = words.centred() if centre_words else words.vectors
    lengths = np.linalg.norm(z - mu, axis=1)
    x = unit(z - mu, "centred embedding")
    codes = np.zeros((len(x), len(words)))
    with track(len(x), "splice", " images", show=progress) as bar:
        for start in range(0, len(x), batch_size):
            part = slice(start, start + batch_size)
            codes[part] = _SOLVERS[solver](x[part], atoms, l1, **settings)
            bar.update(len(x[part]))
    back = recomposed(codes, atoms, mu)
    images = pl.DataFrame(
        {
            "image": np.arange(len(z)),
            **({} if names is None else {"name": list(names)}),
            "l0": (codes > 0).sum(1),
            "cosine": (back * z).sum(1),
            "cosine_kept": (recomposed(codes, atoms, mu, lengths) * z).sum(1),
            "kkt": kkt(x, atoms, codes, l1),
        }
    )
    rows, picks = codes.nonzero()
    active = {"image": rows, "word": np.array(words.names, dtype=object)[picks].tolist(), "weight": codes[rows, picks]}
    summary = bootstrap(np.stack([images["l0"].to_numpy().astype(float), images["cosine"].to_numpy()]), seed=seed)
    return SpliceCodes(
        title=f"Sparse word codes of {len(z)} images",
        tables={
            "words": _words(words, codes, resamples, seed),
            "images": images,
            "codes": pl.DataFrame(active, schema={"image": pl.Int64, "word": pl.String, "weight": pl.Float64}),
        },
        arrays={"words": atoms, "mean": mu, "lengths": lengths},
        facts={
            "dictionary": list(words.names),
            "l1": l1,
            "solver": solver,
            "words centred": centre_words,
            "images centred": centre_images,
            "mean of": ("these images" if own else "given") if centre_images else "nothing",
            "images": len(z),
            **{
                name: {"mean": value, "low": low, "high": high}
                for name, value, low, high in zip(
                    ("l0", "cosine"),
                    summary.effect.tolist(),
                    (None if np.isnan(low) else low for low in summary.low.tolist()),
                    (None if np.isnan(high) else high for high in summary.high.tolist()),
                    strict=True,
                )
            },
            "empty codes": int((codes.max(1) == 0).sum()),
        },
        words={
            "weight": "mean weight over the images, of unit-length centred words",
            "share": "share of the images with this word in their code",
            "l0": "words in the code",
            "cosine": "of the recomposed with the original embedding",
            "cosine_kept": "the same, the word part as long as what was left of the image",
            "kkt": "distance from the optimum: 0 is optimal, in units of l1 / 2",
        },
        caveats=_caveats(codes, centre_words, centre_images, own),
        provenance=provenance(seed={"bootstrap": seed}, splice={"solver settings": settings}),
    )


def recomposed(
    codes: Float[np.ndarray, "image word"],
    atoms: Float[np.ndarray, "word d"],
    mean: Float[np.ndarray, " d"],
    lengths: Float[np.ndarray, " image"] | None = None,
) -> Float[np.ndarray, "image d"]:
    """norm(norm(w T) + mu), the first norm times `lengths` if given; without any word norm(mu) (0 without a mean)."""
    mixed = codes @ atoms
    length = np.linalg.norm(mixed, axis=1, keepdims=True)
    mixed = np.divide(mixed, length, out=np.zeros_like(mixed), where=length > 0)
    moved = (mixed if lengths is None else mixed * lengths[:, None]) + mean
    length = np.linalg.norm(moved, axis=1, keepdims=True)
    return np.divide(moved, length, out=np.zeros_like(moved), where=length > 0)


def _rows(what: str, rows: Any, words: WordList) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] != words.vectors.shape[1] or not len(rows):
        raise ShapeMismatch(
            f"{what} should be [image {words.vectors.shape[1]}], as wide as the words, got {list(rows.shape)}."
        )
    return finite(what, rows)


def _mean(given: Any, width: int) -> np.ndarray:
    given = finite("the mean", np.asarray(given, dtype=np.float64))
    if given.ndim == 2 and given.shape[1] == width:
        return unit(given, "reference embedding").mean(0)
    if given.shape != (width,):
        raise ShapeMismatch(f"mean= should be [{width}] or reference embeddings [image {width}], got {given.shape}.")
    return given


def _words(words: WordList, codes: np.ndarray, resamples: int, seed: int) -> pl.DataFrame:
    used = np.flatnonzero(codes.any(0))
    if not len(used):
        kinds = {"word": pl.String, "weight": pl.Float64, "weight_low": pl.Float64, "weight_high": pl.Float64}
        return pl.DataFrame(schema={**kinds, "share": pl.Float64, "n": pl.Int64})
    known = bootstrap(np.ascontiguousarray(codes[:, used].T), resamples=resamples, seed=seed)
    return (
        pl.DataFrame(
            {
                "word": [words.names[i] for i in used],
                "weight": known.effect,
                "weight_low": known.low,
                "weight_high": known.high,
                "share": (codes[:, used] > 0).mean(0),
                "n": known.n,
            }
        )
        .with_columns(pl.col(pl.Float64).fill_nan(None))
        .sort("weight", descending=True)
    )


def _caveats(codes: np.ndarray, centre_words: bool, centre_images: bool, own: bool) -> tuple[str, ...]:
    said = [
        "Words that lie close together share their weight in ways that say nothing; a word in a code is a direction of "
        "this model, not a cause.",
    ]
    if not (centre_words and centre_images):
        said.append("Not both means were taken off: across the modality gap codes are empty or meaningless.")
    if centre_images and own:
        said.append("The mean is that of these images themselves; codes of single images depend on the others.")
    if empty := int((codes.max(1) == 0).sum()):
        said.append(f"{empty} of {len(codes)} codes are empty: no word is worth its price. Lower l1.")
    return tuple(said)
