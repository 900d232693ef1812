"""A circuit as a picture, and as JSON for other viewers."""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "draw": "circuits.drawing.figure",
        "save": "circuits.drawing.figure",
        "attention_pictures": "circuits.drawing.attention",
        "as_json": "circuits.drawing.export",
        "export_json": "circuits.drawing.export",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from circuits.drawing.attention import attention_pictures
    from circuits.drawing.export import as_json, export_json
    from circuits.drawing.figure import draw, save
