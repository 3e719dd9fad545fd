"""Pictures of detections and of panoptic maps.

Images are uint8 RGB arrays (H, W, 3). Boxes are (n, 4): x0, y0, x1, y1 in pixels, where pixel i spans [i, i + 1).
"""

import math
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from ..errors import UserError

# Okabe and Ito's colours without black, told apart with every common form of colour blindness:
# yellow, vermilion, sky blue, bluish green, reddish purple, orange, blue.
PALETTE = np.uint8([(240, 228, 66), (213, 94, 0), (86, 180, 233), (0, 158, 115), (204, 121, 167), (230, 159, 0), (0, 114, 178)])
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
MIN_CAPITAL = 9  # px, height of the capitals in small images
MIN_LEGIBLE_CAPITAL = 5  # px, a tag that fits the image only below this is left out
PALE = 0.6  # share of white in the colour of stuff
TINT = 0.5  # share of its colour in the pixels of a mask
TAGGED = 0.12  # share of an image that tags may cover


def draw_detections(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[int],
    scores: Sequence[float] | None = None,
    names: Mapping[int, str] | None = None,
    masks: np.ndarray | None = None,
) -> np.ndarray:
    """Return a copy of `image` with a coloured frame and a tag ("circle 0.93") for each box, and its mask in the same colour.

    Lines and letters grow with the image. The surest boxes get their tags first, and a box goes without where they leave no room
    for its own, or have used up their share of the image.

    Args:
        image: (H, W, 3).
        boxes: (n, 4). Parts outside the image are cut off; boxes that miss the image or are not numbers are skipped.
        labels: n category ids; each picks a colour of `PALETTE`, cycling.
        scores: n confidences, shown in the tags, the surest box on top. None for annotations.
        names: the names of category ids; an id without one is shown itself, an empty name leaves the score alone.
        masks: (n, H, W) bool.
    """
    height, width = image.shape[:2]
    thickness, capital = line_width(width, height), _capital(width, height)
    canvas, colours = image.copy(), PALETTE[np.asarray(labels, dtype=int) % len(PALETTE)]
    visible = pixel_boxes(boxes, width, height)
    order = sorted(visible, key=lambda i: 0 if scores is None else float(scores[i]))
    for i in order if masks is not None else ():
        _draw_mask(canvas, masks[i], colours[i], thickness)
    for i in order:
        draw_frame(canvas, visible[i], colours[i], thickness)

    places: list[tuple] = []
    left = TAGGED * width * height
    for i in reversed(order):
        name = str((names or {}).get(int(labels[i]), int(labels[i])))
        text = name if scores is None else f"{name} {scores[i]:.2f}"
        tag = _tag(text, colours[i], capital, width, height)
        place = _tag_place(visible[i], tag.shape[1], tag.shape[0], width, height, places) if tag is not None else None
        if place is None:
            continue
        left -= tag.shape[0] * tag.shape[1]
        if places and left < 0:  # the surest has its tag in the smallest image
            break
        places.append(place)
        x0, y0, x1, y1 = place
        canvas[y0:y1, x0:x1] = tag
    return canvas


