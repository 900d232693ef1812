"""One way to factor activations into concepts, whatever the method (methods2.md 17.4; **A**, **K**).

    A [row d]  ~  U [row concept] V [concept d]   (+ a centre)

What is asked of U and V names the method:

============  =================================================================  =====================================
method        asked                                                              codes of a new row
============  =================================================================  =====================================
`kmeans`      each row is one concept                                            1 for the nearest, else 0
`pca`         concepts orthogonal, codes signed, around the mean                 projection
`nmf`         all >= 0: for activations that are (scikit-learn)                  non-negative least squares with ridge
`semi_nmf`    codes >= 0 and few, concepts signed: the default, as a ViT's       non-negative lasso
              activations are signed (**X**)
`dictionary`  the same learned by scikit-learn, or any object with encode and    non-negative lasso, or the object's
              decode (a sparse autoencoder)                                      own encoder
============  =================================================================  =====================================

The codes of the rows that were factored are what :meth:`Factorisation.encode` gives of them, for every method: a row
has one code, wherever it comes from. Concepts have length one (but for `kmeans`, where codes are 0 and 1, and given
dictionaries), so codes are lengths and can be compared.

Semi-NMF alone is not unique, and `pca` and `kmeans` do not look for parts at all: only a price on the codes brings
planted parts back (:mod:`probes.concepts.sparse_parts` has the figures). `sparsity=0` is semi-NMF as published.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float

from mechvis.errors import BadData, OutOfRange, ShapeMismatch, unknown
from mechvis.record import finite
from probes.concepts.coding import nonnegative_code
from probes.concepts.semi_nmf import Init, checked_rows, semi_nmf
from probes.concepts.sparse_parts import sparse_parts

Method = Literal["semi_nmf", "nmf", "pca", "kmeans", "dictionary"]
METHODS = get_args(Method)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Factorisation:
    """Concepts, codes, and how to code new rows."""

    method: str
    """How they were found."""
    bank: Float[np.ndarray, "concept d"]
    """V: one concept per row."""
    codes: Float[np.ndarray, "row concept"]
    """U: how much of each concept the factored rows hold."""
    centre: Float[np.ndarray, " d"]
    """What is subtracted first and added last; zeros where nothing is."""
    penalty: Float[np.ndarray, " concept"] | None = None
    """Ridge of each code, for `nmf`."""
    price: float = 0.0
    """Price of a unit of code, for `semi_nmf` and `dictionary`, in units of the rows."""
    losses: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """Loss by iteration, where the method tells: the price on the codes included."""
    coder: Any = None
    """A given dictionary: its own `encode`."""

    @property
    def n_concepts(self) -> int:
        """How many concepts."""
        return len(self.bank)

    def encode(self, rows: Float[np.ndarray, "row d"]) -> Float[np.ndarray, "row concept"]:
        """Codes of any rows of the same site.

        Raises:
            ShapeMismatch: rows of another width.
            NotFinite: NaN or Inf.
        """
        rows = np.asarray(rows, np.float64)
        if rows.ndim != 2 or rows.shape[1] != self.bank.shape[1]:
            raise ShapeMismatch(f"these concepts code rows [row {self.bank.shape[1]}], got {list(rows.shape)}.")
        rows = finite("the rows", rows) - self.centre
        if self.coder is not None:
            return _numbers(self.coder.encode(_tensor(rows + self.centre)))
        if self.method == "kmeans":
            far = (rows**2).sum(1)[:, None] - 2 * rows @ self.bank.T + (self.bank**2).sum(1)
            return np.eye(self.n_concepts)[far.argmin(1)]
        if self.method == "pca":
            return rows @ self.bank.T
        return nonnegative_code(rows, self.bank, self.penalty, self.price)

    def decode(self, codes: Float[np.ndarray, "row concept"]) -> Float[np.ndarray, "row d"]:
        """The rows that these codes stand for."""
        codes = np.asarray(codes, np.float64)
        if codes.shape[-1] != self.n_concepts:
            raise ShapeMismatch(f"codes [row {self.n_concepts}] are wanted, got {list(codes.shape)}.")
        return codes @ self.bank + self.centre

    def __repr__(self) -> str:
        return f"Factorisation({self.method}, {self.n_concepts} concepts of width {self.bank.shape[1]})"


def factorise(
    rows: Float[np.ndarray, "row d"],
    method: Method = "semi_nmf",
    n_concepts: int = 20,
    *,
    centre: bool | None = None,
    init: Init = "kmeans",
    iterations: int = 500,
    alpha: float = 1e-2,
    sparsity: float = 0.05,
    dictionary: Any = None,
    seed: int = 0,
) -> Factorisation:
    """Factor activations into concepts (methods2.md 17.4; NMF as in CRAFT, methods.md 12 **C**).

    Args:
        rows: activations, one row per image, patch, crop or segment.
        method: see the module; semi-NMF by default, because shifting or clipping signed activations for NMF would
            change what they mean (**X**).
        n_concepts: how many; CRAFT takes 20 (**C**).
        centre: subtract the mean of the rows first; by default for `pca` only. Not possible for `nmf`.
        init: start of semi-NMF.
        iterations: at most so many.
        alpha: `nmf`: ridge, as scikit-learn's `alpha_W` (**C**: 1e-2).
        sparsity: `semi_nmf` and `dictionary`: price of a unit of code, as a share of the mean length of the rows
            (**X**); 0 for semi-NMF as published.
        dictionary: for `dictionary`: an object with `encode` and `decode` (a sparse autoencoder) instead of learning.
        seed: of everything random.

    Returns:
        Factorisation: `bank` (V), `codes` (U), `encode` and `decode`.

    Raises:
        UnknownName: no such method.
        BadData: negative activations for `nmf`; `centre` with it; a `dictionary` for another method.
        OutOfRange: more concepts than rows.
        ShapeMismatch, NotFinite.

    Example:
        >>> rows = np.abs(np.random.default_rng(0).normal(size=(50, 6)))
        >>> found = factorise(rows, "nmf", 3)
        >>> found.encode(rows[:2]).shape
        (2, 3)
    """
    if method not in METHODS:
        raise unknown("factorisation", method, METHODS)
    if dictionary is not None:
        if method != "dictionary":
            raise BadData(f"a dictionary is given, but method={method!r}; use method='dictionary'.")
        return _given(rows, dictionary)
    rows = checked_rows(rows, n_concepts)
    if not 0 <= sparsity < 1:
        raise OutOfRange(f"sparsity={sparsity} is a share of the mean length of the rows: 0 or more, below 1.")
    if method == "pca" and n_concepts > rows.shape[1]:
        raise OutOfRange(f"{n_concepts} orthogonal concepts in {rows.shape[1]} dimensions: ask for fewer.")
    if method == "nmf" and (centre or rows.min() < 0):
        raise BadData(
            "nmf needs activations that are never negative, "
            + ("so centre=True is impossible." if centre else f"and the least is {rows.min():.3g}.")
            + " Use method='semi_nmf', which takes signed activations as they are."
        )
    centred = method == "pca" if centre is None else centre
    middle = rows.mean(0) if centred else np.zeros(rows.shape[1])
    shifted = rows - middle
    more: dict[str, Any] = {}
    if method == "kmeans":
        from sklearn.cluster import KMeans

        bank = KMeans(n_concepts, n_init=3, max_iter=iterations, random_state=seed).fit(shifted).cluster_centers_
    elif method == "pca":
        _, _, right = np.linalg.svd(shifted, full_matrices=False)
        bank = right[:n_concepts]
        # A component has no sign of its own: its largest entry is made positive, so that runs can be compared.
        bank = bank * np.sign(bank[np.arange(n_concepts), np.abs(bank).argmax(1)])[:, None]
    elif method == "nmf":
        bank, more = _nmf(shifted, n_concepts, alpha, iterations, seed)
    else:
        more["price"] = price = sparsity * float(np.linalg.norm(shifted, axis=1).mean())
        if method == "dictionary":
            bank = _learned(shifted, n_concepts, price, iterations, seed)
        else:
            # With a price this is only where to begin.
            rounds = min(iterations, 50) if price else iterations
            found = semi_nmf(shifted, n_concepts, init=init, iterations=rounds, seed=seed)
            directions, losses = found.directions, found.losses
            if price:
                directions, _, losses = sparse_parts(shifted, directions, found.amounts, price, iterations=iterations)
            bank, more["losses"] = _of_length_one(directions.T)[0], losses
    empty = np.zeros((0, len(bank)))
    fitted = Factorisation(method=method, bank=bank, codes=empty, centre=middle, **more)
    return _with_codes(fitted, rows)


def _with_codes(fitted: Factorisation, rows: np.ndarray) -> Factorisation:
    return replace(fitted, codes=fitted.encode(rows))


def _of_length_one(bank: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Concepts of length one, and their lengths; one that is all zero stays so."""
    lengths = np.linalg.norm(bank, axis=1)
    lengths[lengths == 0] = 1.0
    return bank / lengths[:, None], lengths


