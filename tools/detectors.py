"""The detectors of this repository, side by side in one process."""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Behind everything else, so that their `vendor`, `tests` and `main` hide nothing.
FOLDERS = ("DETR-ENACT", "Conditional-DETR-ENACT", "Anchor-DETR-ENACT", "Sparse-DETR", "DAC-DETR", "PnP-DETR")
sys.path.extend(str(ROOT / folder) for folder in FOLDERS)

from anchor_detr import recipe as anchor_detr
from common.cli.options import parse
from common.detector import Detector
from conditional_detr import recipe as conditional_detr
from dac_detr import recipe as dac_detr
from detr import recipe as detr
from pnp_detr import recipe as pnp_detr
from sparse_detr import recipe as sparse_detr

RECIPES = (detr, conditional_detr, anchor_detr, sparse_detr, dac_detr, pnp_detr)
DETECTORS: dict[str, Detector] = {recipe.DETECTOR.name: recipe.DETECTOR for recipe in RECIPES}


def options(detector: str, argv: Sequence[str] = ()) -> Namespace:
    """A detector's options as its command line reads them."""
    return parse(DETECTORS[detector], list(argv))[0]


# Those of the paper, which cluster unless told otherwise.
CLUSTERED = tuple(name for name in DETECTORS if getattr(options(name), "clustering", "none") != "none")
