"""Images of the built-in shapes dataset, with their COCO annotations: what `shapes.py` writes to disk.

Legend: H, W image height and width; h, w height and width of a crop; P points of a polygon. Points are (x, y) in
pixels, with pixel i covering [i, i + 1) as in COCO, and lie on a grid of 1/16 pixel, which floats represent exactly.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np

CLASSES: tuple[str, ...] = ("circle", "square", "triangle", "star", "ring", "cross")
SPLITS = ("train", "val")

EMPTY, CROWD, EQUAL_SIDES, TRUNCATED = 0.05, 0.03, 0.2, 0.15  # shares of the images; the last one of the objects
MAX_OBJECTS = 6
MIN_ASPECT = 0.7  # least short side over long side of an image
MIN_SIDE, MAX_SIDE = 0.15, 0.6  # side of an object over the image's short side
MIN_PIXELS = 4.0  # smaller shapes cannot be told apart
OVERHANG = 0.25  # largest part of its side by which a truncated object leaves the image
MAX_ANGLE = 0.35  # radians
MIN_VISIBLE = 0.35  # part of an object that the border and other objects have to leave
PLACEMENT_TRIES = 10
SUBPIXELS = 4  # supersampling of the outlines; the 2 fractional bits of OpenCV's points refine it to the 1/16 grid
GRID = 16


class Raster(NamedTuple):
    """A shape drawn in its crop of the image: coverage in [0, 1], float32 (h, w, 1), as a whole and without its rim."""

    crop: tuple[slice, slice]
    whole: np.ndarray
    inner: np.ndarray


def _regular(count: int, radius: float, start: float = -math.pi / 2) -> np.ndarray:
    angles = start + np.arange(count) * (2 * math.pi / count)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def shape_polygons(name: str, side: float, angle: float = 0.0) -> list[np.ndarray]:
    """Outline of a class, centred on the origin: one (P, 2) polygon, for `ring` a second one for the hole.

    The longer side of the rotated outline's box is `side` pixels; `angle` is in radians.
    """
    if name in ("circle", "ring"):
        count = 4 * math.ceil(math.pi / 4 * math.sqrt(side / 0.2))  # chords within 0.05 px of the arc
        polygons = [_regular(count, 1.0)] + ([_regular(count, 0.52)] if name == "ring" else [])
    elif name == "square":
        polygons = [_regular(4, 1.0, math.pi / 4)]
    elif name == "triangle":
        polygons = [_regular(3, 1.0)]
    elif name == "star":
        polygons = [np.stack([_regular(5, 1.0), _regular(5, 0.46, -0.3 * math.pi)], axis=1).reshape(10, 2)]
    else:  # cross
        arm = 0.36
        corner = np.array([(arm, -1), (arm, -arm), (1, -arm)])
        quarter = np.array([(0, 1), (-1, 0)])  # row vectors times this turn by 90 degrees, y pointing down
        polygons = [np.concatenate([corner @ np.linalg.matrix_power(quarter, turn) for turn in range(4)])]
    cos, sin = math.cos(angle), math.sin(angle)
    polygons = [polygon @ np.array([(cos, sin), (-sin, cos)]) for polygon in polygons]
    low, high = polygons[0].min(axis=0), polygons[0].max(axis=0)
    return [(polygon - (low + high) / 2) * (side / (high - low).max()) for polygon in polygons]


def move(polygons: list[np.ndarray], centre: np.ndarray) -> list[np.ndarray]:
    return [np.round((polygon + centre) * GRID) / GRID for polygon in polygons]


def clip_polygon(polygon: np.ndarray, height: int, width: int) -> np.ndarray:
    """Part of a (P, 2) polygon inside the image (Sutherland-Hodgman).

    Exact for outlines that are star-shaped around a point inside the image, as all of these are.
    """
    for axis, sign, bound in ((0, 1, 0), (1, 1, 0), (0, -1, -width), (1, -1, -height)):
        depth = sign * polygon[:, axis] - bound
        if (depth >= 0).all():
            continue
        points = []
        for i in range(len(polygon)):
            if (depth[i - 1] < 0) != (depth[i] < 0):
                share = depth[i - 1] / (depth[i - 1] - depth[i])
                points.append(polygon[i - 1] + share * (polygon[i] - polygon[i - 1]))
            if depth[i] >= 0:
                points.append(polygon[i])
        polygon = np.round(np.array(points) * GRID) / GRID
    return polygon


def _area(polygon: np.ndarray) -> float:
    x, y = polygon.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def polygon_annotation(polygons: list[np.ndarray], height: int, width: int) -> dict:
    """COCO's `bbox`, `area`, `segmentation` and `iscrowd` of a shape in an image of height x width pixels."""
    outer, *holes = (clip_polygon(polygon, height, width) for polygon in polygons)
    low, high = outer.min(axis=0), outer.max(axis=0)
    area = _area(outer) - sum(map(_area, holes))
    for hole in holes:  # COCO unites polygons, so a hole is reached through a seam of zero width
        outer = np.concatenate([outer, outer[:1], hole[::-1], hole[-1:]])
    return {"bbox": [*low.tolist(), *(high - low).tolist()], "area": area, "segmentation": [outer.ravel().tolist()], "iscrowd": 0}


