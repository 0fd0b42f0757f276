"""An image is cut alike whenever it is decoded, and waits in the smaller of its two forms."""

import numpy as np
import pytest

from navit_clip.data.augmentation import View
from navit_clip.data.drawn import DrawnImage, DrawnSize
from navit_clip.data.images import EncodedImage
from navit_clip.data.patches import cut_grid
from navit_clip.errors import SampleError
from tests.data_builders import encode_image, noise_picture, solid_picture

PATCH = 8
GRID = (4, 5)


def drawn(data: bytes, kept: list[int] | None = None) -> DrawnImage:
    numbers = np.arange(20) if kept is None else np.array(kept)
    view = View(scale=1.0, top=0.0, left=0.0, mirrored=False)
    return DrawnImage(EncodedImage(data), DrawnSize(20, view, GRID, 0.0), numbers, PATCH)


def written(image: DrawnImage) -> tuple[np.ndarray, np.ndarray]:
    pixels = np.zeros((len(image), image.patch_dim), np.uint8)
    image.write(pixels)
    return pixels, image.position


@pytest.mark.parametrize("kept", [None, [0, 3, 19]], ids=["all", "some"])
@pytest.mark.parametrize("format", ["jpg", "png"])
def test_it_is_written_as_it_is_cut(format, kept):
    data = encode_image(noise_picture(40, 50), format)
    image = drawn(data, kept)
    expected = cut_grid(EncodedImage(data).decode((32, 40)), PATCH, GRID, kept and np.array(kept))
    for _ in range(2):  # encoded, then held
        pixels, position = written(image)
        np.testing.assert_array_equal(pixels, expected.pixels)
        np.testing.assert_array_equal(position, expected.position)
        image.hold(pixels)
        pixels[:] = 0


@pytest.mark.parametrize("decoded", [False, True])
def test_a_thinned_one_has_some_of_its_patches(decoded):
    image = drawn(encode_image(noise_picture(40, 50)), kept=[1, 2, 5, 7, 11, 18])
    pixels, position = written(image)
    if decoded:
        image.hold(pixels)
    thin_pixels, thin_position = written(image.thinned(4, np.random.default_rng(0)))
    some = [position.tolist().index(place) for place in thin_position.tolist()]
    assert some == sorted(some)
    assert len(some) == 4 < len(image)
    np.testing.assert_array_equal(thin_pixels, pixels[some])


@pytest.mark.parametrize(
    ("data", "num_bytes"),
    [
        (encode_image(solid_picture(400, 500), "jpg"), None),
        (encode_image(noise_picture(400, 500), "jpg"), 20 * PATCH**2 * 3),
        (encode_image(solid_picture(400, 500)), 20 * PATCH**2 * 3),  # Pillow holds its pixels
    ],
    ids=["small file", "large file", "small file of many pixels"],
)
def test_it_waits_in_the_smaller_form(data, num_bytes):
    early, late = drawn(data), drawn(data)
    early.hold_less()
    assert early.num_bytes == (num_bytes or len(data)) <= 20 * PATCH**2 * 3
    np.testing.assert_array_equal(written(early)[0], written(late)[0])


def test_a_bad_one_says_why_and_holds_nothing_of_it():
    image = drawn(encode_image(noise_picture(40, 50), "jpg")[:-200])
    written(image)
    assert image.fault is not None
    assert image.fault.cause == "undecodable image"
    assert image.fault.__traceback__ is image.fault.__cause__ is image.fault.__context__ is None
    large = drawn(encode_image(noise_picture(400, 500), "jpg")[:-2000])
    with pytest.raises(SampleError, match="undecodable image"):
        large.hold_less()
