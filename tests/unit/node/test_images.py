"""Images from clients become pixels, or an InvalidRequest."""

from __future__ import annotations

import io
import random
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from llmlb.bus.errors import InvalidRequest
from llmlb.node.engine.images import MAX_PIXELS, decode_image

WIDTH, HEIGHT = 31, 20


def gradient() -> Image.Image:
    """Smooth, so that lossy formats keep it, and different in every corner."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    planes = [x * 255 // (WIDTH - 1), y * 255 // (HEIGHT - 1), 255 - x * 255 // (WIDTH - 1)]
    return Image.fromarray(np.stack(planes, axis=2).astype(np.uint8))


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a hundred bytes that says it is this large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("format", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("JPEG", {"quality": 95}, 12),
        ("JPEG", {"quality": 95, "progressive": True}, 12),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 95}, 20),
        ("GIF", {}, 60),
    ],
)
def test_each_format_gives_the_pixels(format: str, options: dict[str, Any], tolerance: int) -> None:
    pixels = decode_image(saved(gradient(), format, **options))
    assert pixels.dtype == np.uint8
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    assert pixels.flags.c_contiguous
    assert np.abs(pixels.astype(int) - np.asarray(gradient()).astype(int)).max() <= tolerance


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK"])
def test_each_kind_of_pixel_becomes_rgb(mode: str) -> None:
    image = gradient().convert(mode)
    expected = np.asarray(image.convert("RGB")).astype(int)
    pixels = decode_image(
        saved(image, "JPEG" if mode == "CMYK" else "PNG", **({"quality": 95} if mode == "CMYK" else {}))
    )
    assert np.abs(pixels.astype(int) - expected).mean() < 3


def test_grey_of_16_bits_is_scaled_not_clipped() -> None:
    wide = np.arange(WIDTH * HEIGHT, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 100
    pixels = decode_image(saved(Image.fromarray(wide), "PNG"))
    assert (pixels == (wide >> 8)[:, :, np.newaxis]).all()


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_transparent_pixels_are_white(format: str) -> None:
    image = Image.new("RGBA", (4, 2), (200, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 255, 255))
    image.putpixel((2, 0), (0, 0, 0, 128))
    pixels = decode_image(saved(image, format, **({"lossless": True} if format == "WEBP" else {})))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[0, 1].tolist() == [0, 0, 255]
    assert pixels[0, 2].tolist() == [127, 127, 127]


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_the_transparent_colour_of_a_palette_is_white(format: str) -> None:
    image = Image.new("P", (3, 1), 0)
    image.putpalette([10, 20, 30, 0, 255, 0])
    image.putpixel((1, 0), 1)
    pixels = decode_image(saved(image, format, transparency=0))
    assert pixels[0].tolist() == [[255, 255, 255], [0, 255, 0], [255, 255, 255]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_a_photo_is_turned_upright(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(gradient(), format, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        turned = ImageOps.exif_transpose(image)
        assert (decode_image(data) == np.asarray(turned.convert("RGB"))).all()


@pytest.mark.parametrize("orientation", [0, 9, 60_000])
def test_an_orientation_that_does_not_exist_is_ignored(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert decode_image(saved(gradient(), "PNG", exif=exif)).shape == (HEIGHT, WIDTH, 3)


def test_broken_metadata_does_not_spoil_an_image() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    good = exif.tobytes()
    for size in range(len(good)):
        assert sorted(decode_image(saved(gradient(), "JPEG", exif=good[:size])).shape) == sorted((HEIGHT, WIDTH, 3))


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for format, options in (("GIF", {}), ("WEBP", {"lossless": True})):
        data = saved(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert decode_image(data)[4, 4].tolist() == [255, 0, 0]


@pytest.mark.parametrize("side", [8193, 12_000, 20_000, 60_000])
def test_an_image_that_unpacks_to_too_much_is_refused_before_it_does(side: int) -> None:
    assert side * side > MAX_PIXELS
    with pytest.raises(InvalidRequest, match="more than 67108864 pixels") as caught:
        decode_image(bomb(side, side), param="messages.3.content")
    assert caught.value.param == "messages.3.content"


def test_text_chunks_that_unpack_to_too_much_are_refused() -> None:
    data = saved(gradient(), "PNG")
    text = b"a\0\0" + zlib.compress(b"x" * (80 * 1024 * 1024))
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    with pytest.raises(InvalidRequest, match="can't be read"):
        decode_image(data[:33] + chunk + data[33:])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"a plain text, which is no image",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7\n",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"\xff\xd8\xff\xe0",
        b"RIFF\x10\0\0\0WEBPVP8 ",
    ],
)
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match="the image") as caught:
        decode_image(data)
    assert caught.value.param == "messages"


@pytest.mark.parametrize("format", ["BMP", "TIFF", "PPM", "ICO", "TGA"])
def test_other_formats_that_pillow_knows_are_refused(format: str) -> None:
    with pytest.raises(InvalidRequest, match="not a PNG, JPEG, WebP or GIF"):
        decode_image(saved(gradient(), format))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_part_of_an_image_is_refused(format: str, share: float) -> None:
    data = saved(gradient(), format)
    with pytest.raises(InvalidRequest):
        decode_image(data[: int(len(data) * share)])


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF"])
def test_a_damaged_image_is_read_or_refused_and_nothing_else_happens(format: str) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    whole = saved(gradient(), format, **({} if format == "GIF" else {"exif": exif}))
    dice = random.Random(7)
    refused = 0
    for _ in range(600):
        data = bytearray(whole if dice.random() < 0.7 else whole[: dice.randrange(len(whole))])
        for _ in range(dice.choice((1, 2, 8))):
            if data:
                data[dice.randrange(min(len(data), dice.choice((60, 200, 5000))))] = dice.randrange(256)
        try:
            assert decode_image(bytes(data)).ndim == 3
        except InvalidRequest:
            refused += 1
    assert refused > 50
