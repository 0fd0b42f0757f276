"""Every kind of picture comes out as upright RGB bytes; everything else as one SampleError."""

import contextlib
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from navit_clip.data.images import EncodedImage, decode_image
from navit_clip.errors import SampleError
from tests.data_builders import encode_image, noise_picture, solid_picture, striped_picture
from tests.hostile import jpeg_of_scans, sequential_jpeg_of_scans


def cause(data: bytes, **options) -> str:
    with pytest.raises(SampleError) as caught:
        decode_image(data, **options)
    return caught.value.cause


def png_header(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    parts = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("format", ["png", "bmp", "tif", "gif"])
def test_lossless_formats_come_back_as_they_were(format):
    picture = striped_picture(13, 29)
    np.testing.assert_array_equal(decode_image(encode_image(picture, format)), picture)


@pytest.mark.parametrize("format", ["jpg", "webp"])
def test_lossy_formats_come_back_nearly(format):
    picture = solid_picture(13, 29)
    decoded = decode_image(encode_image(picture, format, quality=95)).astype(int)
    assert decoded.shape == picture.shape
    assert np.abs(decoded - picture).max() <= 3


def test_gray_and_bilevel_become_rgb():
    gray = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    decoded = decode_image(encode_image(gray))
    np.testing.assert_array_equal(decoded, np.repeat(np.asarray(gray)[:, :, None], 3, axis=2))
    assert set(np.unique(decode_image(encode_image(gray.convert("1"))))) == {0, 255}


def test_sixteen_bits_are_scaled_and_not_clipped():
    values = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
    for format in ("png", "tif"):
        decoded = decode_image(encode_image(Image.fromarray(values), format))
        np.testing.assert_array_equal(decoded[:, :, 0], values >> 8)


def test_cmyk_jpeg_becomes_rgb():
    image = Image.fromarray(solid_picture(16, 16, (10, 200, 30))).convert("CMYK")
    decoded = decode_image(encode_image(image, "jpg", quality=95)).astype(int)
    assert np.abs(decoded - (10, 200, 30)).max() <= 4


@pytest.mark.parametrize("format", ["png", "webp", "tif"])
def test_alpha_is_laid_on_white(format):
    pixels = np.zeros((1, 3, 4), dtype=np.uint8)
    pixels[0, :, 3] = (0, 128, 255)
    options = {"lossless": True, "exact": True} if format == "webp" else {}
    decoded = decode_image(encode_image(Image.fromarray(pixels), format, **options))
    np.testing.assert_array_equal(decoded[0, :, 0], [255, 127, 0])


@pytest.mark.parametrize("transparency", [0, bytes([0, 255])])
def test_transparent_palette_entries_are_white(transparency):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    decoded = decode_image(encode_image(image, transparency=transparency))
    np.testing.assert_array_equal(decoded, [[[255, 255, 255], [40, 50, 60]]])


def test_the_colour_key_of_an_rgb_png_is_white():
    image = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8))
    decoded = decode_image(encode_image(image, transparency=(1, 2, 3)))
    np.testing.assert_array_equal(decoded, [[[255, 255, 255], [4, 5, 6]]])


@pytest.mark.parametrize("format", ["gif", "png", "webp"])
def test_an_animation_is_its_first_frame(format):
    frames = [Image.fromarray(solid_picture(8, 8, color)) for color in [(250, 0, 0), (0, 250, 0)]]
    options = {"lossless": True} if format == "webp" else {}
    data = encode_image(frames[0], format, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(decode_image(data)[0, 0], [250, 0, 0])


UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation):
    stored = noise_picture(5, 9)
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = EncodedImage(encode_image(stored, "png", exif=exif))
    upright = UPRIGHT[orientation](stored)
    assert (encoded.height, encoded.width) == upright.shape[:2]
    np.testing.assert_array_equal(encoded.decode(), upright)


@pytest.mark.parametrize(
    "before",
    [b"\xff", b"\xff\xfe\x00\x06\xff\xda12", b"\xff\xed\x13\x88" + 2499 * b"\xff\xda"],
    ids=["a padded marker", "a comment", "a thumbnail"],
)
def test_an_orientation_is_found_behind_what_looks_like_pixels(before):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = encode_image(noise_picture(16, 32), "jpg", exif=exif)
    image = EncodedImage(stored[:2] + before + stored[2:])
    assert (image.height, image.width) == (32, 16)
    np.testing.assert_array_equal(image.decode(), decode_image(stored))