def draw_panoptic(
    image: np.ndarray,
    ids: np.ndarray,
    segments: Sequence[Mapping[str, int]],
    names: Mapping[int, str] | None = None,
    stuff: Collection[int] = (),
) -> np.ndarray:
    """Return a copy of `image` whose segments are tinted, things in the colours of their boxes and stuff in pale ones, with white
    lines between them and the names in their middles.

    Args:
        image: (H, W, 3).
        ids: (H, W) the id of each pixel's segment; pixels of no segment stay as they are.
        segments: `id` and `category_id` of each.
        names: the names of category ids; an id without one is shown itself.
        stuff: categories that are not things.
    """
    height, width = image.shape[:2]
    canvas, tags = image.astype(np.float32), []
    for segment in segments:
        category, mask = segment["category_id"], np.pad(ids == segment["id"], 1)
        if not mask.any():
            continue
        colour = PALETTE[category % len(PALETTE)]
        if category in stuff:
            colour = (PALE * 255 + (1 - PALE) * colour).round().astype(np.uint8)
        inside = mask[1:-1, 1:-1]
        canvas[inside] += TINT * (colour - canvas[inside])
        depth = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
        middle = np.unravel_index(depth.argmax(), depth.shape)
        tag = _tag(str((names or {}).get(category, category)), colour, _capital(width, height), width, height)
        if tag is not None:
            tags.append((middle, tag))
    borders = np.zeros((height, width), dtype=np.uint8)
    borders[1:] |= ids[1:] != ids[:-1]
    borders[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    borders = cv2.dilate(borders, np.ones((max(1, round(math.sqrt(height * width) / 250)),) * 2, dtype=np.uint8))
    canvas[borders > 0] = 255
    canvas = canvas.round().astype(np.uint8)
    for (row, column), tag in tags:
        y, x = (min(max(c - n // 2, 0), end - n) for c, n, end in zip((row, column), tag.shape, (height, width)))
        canvas[y : y + tag.shape[0], x : x + tag.shape[1]] = tag
    return canvas


def save_image(path: str | os.PathLike, image: np.ndarray) -> None:
    """Write an RGB image in the format of the file name's extension. Raises `UserError` where that fails."""
    path = Path(path)
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"Cannot write the image {path}: name a file in a folder that exists and is writable.")
    if not cv2.haveImageWriter(str(path)) or not cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR)):
        raise UserError(f"Cannot write the image {path}: end its name with .png or .jpg and check the free space.")


def line_width(width: int, height: int) -> int:
    """Pixels of a line in an image."""
    return max(1, round(math.sqrt(height * width) / 160))


def _capital(width: int, height: int) -> int:
    """Pixels of a capital's height in an image."""
    return max(MIN_CAPITAL, round(math.sqrt(height * width) / 55))


def pixel_boxes(boxes: np.ndarray, width: int, height: int) -> dict[int, tuple[int, int, int, int]]:
    """Return the boxes that meet the image, by index, rounded to at least one of its pixels; NaN meets nothing."""
    visible = {}
    for i, (x0, y0, x1, y1) in enumerate(np.asarray(boxes, dtype=float).reshape(-1, 4).tolist()):
        if x0 <= x1 and y0 <= y1 and x0 < width and y0 < height and x1 > 0 and y1 > 0:
            left, top = min(round(max(x0, 0)), width - 1), min(round(max(y0, 0)), height - 1)
            right, bottom = max(round(min(x1, width)), left + 1), max(round(min(y1, height)), top + 1)
            visible[i] = left, top, right, bottom
    return visible


def draw_frame(canvas: np.ndarray, box: tuple, colour: Sequence[int], thickness: int) -> None:
    """Colour the outermost pixels of a box, in place. A small box gets a thinner frame, so that it stays open."""
    x0, y0, x1, y1 = box
    t = max(1, min(thickness, (min(x1 - x0, y1 - y0) - 1) // 2))
    for side in ((y0, y0 + t, x0, x1), (y1 - t, y1, x0, x1), (y0, y1, x0, x0 + t), (y0, y1, x1 - t, x1)):
        canvas[side[0] : side[1], side[2] : side[3]] = colour


def _draw_mask(canvas: np.ndarray, mask: np.ndarray, colour: np.ndarray, thickness: int) -> None:
    """Tint the pixels of a mask and draw its outline, in place."""
    canvas[mask] = ((1 - TINT) * canvas[mask] + TINT * colour).round().astype(np.uint8)
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, outlines, -1, colour.tolist(), thickness)


def text_ink(text: str, capital: int) -> np.ndarray:
    """Return the ink (2 * capital, w) uint8 of a line of text with capitals about `capital` pixels high.

    The width is measured on the ink, as OpenCV 4 and 5 come with different fonts; it is 0 for blank text.
    """
    text = " ".join(text.split())
    scale = capital / 21  # at scale 1 the capitals are 21 pixels high
    font, thickness = cv2.FONT_HERSHEY_SIMPLEX, max(1, round(1.5 * scale))
    width = cv2.getTextSize(text, font, scale, thickness)[0][0] + 4 * capital
    ink = np.zeros((2 * capital, width), dtype=np.uint8)
    cv2.putText(ink, text, (capital, round(1.5 * capital)), font, scale, 255, thickness, cv2.LINE_AA)
    inked = np.flatnonzero(ink.any(axis=0))
    return ink[:, inked[0] : inked[-1] + 1] if inked.size else ink[:, :0]


def _tag(text: str, colour: np.ndarray, capital: int, max_width: int, max_height: int) -> np.ndarray | None:
    """Return text on a ground of this colour, shrunk to fit; None if it is blank or too small to be read."""
    ink, margin = text_ink(text, capital), capital // 2
    shrink = min(1, max_width / (ink.shape[1] + 2 * margin), max_height / ink.shape[0])
    if not ink.size or shrink * capital < MIN_LEGIBLE_CAPITAL:
        return None
    ink = np.pad(ink, ((0, 0), (margin, margin)))
    ink = cv2.resize(ink, (int(shrink * ink.shape[1]), int(shrink * ink.shape[0])), interpolation=cv2.INTER_AREA)
    share = ink[..., None] / 255
    letters = BLACK if colour @ (0.299, 0.587, 0.114) > 100 else WHITE
    return (share * letters + (1 - share) * colour).round().astype(np.uint8)


def _tag_place(box: tuple, w: int, h: int, width: int, height: int, taken: Sequence[tuple]) -> tuple | None:
    """Return x0, y0, x1, y1 of a tag (h, w) at an edge of its box, inside the image, over no other tag; None without room."""
    # Where the image ends, the nearest place inside it. The first that is free, from above the box on, is taken.
    xs = [min(max(x, 0), width - w) for x in (box[0], box[2] - w)]
    ys = [min(max(y, 0), height - h) for y in (box[1] - h, box[1], box[3], box[3] - h)]
    places = ((x, y, x + w, y + h) for y in ys for x in xs)
    return next((a for a in places if not any(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for b in taken)), None)
