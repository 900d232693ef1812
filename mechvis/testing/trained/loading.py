"""Open the planted models that come with the package."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mechvis.errors import StoreCorrupt, unknown
from mechvis.testing.trained.certificate import Subject, certify
from mechvis.testing.trained.families import PairFamily, family, family_names
from mechvis.testing.trained.placement import Placement
from mechvis.testing.trained.task import PlantedTask
from mechvis.testing.trained.tasks import task_of

WEIGHTS = Path(__file__).with_name("weights")
TWIN = "-twin"


@dataclass(frozen=True, kw_only=True, eq=False)
class PlantedModel:
    """A trained model with a planted program, or its twin without one."""

    name: str
    """`colour-if-shape-0`, `colour-if-shape-0-twin`."""
    model: Any = field(repr=False)
    """The wrapped model (`HookedViT`)."""
    task: PlantedTask = field(repr=False)
    """Images and program."""
    placement: Placement = field(repr=False)
    """Where the program is planted. In a twin nothing is: this is the placement of its sibling."""
    certificate: dict[str, Any] = field(repr=False)
    """Figures, gates and training as they were measured when the model was built."""
    planted: bool
    """False: trained on behaviour alone."""

    @property
    def families(self) -> tuple[str, ...]:
        """Names of the pair families."""
        return family_names(self.task)

    def family(self, name: str, n: int = 256, *, seed: int = 0) -> PairFamily:
        """Draw pairs of one family, with the truth about them. A twin has the truth of its sibling: a method that
        finds it in a twin finds what is not there.

        Args:
            name: one of :attr:`families`.
            n: number of pairs.
            seed: of the images. Certificates use 20,000 and up; training used none that a seed below a billion gives.

        Raises:
            UnknownName: no such family.
            BadData: `n` below one.

        Example:
            >>> load("same-different").family("left", 8).truth.nodes["L1MLP"]      # doctest: +SKIP
            'active'
        """
        return family(self.task, self.placement, name, n, seed=seed)

    @property
    def subject(self) -> Subject:
        """What :func:`certify` takes."""
        return Subject(parts=self.model.parts, task=self.task, placement=self.placement)

    def certify(self, **settings: Any) -> dict[str, Any]:
        """Measure the certificate again; arguments as for :func:`mechvis.testing.trained.certificate.certify`."""
        return certify(self.subject, **settings)


def planted_models() -> tuple[str, ...]:
    """Names of the bundled planted models, twins included.

    Example:
        >>> "colour-if-shape-0" in planted_models()
        True
    """
    return tuple(sorted(folder.name for folder in WEIGHTS.iterdir() if (folder / "model.safetensors").exists()))


def folder_of(task: str, seed: int = 0, *, twin: bool = False) -> Path:
    """The Hugging Face folder of a bundled planted model: `mechvis.load` and plain transformers open it.

    Raises:
        UnknownName: no such task, or no such seed.
    """
    name = f"{task_of(task).name}-{seed}{TWIN if twin else ''}"
    if name not in planted_models():
        raise unknown("planted model", name, planted_models())
    return WEIGHTS / name


def load(task: str, seed: int = 0, *, twin: bool = False, folder: Path | str | None = None) -> PlantedModel:
    """Open a planted model.

    Args:
        task: `colour-if-shape` or `same-different`.
        seed: which of its models.
        twin: the model of the same task and seed that was trained on behaviour alone.
        folder: a folder that the build wrote, instead of a bundled model.

    Returns:
        Model, images, truth and certificate.

    Raises:
        UnknownName: no such task or seed.
        StoreCorrupt: the folder lacks its truth or certificate, or they belong to another task.

    Example:
        >>> planted = load("colour-if-shape")                                      # doctest: +SKIP
        >>> pairs = planted.family("colour")                                       # doctest: +SKIP
        >>> planted.model.run(pairs.clean).logits.shape                            # doctest: +SKIP
        torch.Size([256, 3])
    """
    import mechvis

    found = task_of(task)
    folder = folder_of(task, seed, twin=twin) if folder is None else Path(folder)
    truth, certificate = (_read(folder / f"{name}.json") for name in ("truth", "certificate"))
    placement = Placement.of_json(truth["placement"])
    if placement.task != found.name:
        raise StoreCorrupt(f"{folder} holds the task {placement.task!r}, not {found.name!r}.")
    return PlantedModel(
        name=folder.name,
        model=mechvis.load(str(folder)),
        task=found,
        placement=placement,
        certificate=certificate,
        planted=truth["planted"],
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreCorrupt(
            f"{path} cannot be read ({error}). Build the model again, or take another folder."
        ) from error
