"""Maps of self-information (Figure 4 of the paper), and panels of pictures beside each other.

Images and boxes are as in `drawing`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from .drawing import (
    BLACK,
    MIN_CAPITAL,
    PALETTE,
    draw_detections,
    draw_frame,
    draw_panoptic,
    line_width,
    pixel_boxes,
    text_ink,
)

SMALL = 320  # px, the height up to which an image is enlarged
MAX_ASPECT = 4  # a wide one only until it is this many times wider than that
DIMMED = 0.2  # brightness of an image where a map of bools is false


def information_map(information: np.ndarray, size: tuple[int, int], interpolation: int = cv2.INTER_CUBIC) -> np.ndarray:
    """Colour a map of self-information from its minimum, dark, to its maximum, bright, in the colour map "inferno".

    Args:
        information: (h, w), one finite value per feature pixel.
        size: (width, height) of the picture that is returned, in pixels.
        interpolation: OpenCV's flag; `cv2.INTER_NEAREST` shows the feature pixels as they are.
    """
    information = np.asarray(information, dtype=np.float64)
    unit = (information - information.min()) / (np.ptp(information) or 1)
    # Values are interpolated, not colours: mixtures of colours are not on the colour map.
    levels = np.clip(255 * cv2.resize(unit, size, interpolation=interpolation), 0, 255).round().astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)


def panel(images: Sequence[np.ndarray], captions: Sequence[str]) -> np.ndarray:
    """Return the images side by side on white, as they are, each centred vertically, its caption centred below it."""
    height, columns = max(image.shape[0] for image in images), []
    for image, caption in zip(images, captions, strict=True):
        ink = text_ink(caption, max(MIN_CAPITAL, round(height / 34)))
        text = cv2.cvtColor(255 - np.pad(ink, ((ink.shape[0] // 4, 0), (1, 1))), cv2.COLOR_GRAY2RGB)
        width = max(image.shape[1], text.shape[1])
        column = np.vstack([_pad(image, width, height), _pad(text, width, text.shape[0])])
        columns += [column, np.full((column.shape[0], max(2, height // 40), 3), 255, dtype=np.uint8)]
    return np.hstack(columns[:-1])


def detection_panel(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[int],
    scores: Sequence[float] | None = None,
    names: Mapping[int, str] | None = None,
    maps: Mapping[str, np.ndarray] | None = None,
    ground_truth: tuple[np.ndarray, Sequence[int]] | None = None,
    masks: np.ndarray | None = None,
    panoptic: Mapping[str, Any] | None = None,
) -> np.ndarray:
    """Return the panel [ground truth |] detections [| panoptic map] [| maps] of one image; several maps of bools in a row below.

    All have the image's own resolution; a small image is enlarged before anything is drawn, so that lines and letters are crisp.
    As in Figure 4 of the paper, the detections reappear on the maps in the same colours. Of bools, the image itself shows where
    they are true.

    Args:
        image, boxes, labels, scores, names, masks: as for `draw_detections`; boxes in pixels of `image`.
        maps: caption -> (h, w) numbers or bools of the feature pixels that cover the image.
        ground_truth: annotated boxes (m, 4) and their m labels.
        panoptic: `ids`, `segments` and `stuff` as for `draw_panoptic`.
    """
    canvas = _enlarged(image)
    size = canvas.shape[1], canvas.shape[0]
    thickness = line_width(*size)
    scale = np.tile(np.divide(size, (image.shape[1], image.shape[0])), 2)
    boxes = np.asarray(boxes, dtype=float).reshape(-1, 4) * scale
    pictures = {}
    if ground_truth is not None:
        true_boxes = np.asarray(ground_truth[0], dtype=float).reshape(-1, 4) * scale
        pictures["Ground truth"] = draw_detections(canvas, true_boxes, ground_truth[1], names=names)
    if masks is not None:
        masks = [cv2.resize(m.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0 for m in masks]
    pictures["Detections"] = draw_detections(canvas, boxes, labels, scores, names, masks)
    if panoptic:
        ids = cv2.resize(panoptic["ids"].astype(np.int32), size, interpolation=cv2.INTER_NEAREST)
        pictures["Panoptic segmentation"] = draw_panoptic(canvas, ids, panoptic["segments"], names, panoptic["stuff"])
    chosen = {}
    for caption, values in (maps or {}).items():
        if values.dtype == bool:
            shown = cv2.resize(values.astype(np.float32), size, interpolation=cv2.INTER_NEAREST)
            chosen[caption] = (canvas * (DIMMED + (1 - DIMMED) * shown[..., None])).round().astype(np.uint8)
            continue
        pictures[caption] = picture = information_map(values, size)
        visible = pixel_boxes(boxes, *size)
        for i in sorted(visible, key=lambda i: 0 if scores is None else float(scores[i])):  # the surest on top, as beside it
            # Some colours resemble the map's: a dark line along the inside sets the frame off.
            draw_frame(picture, visible[i], BLACK, thickness + max(1, thickness // 2))
            draw_frame(picture, visible[i], PALETTE[int(labels[i]) % len(PALETTE)], thickness)
    rows = (pictures | chosen,) if len(chosen) == 1 else (pictures, chosen)
    panels = [panel(list(row.values()), list(row)) for row in rows if row]
    return panels[0] if len(panels) == 1 else contact_sheet(panels)


def contact_sheet(panels: Sequence[np.ndarray], columns: int = 1) -> np.ndarray:
    """Return the panels on one white sheet, row by row, each centred in its cell of a grid."""
    columns = min(columns, len(panels)) or 1
    panels = [*panels, *[np.full((1, 1, 3), 255, dtype=np.uint8)] * (-len(panels) % columns)]
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    widths = [max(cell.shape[1] for cell in column) + 16 for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        height = max(cell.shape[0] for cell in row) + 16
        lines.append(np.hstack([_pad(cell, width, height) for cell, width in zip(row, widths, strict=True)]))
    return np.vstack(lines)


def _enlarged(image: np.ndarray) -> np.ndarray:
    """A small image at the height `SMALL`, or at the width `MAX_ASPECT * SMALL` if it would become wider; others as they are."""
    scale = min(SMALL / image.shape[0], MAX_ASPECT * SMALL / image.shape[1])
    if scale <= 1:
        return image
    size = round(scale * image.shape[1]), round(scale * image.shape[0])
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)


def _pad(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Centre an image on a white ground."""
    x, y = width - image.shape[1], height - image.shape[0]
    return np.pad(image, ((y // 2, y - y // 2), (x // 2, x - x // 2), (0, 0)), constant_values=255)
