"""What the words of a command line mean: images, models, groups of patches, targets; and which belong together."""

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from mechvis.data import ImageSet

SCENES_N, SCENES_SEED, SCENES_CORRELATION = 600, 500, 0.5
"""What `scenes` means without numbers: half of the images agree with their background, half conflict, so that both
groups are measured equally well. None of the bundled models was trained, tuned or described on this seed."""

F = TypeVar("F", bound=Callable)


def calls(*functions: str) -> Callable[[F], F]:
    """Say which public functions a command hands its flags to, as `module:function`; a test holds it to that."""

    def mark(command: F) -> F:
        command.calls = functions
        return command

    return mark


def read_images(spec: str, **options: Any) -> "ImageSet":
    """The images that a word on the command line means: `scenes`, `scenes:n`, `scenes:n:seed` (half of them with the
    background that agrees with the shape), or a folder.

    Args:
        spec: the word.
        options: for folders, passed to `mechvis.data.folder`.

    Raises:
        BadData: neither a folder nor a data set.

    Example:
        >>> read_images("scenes:4:9")
        ImageSet('scenes', 4 images, 8 classes, masks, 2 groups, captions)
    """
    import mechvis
    from mechvis.errors import BadData

    name, *numbers = spec.split(":")
    if name == "scenes" and len(numbers) <= 2 and all(number.isdecimal() for number in numbers):
        n, seed = [*map(int, numbers), *(SCENES_N, SCENES_SEED)[len(numbers) :]]
        return mechvis.data.scenes(n, seed=seed, correlation=SCENES_CORRELATION)
    if not Path(spec).expanduser().is_dir():
        raise BadData(
            f"no images at {spec!r}: give a folder, or scenes[:n[:seed]], e.g. scenes:512:7. "
            "`mechvis data export scenes FOLDER` writes an example of a folder."
        )
    return mechvis.data.folder(spec, **options)


def read_model(spec: str, images: "ImageSet", *, device: str | None = None, templates: Sequence[str] = ()) -> Any:
    """The model that a word on the command line means; a CLIP model gets the images' classes as its zero-shot head.

    Raises:
        BadData: a CLIP model, and images without class names.
    """
    import mechvis
    from mechvis.errors import BadData

    loaded = mechvis.load(spec, device=device)
    if not hasattr(loaded, "classifier"):
        return loaded
    if not images.class_names:
        raise BadData(
            f"{spec} needs class names for its zero-shot head, and {images.name!r} has none: use class folders or a "
            "label column."
        )
    return loaded.classifier(images.class_names, templates) if templates else loaded.classifier(images.class_names)


def read_groups(spec: str) -> Any:
    """The groups of patches that a word on the command line means, as `mechvis.sweep(groups=...)` takes them.

    Args:
        spec: `4x4`, a grid of so many cells (down x across); `object`, object and background by the images' masks; a
            `.npy` file with masks (bool) or label maps such as superpixels (whole numbers) `[image height width]` or
            `[height width]`, in the order of the images; a `.json` file with lists of token indices, or these by name.

    Raises:
        BadData: none of these, or a file that cannot be read.

    Example:
        >>> read_groups("2x3")
        (2, 3)
    """
    import numpy as np

    from mechvis.errors import BadData

    if grid := re.fullmatch(r"(\d+)x(\d+)", spec):
        return int(grid[1]), int(grid[2])
    if spec == "object":
        return spec
    path = Path(spec).expanduser()
    if path.suffix not in (".npy", ".json"):
        raise BadData(
            f"--groups {spec}: expected a grid of cells (down x across) such as 4x4; object, for object and background "
            "by the images' masks; a .npy file with masks or label maps [image height width]; or a .json file with "
            "lists of tokens by name."
        )
    if not path.is_file():
        raise BadData(f"--groups {spec}: there is no such file.")
    try:
        if path.suffix == ".json":
            return json.loads(path.read_text("utf-8"))
        return np.load(path, allow_pickle=False)  # an array of objects is refused, and nothing in the file is run
    except (ValueError, EOFError, UnicodeDecodeError) as error:
        raise BadData(f"--groups {spec} cannot be read: {error}") from error


def read_targets(specs: Sequence[str] | None, class_names: Sequence[str] = ()) -> list | None:
    """The classes that words on the command line mean, as `mechvis.sweep(targets=...)` takes them.

    Args:
        specs: names or numbers of classes, or `target:contrast`; a name that holds a colon is taken whole where the
            model has such a class.
        class_names: those of the model.

    Raises:
        BadData: a word with several colons that can be read in several ways.

    Example:
        >>> read_targets(["star", "3", "star:circle"], ["circle", "star"])
        ['star', 3, ('star', 'circle')]
    """
    from mechvis.errors import BadData

    if specs is None:
        return None

    def one(word: str) -> str | int:
        return int(word) if word.isdecimal() and word not in class_names else word

    def known(word: str) -> bool:
        return word in class_names or word.isdecimal()

    found: list = []
    for spec in specs:
        splits = [(spec[:i], spec[i + 1 :]) for i, letter in enumerate(spec) if letter == ":"]
        pairs = [pair for pair in splits if all(map(known, pair))]
        if spec in class_names or not splits:
            found.append(one(spec))
        elif len(pairs) > 1:
            raise BadData(
                f"--targets {spec!r} can be read as {' or '.join(map(repr, pairs))}; give numbers of classes."
            )
        else:
            # A pair of which a part is no class is refused where it is used, with the nearest names.
            found.append(tuple(map(one, (pairs or splits)[0])))
    return found


def only_with(flag: str, on: bool, given: Mapping[str, Any], of: Callable) -> None:
    """Refuse settings that say something about a flag which is not there: left alone they would change nothing.

    Args:
        flag: name of the parameter that they need.
        on: is it there?
        given: the settings by name.
        of: the command, whose defaults count as not given.

    Raises:
        BadData: names the settings.
    """
    from mechvis.errors import BadData

    if on:
        return
    defaults = inspect.signature(of).parameters
    idle = [f"--{name.replace('_', '-')}" for name, value in given.items() if value != defaults[name].default]
    if idle:
        verb = "says" if len(idle) == 1 else "say"
        raise BadData(
            f"{', '.join(idle)} {verb} something about --{flag}, and that is not asked for. Add it, or leave "
            f"{'it' if len(idle) == 1 else 'them'} out."
        )
