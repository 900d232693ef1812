"""The explorer: a whole study in one HTML file, with its images to look into.

* `explore`: write results, circuits, latents, maps and cards, and the attention of a model on images, as one file that
  works from disk. `write` does the same with a `Study`.
* `panels`: the plain values that an explorer is made of; an object with `explorer_panels()` brings its own.
* `look`: images as a model sees them: pictures, predictions, attention.

How it stays quick, and what cannot happen: `page.py` and `content.py`.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "explore": "mechvis.explorer.explore",
        "write": "mechvis.explorer.explore",
        "Study": "mechvis.explorer.explore",
        "Explorer": "mechvis.explorer.page",
        "Explorable": "mechvis.explorer.panels",
        "look": "mechvis.explorer.look",
    },
    modules=("panels",),
)

if TYPE_CHECKING:  # for editors and type checkers
    from mechvis.explorer import panels
    from mechvis.explorer.explore import Study, explore, write
    from mechvis.explorer.look import look
    from mechvis.explorer.page import Explorer
    from mechvis.explorer.panels import Explorable
