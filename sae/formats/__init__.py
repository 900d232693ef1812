"""Other people's dictionaries: read and write the files of ten libraries, push to and pull from the Hub.

    d = sae.formats.load("downloads/clip-sae")                      # the format is told from the files
    sae.formats.save(d, "exports/for-saelens", format="saelens")    # read back and compared before it returns
    sae.formats.push(d, "me/my-sae");  sae.formats.pull("me/my-sae")

What is loaded means what it means in its library: which rows are scaled, whether `b_dec` is taken off, which rule finds
codes. What a format cannot say is refused with the reason. Pickles are read by a machine that runs nothing
(`sae.formats.pickles`). Each format is one file here, whose module text says what its files mean.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "load": "sae.formats.convert",
        "save": "sae.formats.convert",
        "convert": "sae.formats.convert",
        "Converted": "sae.formats.convert",
        "FORMATS": "sae.formats.convert",
        "unscaled": "sae.formats.scale",
        "load_pt": "sae.formats.pickles",
        "require_tokens": "sae.formats.positions",
        "push": "sae.formats.hub",
        "pull": "sae.formats.hub",
        "card": "sae.formats.hub",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from sae.formats.convert import FORMATS, Converted, convert, load, save
    from sae.formats.hub import card, pull, push
    from sae.formats.pickles import load_pt
    from sae.formats.positions import require_tokens
    from sae.formats.scale import unscaled
