"""The variant of the built-in shapes dataset whose classes are told far away from the objects, for those who change attention.

Every object has a key somewhere else: a disc of the object's colour with a black or white pupil. The pupil is the object's
class, of which outline, size and place tell nothing. Up to four keys lie in an image, of different hues, also of objects that are
not there, and their pupils alternate: who does not find the key of the object's own colour has to guess. Between the centres of
both lies at least half the image's short side, so that the convolutions of a small backbone do not see them together.

Keys have no annotation; in panoptic maps they are ground.
"""

import math

import numpy as np

from .shapes_drawing import CLASSES, MAX_ANGLE, Raster, Scene, move, polygon_annotation, rasterize, shape_polygons, start_image

PUPILS = {"black": np.zeros(3), "white": np.full(3, 255.0)}  # class -> BGR
MOST_OBJECTS, MOST_KEYS = 2, 4
NO_MORE_KEYS = 0.4  # share of the images that get no keys but those of their objects
SPREAD = 0.25  # of the hue of a key to both sides, in sixths of the circle
MIN_SIDE, MAX_SIDE, KEY_SIDE = 0.25, 0.38, 0.25  # over the image's short side
PUPIL_SIDE = 0.62  # over the key's
FAR = 0.5  # over the image's short side
PLACEMENT_TRIES = 100
KEY = -1  # what the pixels of keys show while the image is in the making


class ContextScene(Scene):
    """As :class:`Scene`, of objects and keys, none of which touches another."""

    def add_object_with_key(self, hue: float, category: int) -> bool:
        """Adds both, or neither, and False, where no place for both is found; ``hue`` in sixths of the circle."""
        side, key_side = self.short * math.exp(self.rng.uniform(math.log(MIN_SIDE), math.log(MAX_SIDE))), self.short * KEY_SIDE
        name = CLASSES[self.rng.integers(len(CLASSES))]
        outline = shape_polygons(name, side, self.rng.uniform(-MAX_ANGLE, MAX_ANGLE))
        for _ in range(PLACEMENT_TRIES):
            centre, key_centre = self._centre(side), self._centre(key_side)
            moved = move(outline, centre)
            shape, key = self._raster(moved, 0.045 * side), self._disc(key_centre, key_side)
            if np.linalg.norm(centre - key_centre) >= FAR * self.short and self._free(shape) and self._free(key):
                rim, colour = self.colour(hue, SPREAD)
                self.paint(shape, rim, colour)
                self.annotate(category, polygon_annotation(moved, self.height, self.width))
                self.owner[shape.crop][shape.whole[..., 0] > 0.5] = len(self.annotations)
                self._paint_key(key, key_centre, colour, category)
                return True
        return False

    def add_key(self, hue: float, category: int) -> bool:
        """Adds the key of an object that is not there; False where no place is found."""
        side = self.short * KEY_SIDE
        for _ in range(PLACEMENT_TRIES):
            centre = self._centre(side)
            if self._free(disc := self._disc(centre, side)):
                self._paint_key(disc, centre, self.colour(hue, SPREAD)[1], category)
                return True
        return False

    def _paint_key(self, disc: Raster, centre: np.ndarray, colour: np.ndarray, category: int) -> None:
        pupil = [*PUPILS.values()][category]
        self.paint(disc, colour, colour)
        self.paint(self._disc(centre, PUPIL_SIDE * KEY_SIDE * self.short), pupil, pupil)
        self.owner[disc.crop][disc.whole[..., 0] > 0.5] = KEY

    def _centre(self, side: float) -> np.ndarray:
        return self.rng.uniform(side / 2, (self.width - side / 2, self.height - side / 2))

    def _raster(self, polygons: list[np.ndarray], rim: float) -> Raster:
        return rasterize(polygons, self.height, self.width, max(0.7, rim))

    def _disc(self, centre: np.ndarray, side: float) -> Raster:
        return self._raster(move(shape_polygons("circle", side), centre), 0)

    def _free(self, raster: Raster) -> bool:
        return not self.owner[raster.crop].any()


def draw_context_scene(seed: int, split: str, index: int, image_size: int) -> ContextScene:
    """Image ``index`` (from 0) of a split."""
    rng, *size = start_image(seed, split, index, image_size)
    scene = ContextScene(rng, *size)
    hues = (rng.random() + rng.permutation(MOST_KEYS)) * len(CLASSES) / MOST_KEYS
    objects = int(rng.integers(1, MOST_OBJECTS, endpoint=True))
    keys = objects if rng.random() < NO_MORE_KEYS else MOST_KEYS
    category = int(rng.integers(len(PUPILS)))
    for i, hue in enumerate(hues[:keys].tolist()):
        if (scene.add_object_with_key if i < objects else scene.add_key)(hue, category):
            category = (category + 1) % len(PUPILS)
    scene.owner[scene.owner == KEY] = 0
    return scene