@pytest.mark.parametrize("at_least", [(0, 0), (40, 40)])
def test_an_orientation_in_xmp_is_undone(at_least):
    xmp = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
        b"</rdf:RDF></x:xmpmeta>"
    )
    stored = Image.fromarray(noise_picture(40, 60))
    upright = decode_image(encode_image(stored, "jpg"))
    encoded = EncodedImage(encode_image(stored, "jpg", xmp=xmp))
    assert (encoded.height, encoded.width) == (60, 40)
    np.testing.assert_array_equal(encoded.decode(at_least), UPRIGHT[6](upright))


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(
    ("at_least", "size"),
    [((0, 0), (400, 800)), ((150, 300), (400, 800)), ((100, 200), (200, 400)), ((50, 10), (100, 200)),
     ((10, 200), (200, 400)), ((1, 1), (50, 100))],
)  # fmt: skip
def test_a_jpeg_is_decoded_at_the_smallest_scale_with_twice_what_is_wanted(orientation, at_least, size):
    stored = solid_picture(400, 800) if orientation == 1 else solid_picture(800, 400)
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = EncodedImage(encode_image(stored, "jpg", exif=exif))
    assert (encoded.height, encoded.width) == (400, 800)
    assert encoded.decode(at_least).shape == (*size, 3)


