"""Images as they come from clients, to pixels. Pillow decodes; nothing here trusts the file."""

from __future__ import annotations

import io
import warnings

import numpy as np
import numpy.typing as npt

from llmlb.bus.errors import InvalidRequest

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
MAX_PIXELS = 64 * 1024 * 1024


def decode_image(data: bytes, *, param: str = "messages") -> npt.NDArray[np.uint8]:
    """RGB pixels, shape (height, width, 3), of the first frame; transparency lies on white.

    Raises InvalidRequest for anything that is not a whole PNG, JPEG, WebP or GIF of at most MAX_PIXELS.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise InvalidRequest(f"the image has more than {MAX_PIXELS} pixels", param=param)
                image.seek(0)
                turned = ImageOps.exif_transpose(image)
                if turned.mode in ("RGBA", "LA", "PA") or "transparency" in turned.info:
                    alpha = turned.convert("RGBA")
                    turned = Image.new("RGB", alpha.size, "white")
                    turned.paste(alpha, mask=alpha)
                return np.asarray(turned.convert("RGB"), dtype=np.uint8)
    except UnidentifiedImageError:
        raise InvalidRequest("the image is not a PNG, JPEG, WebP or GIF file", param=param) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InvalidRequest(f"the image has more than {MAX_PIXELS} pixels", param=param) from None
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, MemoryError) as error:
        raise InvalidRequest(f"the image can't be read: {str(error)[:100]}", param=param) from error
