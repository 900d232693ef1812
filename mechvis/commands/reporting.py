"""`mechvis report`: what saved results say, as a page: a report of one thing, an explorer of a whole study."""

from pathlib import Path

from mechvis.cli import say
from mechvis.commands.saved import formats_in, load_saved, readers
from mechvis.commands.words import calls, read_images, read_model


@calls("mechvis.results:Result.report", "mechvis.explorer.explore:explore", "mechvis.explorer.saved:load_things")
def report(
    folder: tuple[Path, ...],
    /,
    *,
    out: Path | None = None,
    model: str | None = None,
    images: str | None = None,
    n: int | None = None,
    title: str = "Study",
    layers: tuple[int, ...] | None = None,
    thumbnail: int = 64,
    progress: bool = True,
) -> None:
    """Write the HTML report of a saved result or study; of several, or with a model, an explorer of them all.

    Args:
        folder: what --out of another command named, or save() wrote; a folder whose sub-folders hold such things is a
            study. JSON files of cards can be named too.
        out: the HTML file; default: report.html in the folder, study.html in a study's.
        model: look at images through this model (a name that `mechvis.load` takes): pictures, predictions, attention.
        images: the images: scenes, scenes:n, scenes:n:seed, or a folder. Needs --model, and the other way round.
        n: images that are looked at, from the first on; default: all.
        title: heading of an explorer.
        layers: whose attention an explorer shows; default: all.
        thumbnail: longest side of a picture, in pixels.
        progress: show a progress bar.
    """
    from mechvis.errors import BadData

    if (model is None) != (images is None):
        raise BadData("--model and --images go together: attention and predictions need both.")
    if not folder and model is None:
        raise BadData("name a folder that holds a saved result or study (or several, for an explorer of them all).")
    one = folder[0] if len(folder) == 1 else None
    if model is None and one is not None and not one.is_file():
        from mechvis.explorer.saved import things_in

        # What has no report of its own (a circuit, cards) and what holds others (a study) goes to an explorer.
        explorable = one.is_dir() and not formats_in(one).keys() & readers().keys()
        if not explorable or not (things_in(one) or _holds_things(one)):
            say(f"report: {load_saved(one).report(one / 'report.html' if out is None else out)}")
            return
    from mechvis.explorer import explore

    if out is None:
        if one is None or one.is_file():
            raise BadData("an explorer of several things needs --out FILE.")
        out = one / "study.html"
    looked = read_images(images) if images is not None else None
    loaded = None if looked is None else read_model(model, looked)
    found = explore(
        out, *folder, model=loaded, images=looked, n=n, title=title, layers=layers, thumbnail=thumbnail,
        progress=progress,
    )  # fmt: skip
    say(f"explorer: {found}")


def _holds_things(study: Path) -> bool:
    return any(formats_in(place) for place in study.iterdir() if place.is_dir())
