from __future__ import annotations

import numpy as np
import pytest

from eval.views import View
from navit_clip.errors import ConfigError, SampleError
from tests.data_builders import encode_image, noise_picture

PICTURE = noise_picture(44, 84)


def test_the_whole_picture():
    assert np.array_equal(View().open(encode_image(PICTURE)), PICTURE)


def test_a_border_then_the_middle():
    seen = View(border=2, center=0.75).open(encode_image(PICTURE))
    # 40 x 80 are inside the border; 30 x 60 of them lie in the middle.
    assert np.array_equal(seen, PICTURE[7:37, 12:72])


def test_no_picture_inside_the_border():
    with pytest.raises(SampleError, match="too few pixels: 84 x 4 is no more than the border"):
        View(border=2).open(encode_image(PICTURE[:4]))


@pytest.mark.parametrize(("settings", "name"), [({"border": -1}, "border"), ({"center": 0.0}, "center")])
def test_settings_that_leave_nothing(settings, name):
    with pytest.raises(ConfigError, match=f"^{name}: expected"):
        View(**settings)
