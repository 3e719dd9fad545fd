"""A detector's command line on images of one size: ``python equal_sizes.py <folder> <options>``.

How images are distributed over batches decides how much they are padded, and at the border of the padding a backbone gives other
features. With images of one size nothing but the distribution differs.
"""

import sys
from contextlib import AbstractContextManager
from pathlib import Path
from unittest.mock import patch

from torchvision.transforms import v2

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.cli.run import main
from common.data import loading
from common.data.transforms import ToTensor
from tools.detectors import DETECTORS


def equal_sizes() -> AbstractContextManager:
    """While the context lasts, every image is resized to one square, without augmentation."""

    def resize(image_size: int) -> v2.Compose:
        return v2.Compose([v2.Resize((image_size, image_size)), ToTensor()])

    return patch.multiple(loading, training_transforms=resize, evaluation_transforms=resize)


if __name__ == "__main__":
    with equal_sizes():
        sys.exit(main(DETECTORS[sys.argv[1]], sys.argv[2:]))