def mask_annotation(mask: np.ndarray) -> dict:
    """The same for a crowd, from its bool mask (H, W), not all unset; the segmentation is uncompressed RLE."""
    flat = np.concatenate([[False], mask.ravel(order="F")])  # runs alternate down the columns, the first one is unset
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], changes, [mask.size]]))
    x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
    return {
        "bbox": [float(x), float(y), float(w), float(h)],
        "area": float(mask.sum()),
        "segmentation": {"size": list(mask.shape), "counts": counts.tolist()},
        "iscrowd": 1,
    }


def rasterize(polygons: list[np.ndarray], height: int, width: int, rim: float) -> Raster:
    """Anti-aliased coverage of a shape inside an image of height x width pixels; `rim` is its width in pixels."""
    low = np.maximum(np.floor(polygons[0].min(axis=0)), 0).astype(int)
    high = np.minimum(np.ceil(polygons[0].max(axis=0)), (width, height)).astype(int)
    size = tuple((high - low).tolist())
    # OpenCV's coordinates are those of pixel centres: half a subpixel, 2 steps of the grid, is subtracted.
    points = [((polygon - low) * GRID).astype(np.int32) - 2 for polygon in polygons]
    canvas = np.zeros((size[1] * SUBPIXELS, size[0] * SUBPIXELS), np.uint8)
    cv2.fillPoly(canvas, points, 255, shift=2)
    whole = cv2.resize(canvas, size, interpolation=cv2.INTER_AREA)
    cv2.polylines(canvas, points, True, 0, thickness=max(1, round(2 * rim * SUBPIXELS)), shift=2)
    inner = cv2.resize(canvas, size, interpolation=cv2.INTER_AREA)
    return Raster(
        (slice(low[1], high[1]), slice(low[0], high[0])),
        *(np.float32(coverage.reshape(size[1], size[0], 1)) / 255 for coverage in (whole, inner)),
    )


def _bgr(lab: np.ndarray) -> np.ndarray:
    return 255 * np.clip(cv2.cvtColor(np.float32(lab)[None], cv2.COLOR_LAB2BGR)[0], 0, 1)


def _lab(lightness: np.ndarray, chroma: np.ndarray, hue: np.ndarray) -> np.ndarray:
    return np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=-1)


