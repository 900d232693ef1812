"""All metrics of a list for the same maps, each question to the model asked once."""

from collections.abc import Callable, Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

from mechvis.errors import BadData
from mechvis.faithfulness.answers import Answers, answers_of
from mechvis.faithfulness.metric import GameMetric, MaskGame, Measured, Metric
from mechvis.faithfulness.presets import preset


def measure(
    maps: Float[Tensor, "image patch"],
    games: Callable[[str], MaskGame] | Mapping[str, MaskGame],
    metrics: str | Sequence[Metric] = "standard-v1",
    *,
    masks: Tensor | None = None,
) -> dict[str, Measured]:
    """Every metric of a list.

    Args:
        maps: larger is more relevant.
        games: from the name of an operator to a game of these images with it: a dictionary, or a function (called once
            for each operator). Games that are an `Answers` keep what was asked, for other maps of the same images.
        metrics: a list, or the name of a preset.
        masks: where the object is, `[image height width]`; for metrics that need it.

    Returns:
        `title_of(metric)` -> what it found, in the order of the list.

    Raises:
        BadData: two metrics with the same settings, a game with another operator than it is given for, a metric that
            needs masks without masks, or one that must ask a method again.

    Example:
        >>> games = lambda name: Game(model=model, pixels=pixels, target=target, operator=name)    # doctest: +SKIP
        >>> measure(maps, games, "smoke-v1")["abpc/mean/steps=8"].estimate()                       # doctest: +SKIP
    """
    chosen = preset(metrics) if isinstance(metrics, str) else list(metrics)
    titles = titles_of(chosen)
    asked: dict[str, Answers] = {}

    def game(name: str) -> Answers:
        if name not in asked:
            if isinstance(games, Mapping) and name not in games:
                raise BadData(f"there is no game for the operator {name!r}; games: {', '.join(games) or 'none'}.")
            asked[name] = answers_of(games[name] if isinstance(games, Mapping) else games(name))
            if asked[name].operator not in (None, name):
                raise BadData(f"the game for {name!r} takes patches away by {asked[name].operator!r}.")
        return asked[name]

    found = {}
    for title, one in zip(titles, chosen, strict=True):
        if isinstance(one, GameMetric):
            found[title] = one.measure(maps, game(one.operator))
        elif one.NEEDS == "masks":
            if masks is None:
                raise BadData(f"{one.NAME} compares maps with masks of the object; give masks=.")
            grid = next(iter(asked.values())).grid if asked else game("mean").grid
            found[title] = one.measure(maps, masks, grid)
        elif one.NEEDS == "maps":
            found[title] = one.measure(maps)
        else:
            raise BadData(f"{one.NAME} asks the method again; call its measure(explain, ...) itself.")
    return found


def titles_of(metrics: Sequence[Metric]) -> list[str]:
    """Short names, different for each metric of a list: name/operator/form, and a setting that tells two apart.

    Raises:
        BadData: the same metric twice.

    Example:
        >>> from mechvis.faithfulness import Abpc
        >>> titles_of([Abpc(), Abpc(form="prob"), Abpc(normalise=True)])
        ['abpc/mean', 'abpc/mean/prob', 'abpc/mean/normalise=True']
    """
    found: list[str] = []
    for one in metrics:
        settings = one.settings()
        parts = [one.NAME, settings.pop("operator", None), settings.pop("form", None)]
        plain = type(one)().settings()
        parts += [f"{name}={value}" for name, value in settings.items() if value != plain[name]]
        title = "/".join(part for part in parts if part)
        if title in found:
            raise BadData(f"{title} is in the list twice.")
        found.append(title)
    return found
