"""Samples and shards that are broken, odd or malicious, each with what is to become of it."""

from __future__ import annotations

import pickle
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from tests.data_builders import encode_image, noise_picture, solid_picture, striped_picture, write_tar

USED = "used"


class Case(NamedTuple):
    """A sample's files by extension, and the cause that it is counted under, or USED."""

    name: str
    outcome: str
    files: dict[str, bytes]


class Exploit:
    """Whatever unpickles it leaves a file behind."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def png_of(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG that claims a size, with chunks before its empty image data."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts
    )


def jpeg_of_scans(jpeg: bytes, scan: bytes, number: int) -> bytes:
    """A JPEG with `number` scans more behind its own; each takes as long to decode as the whole picture."""
    assert jpeg.endswith(b"\xff\xd9")
    return jpeg[:-2] + number * scan + jpeg[-2:]


def sequential_jpeg_of_scans(jpeg: bytes, number: int) -> bytes:
    """A JPEG of three colours with `number` scans of the first one alone, all of them empty."""
    start = jpeg.index(b"\xff\xda")
    return jpeg[:start] + number * b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + b"\xff\xd9"


def cases(mark: Path) -> list[Case]:
    """Samples for one shard, of whose code, if any runs, a file `mark` tells."""
    photo, png = encode_image(noise_picture(48, 64), "jpg"), encode_image(noise_picture(48, 64))
    text = {"txt": b"a caption"}
    exploit = pickle.dumps(Exploit(mark))
    bomb = b"comment\0\0" + zlib.compress(bytes(100_000_000))
    turned = [Image.Exif() for _ in range(8)]
    for number, exif in enumerate(turned, start=1):
        exif[0x0112] = number
    frames = [Image.fromarray(solid_picture(20, 30, color)) for color in [(255, 0, 0), (0, 255, 0)]]
    palette = Image.fromarray(striped_picture(20, 30)).convert("P")
    deep = Image.fromarray(np.arange(900, dtype=np.uint16).reshape(30, 30) * 70)
    alpha = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8))

    progressive = encode_image(noise_picture(40, 40), "jpg", progressive=True)
    last_scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    scans = {
        "progressive": jpeg_of_scans(progressive, last_scan, 100),
        "progressive-turned": jpeg_of_scans(
            encode_image(noise_picture(40, 40), "jpg", progressive=True, exif=turned[5]), last_scan, 100
        ),
        "progressive-padded": jpeg_of_scans(progressive[:2] + b"\xff" + progressive[2:], last_scan, 100),
        "sequential": sequential_jpeg_of_scans(photo, 100),
    }
    negative = b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, -9, 9, 1, 24, *[0] * 6)

    bad_images = {
        "truncated-jpeg": photo[: len(photo) // 2],
        "header-only-jpeg": photo[:200],
        "truncated-png": png[: len(png) // 2],
        "zero-bytes": b"",
        "zeros": bytes(2000),
        "text-called-jpg": b"this is a caption, and no picture at all",
        "html-error-page": b"<!doctype html><title>404</title>",
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) (w) file closefile\n",
        "pickle-called-jpg": exploit,
        "text-chunk-bomb": png_of(1, 1, (b"zTXt", bomb)),
        "no-pixels": png_of(0, 0),
        "truncated-webp": encode_image(noise_picture(40, 40), "webp")[:100],
        "truncated-gif": encode_image(noise_picture(40, 40), "gif")[:200],
        "endless-tiff": b"II*\0"
        + struct.pack("<I", 8)
        + struct.pack("<H", 1)
        + bytes(12)
        + struct.pack("<I", 8),
    }
    good_images = {
        "cmyk.jpg": encode_image(Image.fromarray(noise_picture(30, 40)).convert("CMYK"), "jpg"),
        "gray.jpg": encode_image(Image.fromarray(noise_picture(30, 40)).convert("L"), "jpg"),
        "progressive.jpg": progressive,
        "progressive-with-a-film.jpg": progressive + 100 * last_scan,
        "trailing.jpg": photo + bytes(500),
        "sixteen-bits.png": encode_image(deep),
        "sixteen-bit.tif": encode_image(deep, "tif"),
        "one-bit.png": encode_image(Image.fromarray(noise_picture(30, 40)).convert("1")),
        "palette-with-alpha.png": encode_image(palette, transparency=0),
        "alpha.webp": encode_image(alpha, "webp"),
        "animation.gif": encode_image(frames[0], "gif", save_all=True, append_images=frames[1:]),
        "animated.webp": encode_image(frames[0], "webp", save_all=True, append_images=frames[1:]),
        "one-pixel.png": encode_image(solid_picture(1, 1)),
        "wide.png": encode_image(solid_picture(1, 5000)),
        "tall.jpg": encode_image(solid_picture(5000, 1), "jpg"),
        "png-called-jpg.jpg": png,
        **{
            f"turned-{n}.jpg": encode_image(noise_picture(20, 50), "jpg", exif=e)
            for n, e in enumerate(turned, 1)
        },
    }
    captions = {
        "empty-caption": ("empty caption", b""),
        "blank-caption": ("empty caption", b" \r\n\t\n"),
        "not-utf-8": ("undecodable caption", b"caf\xe9 \xff\xfe"),
        "100-kb-caption": ("overlong caption", b"x" * 100_000),
        "nul-caption": (USED, b"a\0b"),
        "bidi-caption": (USED, "\u202eright to left\u202c \U0001f600".encode()),
    }
    return [
        *(Case(name, "undecodable image", {"jpg": data, **text}) for name, data in bad_images.items()),
        Case("png-bomb", "too many pixels", {"png": png_of(50_000, 50_000), **text}),
        Case("bmp-of-negative-size", "too many pixels", {"bmp": negative, **text}),
        *(Case(f"scans-{name}", "too many scans", {"jpg": data, **text}) for name, data in scans.items()),
        *(
            Case(name.partition(".")[0], USED, {name.partition(".")[2]: data, **text})
            for name, data in good_images.items()
        ),
        *(Case(name, outcome, {"png": png, "txt": caption}) for name, (outcome, caption) in captions.items()),
        Case("no-caption", "no caption", {"png": png}),
        Case("no-image", "no image", text),
        Case("pickles-alone", "no image", {"pyd": exploit, "pth": exploit, "pickle": exploit, **text}),
        Case("pickles-beside", USED, {"png": png, "pyd": exploit, "pth": exploit, "npy": exploit, **text}),
        Case("../../outside", USED, {"png": png, **text}),
        Case("/tmp/absolute", USED, {"png": png, **text}),
        Case("..", "no image", {"png": png, **text}),
    ]


def write_hostile(folder: Path, mark: Path) -> tuple[list[str], dict[str, int], set[str]]:
    """Writes all cases and some broken tars.

    Returns:
        The shards; how often each cause is met in an epoch; the keys that are used.
    """
    samples = [case for case in cases(mark) if case.name != ".."]
    members = [(f"{case.name}.{kind}", data) for case in samples for kind, data in case.files.items()]
    png = encode_image(noise_picture(10, 10))
    twice = [("twice.png", png), ("twice.txt", b"a"), ("between.txt", b"b"), ("twice.png", png)]
    write_tar(folder / "cases.tar", [*members, *twice, ("double.png", png), ("double.png", png)])
    causes = [case.outcome for case in samples if case.outcome != USED]
    causes += ["no image", "duplicate key", "duplicate key"]
    used = {f"cases/{case.name}" for case in samples if case.outcome == USED} | {"cases/twice"}

    write_tar(folder / "whole.tar", [("a.png", png), ("a.txt", b"a"), ("b.png", png), ("b.txt", b"b")])
    whole = (folder / "whole.tar").read_bytes()
    start = whole.index(b"b.png")
    (folder / "truncated.tar").write_bytes(whole[: start + 600])
    (folder / "whole.tar").unlink()
    used.add("truncated/a")
    (folder / "empty.tar").write_bytes(b"")
    write_tar(folder / "no-samples.tar", [])
    (folder / "compressed.tar").write_bytes(b"\x1f\x8b" + zlib.compress(whole))
    (folder / "pickle.tar").write_bytes(pickle.dumps(Exploit(mark)))
    causes += ["truncated shard", "unreadable shard", "empty shard", "unreadable shard", "unreadable shard"]
    return (
        sorted(str(path) for path in folder.glob("*.tar")),
        {cause: causes.count(cause) for cause in causes},
        used,
    )