class Scene:
    """One image in the making: `image` (H, W, 3) float32 BGR in 0..255, its COCO `annotations` without ids, bottom to top, and
    `owner` (H, W), what every pixel shows: 0 is the background, k the k-th annotation.
    """

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self.rng, self.height, self.width, self.short = rng, height, width, min(height, width)
        self.image, ground = self._background()
        self.colours = [ground]  # CIELAB
        self.annotations: list[dict] = []
        self.owner = np.zeros((height, width), np.intp)
        self.full, self.visible = np.zeros(1), np.zeros(1)  # pixels of every object, alone and as seen

    def _background(self) -> tuple[np.ndarray, np.ndarray]:
        rng, (h, w) = self.rng, (self.height, self.width)
        lab = _lab(rng.uniform(22, 92), rng.uniform(3, 22), rng.uniform(0, 2 * math.pi))
        step = rng.normal(size=3)
        step *= rng.uniform(3, 8) / np.linalg.norm(step)
        angle = rng.uniform(0, 2 * math.pi)
        y, x = np.linspace(-0.5, 0.5, h)[:, None], np.linspace(-0.5, 0.5, w)
        mix = 0.5 + 0.6 * (math.cos(angle) * x + math.sin(angle) * y)
        cells = math.exp(rng.uniform(math.log(2), math.log(12)))
        for octave in range(3):
            grid = [max(2, round(cells * 2**octave * n / max(h, w))) for n in (h, w)]
            mix = mix + 0.4 / 2**octave * cv2.resize(rng.standard_normal(grid), (w, h), interpolation=cv2.INTER_CUBIC)
        start, end = _bgr(np.stack([lab - step, lab + step]))
        grain = rng.standard_normal((h, w, 1), dtype=np.float32) * np.float32(rng.uniform(1, 4))
        return start + (end - start) * np.float32(np.clip(mix, -0.5, 1.5))[..., None] + grain, lab

    def colour(self, sixth: float, spread: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
        """BGR of a rim and an inside that stand out against the background and the objects already there.

        Each class has its ``sixth`` of the hues, ``spread`` to both sides of the middle: the colour is a first hint, as it is in
        photographs, and learned before the outline.
        """
        count, rng = 48, self.rng
        lab = np.empty((0, 3))
        while not len(lab):  # of some hues few colours can be shown
            hue = (sixth + rng.uniform(-spread, spread, count)) * (2 * math.pi / len(CLASSES))
            lab = _lab(rng.uniform(35, 88, count), rng.uniform(35, 70, count), hue)
            lab = lab[np.linalg.norm(cv2.cvtColor(_bgr(lab)[None] / 255, cv2.COLOR_BGR2LAB)[0] - lab, axis=1) < 4]  # sRGB
        distance = np.linalg.norm(lab[:, None] - np.stack(self.colours), axis=2)
        enough = (distance / np.array([50] + [30] * (len(self.colours) - 1))).min(axis=1)
        chosen = lab[np.argmax(np.minimum(enough, 1))]
        away = -30 if self.colours[0][0] > 50 else 30
        self.colours.append(chosen)
        return tuple(_bgr(np.stack([chosen + (away, 0, 0), chosen])))

    def paint(self, raster: Raster, rim: np.ndarray, inside: np.ndarray) -> None:
        crop = self.image[raster.crop]
        crop += raster.whole * (rim - crop) + raster.inner * (inside - rim)

    def _claim(self, owner: np.ndarray, mask: np.ndarray, full: float) -> bool:
        """Puts a shape of `full` pixels on top, or returns False where too little of it or another stays visible.

        `owner` is a crop of `self.owner` and `mask` the shape's pixels in it, bool (h, w).
        """
        visible = self.visible - np.bincount(owner[mask], minlength=len(self.visible))
        visible, everything = np.append(visible, mask.sum()), np.append(self.full, full)
        if (visible[1:] < MIN_VISIBLE * everything[1:]).any():
            return False
        owner[mask] = len(self.visible)
        self.visible, self.full = visible, everything
        return True

    def add_object(self) -> None:
        """Adds one shape, or none where no place for it is found."""
        name = CLASSES[self.rng.integers(len(CLASSES))]
        sides = max(MIN_SIDE * self.short, MIN_PIXELS), MAX_SIDE * self.short
        side = math.exp(self.rng.uniform(*map(math.log, sides)))
        polygons = shape_polygons(name, side, self.rng.uniform(-MAX_ANGLE, MAX_ANGLE))
        inset = side * (0.5 - OVERHANG if self.rng.random() < TRUNCATED else 0.5)
        rim = max(0.7, 0.045 * side)
        for _ in range(PLACEMENT_TRIES):
            centre = self.rng.uniform(inset, (self.width - inset, self.height - inset))
            moved = move(polygons, centre)
            raster = rasterize(moved, self.height, self.width, rim)
            full = _area(moved[0]) - sum(map(_area, moved[1:]))
            if self._claim(self.owner[raster.crop], raster.whole[..., 0] > 0.5, full):
                self.paint(raster, *self.colour(CLASSES.index(name)))
                self.annotate(CLASSES.index(name), polygon_annotation(moved, self.height, self.width))
                return

    def add_crowd(self) -> None:
        """Adds a cluster of tiny shapes of one class with a single annotation."""
        name = CLASSES[self.rng.integers(len(CLASSES))]
        side = max(MIN_PIXELS, self.short * self.rng.uniform(0.06, 0.09))
        pitch = 1.15 * side
        rows, columns = (min(self.rng.integers(3, 6), int(n / pitch)) for n in (self.height, self.width))
        corner = self.rng.uniform(0, (self.width - columns * pitch, self.height - rows * pitch))
        rim, inside = self.colour(CLASSES.index(name))
        mask = np.zeros((self.height, self.width), bool)
        for row, column in np.ndindex(rows, columns):
            centre = corner + pitch * (np.array([column, row]) + self.rng.uniform(0.4, 0.6, 2))
            moved = move(shape_polygons(name, side, self.rng.uniform(-MAX_ANGLE, MAX_ANGLE)), centre)
            raster = rasterize(moved, self.height, self.width, max(0.5, 0.07 * side))
            self.paint(raster, rim, inside)
            mask[raster.crop] |= raster.whole[..., 0] > 0.5
        self._claim(self.owner, mask, mask.sum())
        self.annotate(CLASSES.index(name), mask_annotation(mask))

    def pixels(self) -> np.ndarray:
        """The image as uint8 (H, W, 3) BGR."""
        return np.clip(np.round(self.image), 0, 255).astype(np.uint8)

    def annotate(self, category: int, annotation: dict) -> None:
        """Adds the annotation of an object of a category, from 0."""
        self.annotations.append({"category_id": category + 1, **annotation})


def start_image(seed: int, split: str, index: int, image_size: int) -> tuple[np.random.Generator, int, int]:
    """The generator of an image, and its height and width."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    short = image_size if rng.random() < EQUAL_SIDES else round(image_size * rng.uniform(MIN_ASPECT, 1))
    return rng, *rng.permutation([image_size, short]).tolist()


def draw_image(seed: int, split: str, index: int, image_size: int) -> tuple[np.ndarray, list[dict]]:
    """Image `index` (from 0) of a split: uint8 (H, W, 3) BGR and its COCO annotations without ids, bottom to top."""
    scene = draw_scene(seed, split, index, image_size)
    return scene.pixels(), scene.annotations


def draw_scene(seed: int, split: str, index: int, image_size: int) -> Scene:
    """The same, with what every pixel shows."""
    rng, *size = start_image(seed, split, index, image_size)
    scene = Scene(rng, *size)
    if rng.random() >= EMPTY:
        if rng.random() < CROWD / (1 - EMPTY):
            scene.add_crowd()
        for _ in range(rng.integers(1, MAX_OBJECTS + 1)):
            scene.add_object()
    return scene
