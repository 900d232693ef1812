"""One image file, or its bytes, to an array; every way it can fail is a :class:`CorruptImage` that names the file.

The same rules hold for image folders and Hugging Face data sets:

1. the EXIF orientation is applied, so that height and width are those that a viewer shows;
2. images become RGB, 8 bits per channel; transparency is ignored, 16-bit grey keeps its upper byte, the first frame
   of an animation counts;
3. in a mask every value but zero is the object (palette masks: every index but 0); transparency is ignored;
4. images of more than `PIL.Image.MAX_IMAGE_PIXELS` pixels are refused before they are decoded: a few kilobytes can
   unpack to many gigabytes. Raise that number if your images are meant to be so large.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, UInt8

from mechvis.errors import CorruptImage, MechvisError

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

MASK_TYPES = frozenset([".png", ".bmp", ".gif", ".tif", ".tiff", ".pgm", ".pbm"])
"""Endings that are taken for masks: formats without loss, because compression noise is not zero."""

IMAGE_TYPES = MASK_TYPES | {".jpg", ".jpeg", ".webp", ".ppm", ".pnm"}
"""Endings that are taken for images, whatever their case."""

_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)


def probe(source: Path | bytes, *, name: str, thorough: bool = False) -> tuple[int, int]:
    """Height and width of an image after its orientation, and a check that the file is whole.

    Args:
        source: the file, or its content.
        name: what the error calls it.
        thorough: decode every pixel; otherwise only headers and checksums are verified, which misses some
            truncated JPEG files (reading them later gives the same error).

    Raises:
        CorruptImage: the file cannot be decoded or is too large.
    """
    with _opened(source, name) as image:
        width, height = image.size
        # the EXIF block of a PNG may follow its pixels, and asking for it would decode them
        known = image.format != "PNG" or "exif" in image.info
        turned = known and image.getexif().get(_ORIENTATION) in _TURNED
        if thorough:
            image.load()
        else:
            image.verify()
    return (width, height) if turned else (height, width)


def read_image(source: Path | bytes, *, name: str) -> UInt8[np.ndarray, "height width channel"]:
    """An image as RGB.

    Raises:
        CorruptImage: the file cannot be decoded or is too large.
    """
    from PIL import ImageOps

    with _opened(source, name) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):
            grey = (np.array(image) >> 8).astype(np.uint8)
            return np.stack([grey] * 3, axis=-1)
        if image.mode in ("I", "F"):
            raise CorruptImage(f"{name} holds 32-bit values without a fixed range: convert it to 8 bits per channel.")
        if "transparency" in image.info:  # PIL warns about palettes with transparency unless they pass through RGBA
            image = image.convert("RGBA")
        return np.array(image.convert("RGB"))


def read_mask(source: Path | bytes, *, name: str) -> Bool[np.ndarray, "height width"]:
    """A mask: True where the value is not zero.

    Raises:
        CorruptImage: the file cannot be decoded or is too large.
    """
    from PIL import ImageOps

    with _opened(source, name) as image:
        image = ImageOps.exif_transpose(image)
        values = np.array(image)
        if image.mode in ("LA", "PA", "RGBA"):
            values = values[..., :-1]
    return values.astype(bool) if values.ndim == 2 else values.any(-1)


@contextmanager
def _opened(source: Path | bytes, name: str) -> Iterator["PILImage"]:
    from PIL import Image

    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as image:
            pixels, cap = image.width * image.height, Image.MAX_IMAGE_PIXELS
            if cap is not None and pixels > cap:
                raise CorruptImage(_too_large(name, f"{image.width} x {image.height} pixels", cap))
            yield image
    except (MechvisError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise CorruptImage(_too_large(name, "far more pixels", Image.MAX_IMAGE_PIXELS)) from error
    except FileNotFoundError as error:
        raise CorruptImage(f"{name} does not exist (any more).") from error
    except PermissionError as error:
        raise CorruptImage(f"{name} may not be read: permission denied.") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error, ...
        unidentified = isinstance(error, Image.UnidentifiedImageError)
        reason = "not an image file" if unidentified else str(error) or type(error).__name__
        raise CorruptImage(f"{name} cannot be decoded: {reason}.") from error


def _too_large(name: str, seen: str, cap: int | None) -> str:
    return (
        f"{name} has {seen}, more than the cap of {cap} that guards against decompression bombs. If it is meant to "
        "be so large, set PIL.Image.MAX_IMAGE_PIXELS."
    )
