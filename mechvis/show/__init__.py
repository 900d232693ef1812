"""How objects show themselves in a notebook: object in, a piece of HTML out, one file per kind.

The classes call these from `_repr_html_`. What comes out is small (under 200 kB), needs nothing else, has no script, no
link and no remote address, and takes its colours from the page, so that it reads in dark and light themes. All text
from outside (class names, file names, titles) is escaped. Nothing is computed with the model, and showing never fails:
what cannot be shown richly is shown as text.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "attribution": "mechvis.show.attribution",
        "cache": "mechvis.show.cache",
        "circuit": "mechvis.show.circuit",
        "clip": "mechvis.show.model",
        "dictionary": "mechvis.show.dictionary",
        "images": "mechvis.show.images",
        "maps": "mechvis.show.maps",
        "model": "mechvis.show.model",
        "result": "mechvis.show.result",
        "run": "mechvis.show.run",
        "safely": "mechvis.show.html",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from mechvis.show.attribution import attribution
    from mechvis.show.cache import cache
    from mechvis.show.circuit import circuit
    from mechvis.show.dictionary import dictionary
    from mechvis.show.html import safely
    from mechvis.show.images import images
    from mechvis.show.maps import maps
    from mechvis.show.model import clip, model
    from mechvis.show.result import result
    from mechvis.show.run import run
