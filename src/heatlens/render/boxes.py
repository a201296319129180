"""Boxes over a film: thin frames with a dark rim, and labels that keep clear of one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Rgb = NDArray[np.uint8]
Colour = tuple[int, int, int]
Area = tuple[int, int, int, int]

FOUND: Colour = (255, 176, 0)
ANNOTATED: Colour = (64, 200, 255)
DARK: Colour = (0, 0, 0)

_LINE = 512
_TEXT = 56
"""pixels of the picture's longer side per pixel of a line's width, and of a label's height"""
_SMALLEST_TEXT = 10
_MOST_TEXT = 1 / 8
"""share of the picture's shorter side that a label may hide"""
_ROOMY = 12
_LONGEST_TEXT = 200
_CUT = "..."


@dataclass(frozen=True, slots=True)
class Frame:
    """A box to draw: half-open ``xyxy`` in the picture's pixels, its colour, and its label: ``text``, which is cut
    where there is no room, then ``figure``, which is not."""

    xyxy: tuple[float, float, float, float]
    colour: Colour
    text: str = ""
    figure: str = ""


def draw_frames(picture: Rgb, frames: Sequence[Frame]) -> Rgb:
    """A copy of the film (h, w) or (h, w, 3) with ``frames`` over it, uint8 RGB (h, w, 3). The first ones lie on top,
    and choose first where their labels go. A label that the picture has no room for is left out."""
    drawn: Rgb = picture.copy() if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)
    height, width = drawn.shape[:2]
    thin = max(1, round(max(width, height) / _LINE))
    places = [_pixels(frame, (width, height)) for frame in frames]
    for frame, place in reversed(list(zip(frames, places, strict=True))):
        _outline(drawn, place, thin, frame.colour)
    taken: list[Area] = []
    for frame, place in zip(frames, places, strict=True):
        if label := _label(frame, (width, height)):
            area = _free_place(label.size, place, taken, (width, height), gap=2 * thin)
            taken.append(area)
            drawn[area[1] : area[3], area[0] : area[2]] = np.asarray(label)
    return drawn


def _pixels(frame: Frame, size: tuple[int, int]) -> Area:
    """First and last pixel that the box touches, inside the picture."""
    left, top, right, bottom = frame.xyxy
    x, y = (min(max(int(np.floor(one)), 0), most - 1) for one, most in zip((left, top), size, strict=True))
    to_x, to_y = (int(np.ceil(one)) - 1 for one in (right, bottom))
    return x, y, min(max(to_x, x), size[0] - 1), min(max(to_y, y), size[1] - 1)


def _outline(drawn: Rgb, place: Area, thin: int, colour: Colour) -> None:
    """The frame's outermost pixels are the box's own; the dark rim lies within, if the box has room for it."""
    x, y, to_x, to_y = place
    roomy = min(to_x - x, to_y - y) >= _ROOMY * thin
    for inset, width, shade in ((thin, 1 if roomy else 0, DARK), (0, thin, colour)):
        for step in range(inset, inset + width):
            if to_x - step >= x + step and to_y - step >= y + step:
                cv2.rectangle(drawn, (x + step, y + step), (to_x - step, to_y - step), shade, 1)


def _label(frame: Frame, size: tuple[int, int]) -> Image.Image | None:
    """The label as a picture: dark letters on the box's colour. None without a text, or without room for the figure."""
    height = max(_SMALLEST_TEXT, round(max(size) / _TEXT))
    font = _font(height)
    room = size[0] - 4
    text = _one_line(frame.text)[:_LONGEST_TEXT]
    words = " ".join(part for part in (text, frame.figure) if part)
    while words and font.getlength(words) > room:
        text = text[:-1].rstrip()
        words = f"{text}{_CUT} {frame.figure}".strip() if text else frame.figure
        if not text and font.getlength(words) > room:
            return None
    ascent, descent = font.getmetrics()
    if not words or ascent + descent + 2 > min(size) * _MOST_TEXT:
        return None
    label = Image.new("RGB", (round(font.getlength(words)) + 4, ascent + descent + 2), frame.colour)
    ImageDraw.Draw(label).text((2, 1), words, fill=DARK, font=font)
    return label


def _one_line(text: str) -> str:
    return " ".join(text.split())


@lru_cache(maxsize=8)
def _font(height: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(height)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _free_place(label: tuple[int, int], place: Area, taken: Sequence[Area], size: tuple[int, int], *, gap: int) -> Area:
    """Where the label goes: above the box, below, inside at its top or its bottom, beside it, then
    anywhere above or below; the first of them that lies in the picture and on no other label, else the first of all,
    moved into the picture."""
    x, y, to_x, to_y = place
    wide, high = label
    left = min(max(x, 0), size[0] - wide)
    corners = [
        (left, y - high),
        (left, to_y + 1),
        (left + min(gap, size[0] - wide - left), y + gap),
        (left + min(gap, size[0] - wide - left), to_y + 1 - gap - high),
        (to_x + 1, y),
        (x - wide, y),
        *((left, row) for row in range(0, size[1] - high + 1, high)),
    ]
    areas = [(column, row, column + wide, row + high) for column, row in corners]
    for area in areas:
        inside = area[0] >= 0 and area[1] >= 0 and area[2] <= size[0] and area[3] <= size[1]
        if inside and not any(_overlap(area, other) for other in taken):
            return area
    row = min(max(y - high, 0), size[1] - high)
    return left, row, left + wide, row + high


def _overlap(one: Area, other: Area) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
