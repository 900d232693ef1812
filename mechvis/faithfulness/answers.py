"""What a game answers, each mask asked once: several metrics and several forms of the score share forward passes.

Deletion, insertion and ABPC use the same masks; a logit and a probability come from the same forward pass. So answers
are kept by (image, mask): logit, probability, log-probability, difference to the contrast, and which class was largest.
A game that knows no classes (a plain function of masks) has one score, `None`.

Values do not depend on what was asked before: a mask that was asked in another batch has the same answer up to
rounding.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechvis.errors import BadData, ShapeMismatch
from mechvis.faithfulness.metric import MaskGame

_FORMS = ("logit", "prob", "logprob")


class Answers:
    """A game with a memory.

    Args:
        game: a :class:`mechvis.removal.Game`, or anything with `scores`, `n_patches` and `grid`.

    Example:
        >>> answers = Answers(game)                                             # doctest: +SKIP
        >>> deletion(maps, answers), insertion(maps, answers)                   # doctest: +SKIP
    """

    def __init__(self, game: MaskGame):
        self.game = game
        self.n_patches: int = game.n_patches
        self.grid: tuple[int, int] = game.grid
        self.seed: int = getattr(game, "seed", 0)
        self._known: dict[tuple[int, bytes], int] = {}  # where its answer is in the table
        self.operator: str | None = getattr(getattr(game, "operator", None), "NAME", None)
        target = getattr(game, "target", None)
        self._classes = target is not None and hasattr(game, "outputs")
        self.own: str | None = target.form if self._classes else None
        contrast = self._classes and target.contrast is not None
        self.columns: tuple[str | None, ...] = (None,)
        if self._classes:
            self.columns = (*_FORMS, *(("logit_diff",) if contrast else ()), "predicted", "class")
        self._table = torch.empty(0, len(self.columns), dtype=torch.float64)

    def ids(self, n_images: int) -> list[int]:
        """Which example each image is: what random draws belong to."""
        given = getattr(self.game, "ids", None)
        if given is None:
            return list(range(n_images))
        if len(given) != n_images:
            raise ShapeMismatch(f"{n_images} maps for the {len(given)} images of the game.")
        return [int(one) for one in given]

    def scores(self, masks: Tensor, form: str | None = None) -> Float[Tensor, "image row"]:
        """Scores (float64) of each image under each mask; 1 keeps a patch.

        Args:
            masks: `[image row patch]`.
            form: which form of the score; None: what the game reads.

        Raises:
            BadData: the game knows no such form.
        """
        form = self.own if form is None else form
        return self._answers(masks)[..., self._column(form)]

    def predicted(self, masks: Tensor) -> Int[Tensor, "image row"]:
        """The class with the largest logit."""
        return self._answers(masks)[..., self._column("predicted")].long()

    def right(self, masks: Tensor) -> Float[Tensor, "image row"]:
        """1 where the explained class has the largest logit, else 0."""
        answers = self._answers(masks)
        return (answers[..., self._column("predicted")] == answers[..., self._column("class")]).double()

    def full(self, n_images: int, form: str | None = None) -> Float[Tensor, " image"]:
        """Scores with every patch kept."""
        return self.scores(torch.ones(n_images, 1, self.n_patches, dtype=torch.bool), form)[:, 0]

    def empty(self, n_images: int, form: str | None = None) -> Float[Tensor, " image"]:
        """Scores with no patch kept."""
        return self.scores(torch.zeros(n_images, 1, self.n_patches, dtype=torch.bool), form)[:, 0]

    def _column(self, name: str | None) -> int:
        if name not in self.columns:
            raise BadData(
                f"this game cannot be read as {name!r}. It has {list(self.columns)}"
                + ("; a contrast gives logit_diff." if self._classes else ": it is a plain function of masks.")
            )
        return self.columns.index(name)

    def _answers(self, masks: Tensor) -> Float[Tensor, "image row column"]:
        if masks.ndim != 3 or masks.shape[2] != self.n_patches:
            raise ShapeMismatch(f"masks are [image row patch] with {self.n_patches} patches, got {list(masks.shape)}.")
        masks = masks.to("cpu")
        keys = [_keys(image, rows) for image, rows in enumerate(masks)]
        unknown = [{key: place for place, key in enumerate(row) if key not in self._known} for row in keys]
        most = max(len(new) for new in unknown)
        if most:
            # Images with fewer new masks repeat one of theirs: a game wants equally many rows for each.
            places = [(list(new.values()) or [0]) for new in unknown]
            places = torch.tensor([new + new[:1] * (most - len(new)) for new in places])
            found = self._ask(masks.gather(1, places[..., None].expand(-1, -1, masks.shape[2])))
            for new in unknown:
                self._known.update(zip(new, range(len(self._known), len(self._known) + len(new)), strict=True))
            self._table = torch.cat([self._table, *(row[: len(new)] for row, new in zip(found, unknown, strict=True))])
        return self._table[torch.tensor([[self._known[key] for key in row] for row in keys])]

    def _ask(self, masks: Tensor) -> Float[Tensor, "image row column"]:
        if not self._classes:
            return torch.as_tensor(self.game.scores(masks)).detach().to("cpu", torch.float64)[..., None]
        outputs = self.game.outputs(masks).detach()
        n_images, n_rows, _ = outputs.shape
        flat, images = outputs.flatten(0, 1), torch.arange(n_images, device=outputs.device).repeat_interleave(n_rows)
        target: Any = self.game.target
        forms = [target.reading(form).read(flat, images) for form in self.columns[:-2]]
        forms += [flat.argmax(1), target.classes[images]]
        return torch.stack([one.to("cpu", torch.float64) for one in forms], -1).unflatten(0, (n_images, n_rows))


def answers_of(game: "MaskGame | Answers") -> Answers:
    """The game with a memory, or itself if it has one."""
    return game if isinstance(game, Answers) else Answers(game)


def _keys(image: int, rows: Tensor) -> list[tuple[int, bytes]]:
    """What each mask of an image is known by: a boolean mask and the same one in zeros and ones are one."""
    flat = np.ascontiguousarray(rows.float().numpy())
    return [(image, row) for row in flat.view(np.dtype((np.void, flat.shape[1] * 4)))[:, 0].tolist()]