@pytest.mark.parametrize("size", [(37, 61), (64, 64), (203, 311)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("orientation", [None, 1, *range(2, 9), 99])
def test_a_jpeg_at_its_full_size_is_what_pillow_makes_of_it(size, mode, orientation):
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    data = encode_image(Image.fromarray(noise_picture(*size)).convert(mode), "jpg", exif=exif)
    np.testing.assert_array_equal(EncodedImage(data).decode((60, 60)), decode_image(data))


def test_a_cmyk_jpeg_is_pillows_at_any_size():
    data = encode_image(Image.fromarray(noise_picture(100, 100)).convert("CMYK"), "jpg")
    np.testing.assert_array_equal(EncodedImage(data).decode((10, 10)), decode_image(data))


@pytest.mark.parametrize("at_least", [(0, 0), (4, 4), (40, 40)])
def test_a_damaged_jpeg_is_judged_alike_on_both_paths(at_least):
    """What Pillow takes in spite of its damage is taken, what it refuses is refused, at any wanted size."""
    whole = encode_image(noise_picture(96, 96), "jpg")
    scan = whole.index(b"\xff\xda") + 100
    flipped = whole[:scan] + bytes([whole[scan] ^ 0x55]) + whole[scan + 1 :]
    assert EncodedImage(flipped).decode(at_least).ndim == 3
    with pytest.raises(SampleError, match="undecodable image"):
        EncodedImage(whole[: len(whole) // 2]).decode(at_least)


def test_other_formats_ignore_what_is_wanted():
    assert EncodedImage(encode_image(solid_picture(64, 64))).decode((2, 2)).shape == (64, 64, 3)


@pytest.mark.parametrize("format", ["png", "jpg", "webp", "gif", "bmp", "tif"])
def test_a_file_cut_short_is_undecodable(format):
    data = encode_image(noise_picture(40, 40), format)
    for share in (0.0, 0.02, 0.5, 0.8):
        assert cause(data[: int(share * len(data))]) == "undecodable image"


@pytest.mark.parametrize("data", [b"", b"text called jpg", b"%!PS-Adobe-3.0 EPSF-3.0", bytes(1000)])
def test_what_is_no_image_is_undecodable(data):
    assert cause(data) == "undecodable image"


def test_a_decompression_bomb_is_refused_before_it_is_decoded():
    assert cause(png_header(50_000, 50_000)) == "too many pixels"
    assert cause(png_header(13_400, 13_300)) == "too many pixels"


def test_a_header_that_asks_for_too_much_memory_is_undecodable():
    """Pillow raises MemoryError for a row so long, which is within the limit on pixels."""
    with pytest.raises(SampleError, match="undecodable image: MemoryError"):
        decode_image(png_header(100_000_000, 1))


WITHOUT_ROOM = """
import resource, sys
from pathlib import Path
from navit_clip.data.images import EncodedImage
from navit_clip.errors import SampleError

pages = int(Path("/proc/self/statm").read_text().split()[0])
room = pages * resource.getpagesize() + 20_000_000
resource.setrlimit(resource.RLIMIT_AS, (room, resource.RLIM_INFINITY))
for path in sys.argv[1:]:
    for at_least in (0, 0), (3000, 3000):
        try:
            print(EncodedImage(Path(path).read_bytes()).decode(at_least).shape)
        except SampleError as error:
            print(error)
"""
"""In a process of its own, which has no memory free that it does not have to ask for."""


def test_an_image_without_room_for_it_is_undecodable_on_both_paths(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    for name, exif in {"plain.jpg": Image.Exif(), "turned.jpg": turned}.items():
        (tmp_path / name).write_bytes(encode_image(Image.new("L", (4000, 4000)), "jpg", exif=exif))
    script = [sys.executable, "-c", WITHOUT_ROOM, tmp_path / "plain.jpg", tmp_path / "turned.jpg"]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.stdout.splitlines() == 4 * ["undecodable image: MemoryError: "], done.stderr


def test_a_bomb_in_a_text_chunk_is_undecodable():
    bomb = b"comment\0\0" + zlib.compress(bytes(200_000_000))
    assert cause(png_header(1, 1, (b"zTXt", bomb))) == "undecodable image"


@pytest.mark.parametrize("before", [b"", b"\xff"], ids=["plain", "a padded marker"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_progressive_jpeg_of_many_scans_is_refused_before_it_is_decoded(orientation, before):
    """It is on both paths, of which the one with EXIF, or unusual segments, is Pillow's."""
    exif = Image.Exif()
    if orientation != 1:
        exif[0x0112] = orientation
    whole = encode_image(noise_picture(32, 32), "jpg", progressive=True, exif=exif)
    whole = whole[:2] + before + whole[2:]
    scan = whole[whole.rindex(b"\xff\xda") : -2]
    own = whole.count(b"\xff\xda")
    assert own == 10
    np.testing.assert_array_equal(EncodedImage(whole).decode((32, 32)), decode_image(whole))
    with pytest.raises(SampleError, match="too many scans: a JPEG of more than 32"):
        EncodedImage(jpeg_of_scans(whole, scan, 33 - own))
    EncodedImage(jpeg_of_scans(whole, scan, 32 - own))


def test_a_sequential_jpeg_of_many_scans_is_refused_before_it_is_decoded():
    whole = encode_image(noise_picture(32, 32), "jpg")
    with pytest.raises(SampleError, match="too many scans"):
        EncodedImage(sequential_jpeg_of_scans(whole, 33))
    EncodedImage(sequential_jpeg_of_scans(whole, 3))


def test_what_only_looks_like_scans_is_not_counted():
    """In a comment, and behind the end, where telephones put films."""
    whole = encode_image(noise_picture(32, 32), "jpg", progressive=True, comment=100 * b"\xff\xda")
    np.testing.assert_array_equal(decode_image(whole + 100 * b"\xff\xda\x00\x02"), decode_image(whole))


@pytest.mark.parametrize("format", ["png", "jpg"])
def test_the_limit_on_pixels_is_the_callers(format):
    data = encode_image(solid_picture(10, 11), format)
    assert decode_image(data, max_pixels=110).shape == (10, 11, 3)
    assert cause(data, max_pixels=109) == "too many pixels"


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5000), (5000, 1)])
def test_thin_images_are_images(height, width):
    assert decode_image(encode_image(solid_picture(height, width))).shape == (height, width, 3)


@given(st.sampled_from(["png", "jpg", "gif", "webp", "tif", "bmp"]), st.data())
def test_damaged_bytes_decode_or_are_a_sample_error(format, data):
    encoded = bytearray(encode_image(noise_picture(12, 12), format))
    for _ in range(data.draw(st.integers(1, 8))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    for at_least in ((0, 0), (3, 3)):
        with contextlib.suppress(SampleError):
            assert EncodedImage(bytes(encoded), max_pixels=10**6).decode(at_least).ndim == 3


def test_what_is_wrong_with_bad_bytes_is_said_alike_in_every_run():
    with pytest.raises(SampleError) as caught:
        decode_image(b"no image")
    assert caught.value.detail == "UnidentifiedImageError: cannot identify image file it"
