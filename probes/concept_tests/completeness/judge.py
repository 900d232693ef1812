"""Decoders trained on one set of images and judged on another: what each row of a completeness study is made of."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechvis import stats
from mechvis.errors import BadData
from probes.concept_tests.completeness.decoder import Decoder, fit_decoder
from probes.concept_tests.completeness.located import Located
from probes.concept_tests.completeness.scores import concept_scores

LEAST_GAP = 0.02
"""Below this difference between the model and the best constant there is nothing to be complete about."""
RESAMPLES = 500


class Judge:
    """Trains decoders on one set of images and judges them on the other."""

    def __init__(self, train: Located, test: Located, threshold: float, normalise: bool, settings: Decoder):
        self.train, self.test, self.settings = train, test, settings
        self.of_scores = {"threshold": threshold, "normalise": normalise}
        self.known: dict[str, tuple[float, float, np.ndarray]] = {}

    def of(self, against: str) -> tuple[float, float, np.ndarray]:
        """Accuracy of the model, of the best constant, and where the constant is right."""
        if against not in self.known:
            wanted = self.test.wanted(against)
            whole = float((self.test.answers == wanted).double().mean())
            constant = (wanted == torch.bincount(wanted).argmax()).cpu().numpy().astype(np.float64)
            if whole - constant.mean() < LEAST_GAP:
                raise BadData(
                    f"the model's accuracy {whole:.3f} is hardly above that of the best constant answer "
                    f"({constant.mean():.3f}, against={against!r}): completeness would divide by nothing. Use test "
                    "images of several classes."
                )
            self.known[against] = whole, float(constant.mean()), constant
        return self.known[against]

    def whole(self, against: str) -> float:
        return self.of(against)[0]

    def constant(self, against: str) -> float:
        return self.of(against)[1]

    def fit(
        self, vectors: Tensor, against: str, settings: Decoder, seed: int, *, start: nn.Module | None = None, mask=None
    ) -> tuple[nn.Module, Float[np.ndarray, " image"]]:
        """A decoder, and where its answers are right; with a mask, of some of the concepts only."""
        self.of(against)
        g = fit_decoder(
            self._scores(self.train, vectors, mask), self.train, self.train.wanted(against), settings, seed=seed,
            start=start,
        )  # fmt: skip
        return g, self.right(g, vectors, against, mask)

    @torch.no_grad()
    def right(self, g: nn.Module, vectors: Tensor, against: str, mask=None) -> Float[np.ndarray, " image"]:
        """Where the answers from a decoder are right."""
        answers = self.test.answered(g(self._scores(self.test, vectors, mask)))
        return (answers == self.test.wanted(against)).cpu().numpy().astype(np.float64)

    def _scores(self, data: Located, vectors: Tensor, mask: np.ndarray | None) -> Tensor:
        if mask is None:
            return concept_scores(data.z, vectors, **self.of_scores)
        # Scores with these concepts only, in their places: so a decoder of all concepts can go on from there.
        part = concept_scores(data.z, vectors[torch.from_numpy(mask)], **self.of_scores)
        whole = part.new_zeros(*part.shape[:2], len(vectors))
        whole[:, :, torch.from_numpy(mask)] = part
        return whole

    def untouched(self, against: str) -> Float[np.ndarray, " image"]:
        answers = self.test.answered(self.test.z)
        return (answers == self.test.wanted(against)).cpu().numpy().astype(np.float64)

    def row(self, which: str, kind: str, against: str, right: Float[np.ndarray, "fit image"], seed: int) -> dict:
        whole, _, constant = self.of(against)
        wanted = self.test.wanted(against)
        model = (self.test.answers == wanted).cpu().numpy().astype(np.float64)

        def eta(correct: np.ndarray, full: np.ndarray, base: np.ndarray) -> float:
            gap = full.mean() - base.mean()
            return float((correct.mean() - base.mean()) / gap) if gap > 0 else float("nan")

        value, low, high = stats.interval_of(eta, right.mean(0), model, constant, seed=seed, resamples=RESAMPLES)
        gap = whole - constant.mean()
        chance = 1 / self.n_classes
        return {
            "set": which,
            "decoder": kind,
            "against": against,
            "eta": value,
            "low": low,
            "high": high,
            "spread": float((right.mean(1) / gap).std(ddof=1)) if len(right) > 1 else None,
            "eta_random_answer": float((right.mean() - chance) / (whole - chance)),
            "accuracy": float(right.mean()),
            "n": right.shape[1],
        }

    @property
    def n_classes(self) -> int:
        with torch.no_grad():
            return self.test.tail(self.test.z[:1], torch.zeros(1, dtype=torch.long)).shape[1]

    def by_class(self, right: Float[np.ndarray, " image"], against: str) -> Float[np.ndarray, " class"]:
        """eta split by the wanted answer: each class's part of the numerator; the parts sum to eta."""
        whole, base, constant = self.of(against)
        wanted = self.test.wanted(against).cpu().numpy()
        gained = np.bincount(wanted, right - constant, minlength=self.n_classes) / len(right)
        return gained / (whole - base)
