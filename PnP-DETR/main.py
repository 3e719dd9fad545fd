"""PnP-DETR: train, evaluate, predict. ``python PnP-DETR/main.py --help`` lists the options."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "vendor"))

from common.cli.main import main

if __name__ == "__main__":
    sys.exit(main("pnp_detr"))
