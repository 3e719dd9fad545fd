"""The detectors for ``torch.hub.load``: one entry for each, ``load``, which recognises whose a checkpoint is, and ``train``.

    predictor = torch.hub.load("path/to/this/folder", "load", "checkpoint.pth", source="local")
    predictor = torch.hub.load("path/to/this/folder", "detr_enact", checkpoint="checkpoint.pth", source="local")

A checkpoint is a path or an https URL, of this repository or published. What comes back is a ``common.predictor.Predictor``.
Further arguments are options of the command line: ``clustering="window"``, ``image_size=640``, ``device="cpu"``.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.cli.options import argv_of
from common.cli.restore import load_predictor
from common.cli.run import run
from common.predictor import Predictor
from tools.detectors import DETECTORS

dependencies = ["torch", "torchvision", "numpy", "scipy", "pycocotools", "accelerate", "cv2", "PIL", "pydantic", "yaml"]


def load(checkpoint: str | Path, **options: Any) -> Predictor:
    """The detector that a checkpoint is of, with its weights; UserError where it is of none."""
    return load_predictor(list(DETECTORS.values()), checkpoint, argv_of(options))


def train(detector: str, **options: Any) -> None:
    """Trains, evaluates or predicts as ``python <detector>/main.py`` does; UserError where it cannot.

    Args:
        detector: its folder, such as "DETR-ENACT".
        options: of the command line: ``coco_path="path_to_coco", epochs=12``.
    """
    run(DETECTORS[detector], argv_of(options))


def _entry(name: str) -> Callable[..., Predictor]:
    def entry(checkpoint: str | Path, **options: Any) -> Predictor:
        return load_predictor([DETECTORS[name]], checkpoint, argv_of(options))

    entry.__name__ = name.lower().replace("-", "_")
    entry.__doc__ = f"{name} with the weights of a checkpoint; UserError where it is of another detector."
    return entry


globals().update({entry.__name__: entry for entry in map(_entry, DETECTORS)})
