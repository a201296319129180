"""A picture cut anywhere is refused, never read with a grey rest; whole ones are read with any tail."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from heatlens.errors import ItemError
from heatlens.images.decode import read_film

from .pictures import grey_picture

GREY = grey_picture(90, 110)
COLOUR = np.dstack([GREY, GREY[::-1], GREY])


@pytest.mark.parametrize(
    ("pixels", "kind", "options"),
    [
        (GREY, "JPEG", {}),
        (GREY, "JPEG", {"progressive": True}),
        (COLOUR, "JPEG", {"progressive": True, "quality": 98}),
        (GREY, "JPEG", {"restart_marker_rows": 1}),
        (COLOUR, "JPEG", {"optimize": True, "quality": 100, "subsampling": 0}),
        (GREY, "PNG", {}),
        (COLOUR, "PNG", {"compress_level": 0}),
    ],
    ids=["grey", "progressive", "colour", "restarts", "optimised", "png", "stored png"],
)
def test_sixty_cuts(tmp_path, pixels, kind, options):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    whole, path = stream.getvalue(), tmp_path / "film"
    for cut in np.linspace(1, len(whole) - 1, 60).astype(int):
        path.write_bytes(whole[:cut])
        with pytest.raises(ItemError):
            read_film(path)
    path.write_bytes(whole)
    film = read_film(path)
    path.write_bytes(whole + bytes(37) + b"junk")
    assert np.array_equal(read_film(path).pixels, film.pixels)