def _nmf(rows: np.ndarray, k: int, alpha: float, iterations: int, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
    import warnings

    from sklearn.decomposition import NMF
    from sklearn.exceptions import ConvergenceWarning

    init = "nndsvda" if k <= min(rows.shape) else "random"
    model = NMF(k, init=init, alpha_W=alpha, max_iter=iterations, random_state=seed)
    with warnings.catch_warnings():
        # The codes are solved for exactly afterwards; a bank that is not quite at its optimum is still a bank.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(rows)
    bank, lengths = _of_length_one(model.components_)
    # scikit-learn adds alpha * d / 2 * |W|^2 to half the squared error; a longer concept has a shorter code.
    return bank, {"penalty": alpha * rows.shape[1] / lengths**2}


def _learned(rows: np.ndarray, k: int, alpha: float, iterations: int, seed: int) -> np.ndarray:
    import warnings

    from sklearn.decomposition import MiniBatchDictionaryLearning
    from sklearn.exceptions import ConvergenceWarning

    model = MiniBatchDictionaryLearning(
        k, alpha=alpha, max_iter=iterations, fit_algorithm="cd", positive_code=True, random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(rows)
    return _of_length_one(model.components_)[0]


def _given(rows: np.ndarray, dictionary: Any) -> Factorisation:
    """A dictionary that somebody else trained; its decoder must be affine, as decoders of autoencoders are."""
    rows = checked_rows(rows, 1)
    codes = _numbers(dictionary.encode(_tensor(rows)))
    k = codes.shape[1]
    middle = _numbers(dictionary.decode(_tensor(np.zeros((1, k)))))[0]
    bank = _numbers(dictionary.decode(_tensor(np.eye(k)))) - middle
    if middle.shape[0] != rows.shape[1]:
        raise ShapeMismatch(f"the dictionary decodes to {middle.shape[0]} numbers, the rows have {rows.shape[1]}.")
    whole = _numbers(dictionary.decode(_tensor(codes)))
    if not np.allclose(whole, codes @ bank + middle, atol=1e-3 * (1 + np.abs(whole).max())):
        raise BadData(
            "the dictionary's decoder is not affine: concepts would not be directions. Use one whose decode(z) is "
            "z W + b."
        )
    return Factorisation(method="dictionary", bank=bank, codes=codes, centre=middle, coder=dictionary)


def _tensor(rows: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(rows, np.float32))


def _numbers(values: Any) -> np.ndarray:
    return values.detach().cpu().double().numpy() if hasattr(values, "detach") else np.asarray(values, np.float64)
