"""The result of a CIGMA study: everything that was measured, saved, reloaded, applied, reported."""

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from circuits.information import Fill, three_views
from circuits.outcome import Outcome
from circuits.prune import prune
from mechvis import files
from mechvis.axes import Mask
from mechvis.data.images import ImageSet
from mechvis.errors import ResultMismatch, StoreCorrupt, UnknownName
from mechvis.results import Result
from mechvis.units import Unit, units_of

FORMAT = "mechvis.cigma"
FORMAT_VERSION = 1
MANIFEST = "study.json"

EXAMPLES = 12
"""Evaluation images shown in the report."""

LOWER_IS_BETTER = ("BIR", "NLL", "BIG", "mean ratio", "calibration error", "context only")
"""Measures of the controls of which less is better."""

_FRAMES = ("curve", "evaluation", "controls", "images")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Study:
    """A finished CIGMA study."""

    scores: Result
    """Scores of every head on the selection images; the first metric is the one that ranks. Of a certified study a head
    has them on the images that it was measured on, NaN elsewhere, and further columns say what was decided on it."""
    true_positives: Result | None
    """The same on the correctly classified images alone, as in the paper; None if fewer than two."""
    ranking: tuple[str, ...]
    """All heads, best first; of a certified study the top ones, then the others by what little was measured."""
    recommended: tuple[str, ...]
    """Heads whose guarded score is reliably above zero (its interval, and corrected for the number of heads), in the
    order of removal."""
    chosen: tuple[str, ...]
    """Heads that the study removes (possibly none)."""
    curve: pl.DataFrame
    """Validation images: one row per number K of removed heads."""
    evaluation: pl.DataFrame
    """Evaluation images: `measure before after change low high n`, paired 95 % intervals."""
    controls: pl.DataFrame
    """Evaluation images: one row per way to choose heads; `random` rows are the control."""
    images: pl.DataFrame
    """Evaluation images, one row each: answers and gains before and after."""
    masks: dict[str, Any]
    """Where masks come from, self-check, agreement with given masks."""
    stability: dict[str, float] = field(default_factory=dict)
    """Rank correlation of scores under another fill and other temperatures."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Parameters of the study."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Model, data, versions, seeds, command, time."""
    examples: dict[str, np.ndarray] = field(default_factory=dict)
    """Pictures for the report: `pictures` uint8 `[view image height width channel]`, `masks` bool, and answers."""

    def measure(self, name: str) -> dict[str, Any]:
        """One row of the evaluation, e.g. `study.measure("BIR")["after"]`.

        Raises:
            UnknownName: no such measure.
        """
        found = self.evaluation.filter(pl.col("measure") == name)
        if found.is_empty():
            raise UnknownName(f"no measure {name!r}; there are: {', '.join(self.evaluation['measure'])}.")
        return found.row(0, named=True)

    def against_random(self, measure: str = "BIR") -> dict[str, float]:
        """The chosen heads beside random ones: `observed`, `low`, `high` (95 % of draws), `draws`, `different`, `p`.

        `p` is the share of the different sets that were drawn (the chosen one included) that are at least as good:
        lower for BIR and other costs, higher for accuracies. A small model has few sets, and p cannot be small there.

        Raises:
            UnknownName: nothing (or everything) was removed, so there is no control; or no such measure.
        """
        measures = self.controls.columns[2:]
        if measure not in measures:
            raise UnknownName(f"no measure {measure!r}; there are: {', '.join(measures)}.")
        random = self.controls.filter(pl.col("selection") == "random")
        drawn = random[measure].to_numpy()
        if not len(drawn):
            raise UnknownName("there is no random control: nothing was removed, or every head.")
        observed = float(self.controls.filter(pl.col("selection") == "CIGMA")[measure][0])
        once = random.unique("heads", maintain_order=True)[measure].to_numpy()
        # Undefined counts as good: it must not make the chosen heads look better.
        worse = (once > observed) if measure in LOWER_IS_BETTER else (once < observed)
        low, high = np.nanquantile(drawn, [0.025, 0.975]) if np.isfinite(drawn).any() else (np.nan, np.nan)
        return {
            "observed": observed,
            "low": float(low),
            "high": float(high),
            "draws": float(len(drawn)),
            "different": float(len(once)),
            "p": float((1 + (~worse).sum()) / (1 + len(once))),
        }

    @property
    def certificate(self) -> dict[str, Any] | None:
        """Of a certified study: the guarantee, whether it holds (`certified`), rounds and evaluations, as in
        `mechvis.certified_top`; else None. `mechvis.certified.certificate(study.scores)` says it in words."""
        return self.scores.provenance.get("certificate")

    @property
    def has_control(self) -> bool:
        """Is there a random control? Not if nothing was removed, or every head."""
        return "random" in self.controls["selection"].to_list()

    def units(self, model: Any) -> list[Unit]:
        """The chosen heads as units of `model`."""
        by_name = {unit.name: unit for unit in units_of(model, "heads")}
        unknown = [name for name in self.chosen if name not in by_name]
        if unknown:
            raise ResultMismatch(f"the model has no head {unknown[0]}: this study is of another architecture.")
        return [by_name[name] for name in self.chosen]

    def apply(self, model: Any, *, any_model: bool = False) -> Any:
        """A copy of the model with the chosen heads removed for good (`W_O` columns zeroed); `model` stays as it is.

        Args:
            model: the model of the study.
            any_model: accept another model of the same shape.

        Raises:
            ResultMismatch: the study is of another model.
        """
        known = self.provenance.get("model", {}).get("fingerprint")
        if not any_model and known != model.fingerprint:
            raise ResultMismatch(
                f"this study is of the model {known}, the given one is {model.fingerprint}: its heads may do something "
                "else. Pass any_model=True if you know that they fit."
            )
        return prune(model, self.units(model))

    def save(self, folder: str | Path) -> Path:
        """Write the study into a folder (Parquet, safetensors, JSON with checksums)."""
        from safetensors.numpy import save

        folder = files.ensure_writable(folder)
        self.scores.save(folder / "scores")
        if self.true_positives is not None:
            self.true_positives.save(folder / "scores_true_positives")
        content = {f"{name}.parquet": files.parquet_bytes(getattr(self, name)) for name in _FRAMES}
        content["examples.safetensors"] = save({k: np.ascontiguousarray(v) for k, v in self.examples.items()})
        manifest = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "ranking": self.ranking,
            "recommended": self.recommended,
            "chosen": self.chosen,
            "masks": self.masks,
            "stability": self.stability,
            "settings": self.settings,
            "provenance": self.provenance,
            "true_positives": self.true_positives is not None,
        }
        files.write_together(folder, content, MANIFEST, manifest)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "Study":
        """Read a study written by :meth:`save`.

        Raises:
            StoreCorrupt: a file is missing, damaged or of another format; names it.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        folder = Path(folder)

        def check(manifest: dict) -> None:
            if manifest.get("format") != FORMAT or manifest.get("version", 0) > FORMAT_VERSION:
                raise StoreCorrupt(
                    f"{folder} holds {manifest.get('format')!r} version {manifest.get('version')}, "
                    f"this reader knows {FORMAT!r} up to version {FORMAT_VERSION}."
                )

        manifest = files.read_manifest(folder, MANIFEST, check)
        frames = {}
        for name in _FRAMES:
            data = files.read_together(folder, manifest, f"{name}.parquet")
            try:
                frames[name] = pl.read_parquet(io.BytesIO(data))
            except pl.exceptions.PolarsError as error:
                raise StoreCorrupt(f"{folder / name}.parquet cannot be read: {error}") from error
        try:
            examples = load(files.read_together(folder, manifest, "examples.safetensors"))
        except SafetensorError as error:
            raise StoreCorrupt(f"{folder / 'examples.safetensors'} cannot be read: {error}") from error
        positives = Result.load(folder / "scores_true_positives") if manifest["true_positives"] else None
        return cls(
            scores=Result.load(folder / "scores"),
            true_positives=positives,
            examples=examples,
            **frames,
            **{key: tuple(manifest[key]) for key in ("ranking", "recommended", "chosen")},
            **{key: manifest[key] for key in ("masks", "stability", "settings", "provenance")},
        )

    def report(self, path: str | Path) -> Path:
        """Write one self-contained HTML file."""
        from circuits.cigma_report import report_study

        return report_study(self, path)

    def summary(self) -> str:
        """What was found, in a few lines of text."""
        from circuits.cigma_words import summary

        return summary(self)

    def __repr__(self) -> str:
        return self.summary()


def load_study(folder: str | Path) -> Study:
    """Read a study folder; see :meth:`Study.load`."""
    return Study.load(folder)


def example_pictures(
    model: Any, images: ImageSet, masks: Mask, fill: Fill, before: Outcome, after: Outcome, count: int = EXAMPLES
) -> dict[str, np.ndarray]:
    """Some evaluation images with their edited versions, those whose answer changes first.

    Returns:
        `pictures` uint8 `[view image height width channel]`, `masks` bool `[image height width]`, `index`, `before` and
        `after` (1 = classified as labelled) `[image]`.
    """
    changed = np.flatnonzero(before.correct != after.correct)
    same = np.flatnonzero(before.correct == after.correct)
    # Half changed, half unchanged: only the changed ones would flatter or frighten.
    index = np.sort(np.concatenate([changed[: count - count // 2], same])[:count])
    chosen = images[index]
    pixels = chosen.pixels_for(model.preprocess)
    views = three_views(pixels, masks[torch.as_tensor(index)].cpu(), fill)
    colours = model.preprocess.unnormalise(views.flatten(0, 1)).unflatten(0, views.shape[:2])
    channels = colours.shape[2]
    if channels != 3:  # shown as grey, or by the first three channels
        colours = colours[:, :, :3] if channels > 3 else colours.mean(2, keepdim=True).expand(-1, -1, 3, -1, -1)
    pictures = (colours * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2).numpy()
    return {
        "pictures": pictures,
        "masks": masks[torch.as_tensor(index)].cpu().numpy(),
        "index": index.astype(np.int64),
        "before": before.correct[index],
        "after": after.correct[index],
    }
