"""The detectors of this repository, side by side in one process."""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Behind everything else, so that their `vendor`, `tests` and `main` hide nothing.
FOLDERS = ("DETR-ENACT", "Conditional-DETR-ENACT", "Anchor-DETR-ENACT", "Sparse-DETR", "DAC-DETR", "PnP-DETR")
sys.path.extend(str(ROOT / folder) for folder in FOLDERS)

import anchor_detr
import conditional_detr
import dac_detr
import detr
import pnp_detr
import sparse_detr
from common.cli.options import parse
from common.detector import Detector

PACKAGES = (detr, conditional_detr, anchor_detr, sparse_detr, dac_detr, pnp_detr)
DETECTORS: dict[str, Detector] = {package.DETECTOR.name: package.DETECTOR for package in PACKAGES}


def options(detector: str, argv: Sequence[str] = ()) -> Namespace:
    """A detector's options as its command line reads them."""
    return parse(DETECTORS[detector], list(argv))[0]


# Those of the paper, which cluster unless told otherwise.
CLUSTERED = tuple(name for name in DETECTORS if getattr(options(name), "clustering", "none") != "none")
