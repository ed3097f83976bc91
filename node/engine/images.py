"""Images as they come from clients, to pixels. Pillow decodes; nothing here trusts the file."""

from __future__ import annotations

import io
import struct
import warnings
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from llmlb.bus.errors import InvalidRequest

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
MAX_PIXELS = 64 * 1024 * 1024
_ORIENTATION = 0x0112
"""Source: EXIF 2.3, tag Orientation."""
_BROKEN = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, struct.error)
"""What Pillow raises for a file that is not what it says (fuzzed). OSError and SyntaxError are its own; the others
come from whatever it stumbles over."""


def decode_image(data: bytes, *, param: str = "messages") -> npt.NDArray[np.uint8]:
    """RGB pixels, shape (height, width, 3), of the first frame, upright; transparency lies on white.

    Raises InvalidRequest for anything that is not a whole PNG, JPEG, WebP or GIF of at most MAX_PIXELS.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # metadata that is broken, which nobody here reads
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise InvalidRequest(f"the image has more than {MAX_PIXELS} pixels", param=param)
                image.seek(0)
                image.load()
                return _upright(_rgb(image), _orientation(image))
    except UnidentifiedImageError:
        raise InvalidRequest("the image is not a PNG, JPEG, WebP or GIF file", param=param) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InvalidRequest(f"the image has more than {MAX_PIXELS} pixels", param=param) from None
    except (*_BROKEN, MemoryError) as error:
        raise InvalidRequest(f"the image can't be read: {str(error)[:100]}", param=param) from error


def _rgb(image: Image) -> npt.NDArray[np.uint8]:
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip instead of scaling
        grey = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, np.newaxis], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        alpha = image.convert("RGBA")
        image = Image.new("RGB", alpha.size, "white")
        image.paste(alpha, mask=alpha)
    return np.asarray(image.convert("RGB"), dtype=np.uint8)


def _orientation(image: Image) -> int:
    """How the camera was held, 1 to 8; 1 where the file does not say it readably."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except _BROKEN:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(pixels: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """Undo an EXIF orientation. Not ``ImageOps.exif_transpose``: that writes the metadata anew, and fails on some."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
