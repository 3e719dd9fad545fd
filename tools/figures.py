"""Draws the pictures of `images/` from a trained demo: the framework of ENACT, clusters by scan, detections, what a detector does.

`make demo` trains it, and `make figures` draws those of it; others show other demos (`images/README.md`).
"""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from benchmarks.lib.models import Loaded, trained
from benchmarks.quality.fidelity_variants import Variant, cutting
from common.boundary.checkpoints import load_checkpoint
from common.cli.arguments import Parser, number
from common.data.shapes_drawing import draw_image
from common.errors import UserError
from common.output.drawing import save_image
from common.output.panels import contact_sheet
from common.predictor import batch_of
from enact.scans import SCANS, places
from tools.detectors import CLUSTERED
from tools.framework_figure import Observation, draw_framework
from tools.scans_figure import draw_scans

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "runs" / "demo" / "checkpoint.pth"
PICTURES, COLUMNS, WIDTH = 6, 2, 1600
NAMES = ("demo_detections", "detector", "enact_framework", "scans")
EVERY_PIXEL = Variant("", (), lambda pixels, clusters, generator: torch.arange(pixels))  # a cluster for itself


class Weights(TorchFunctionMode):
    """While it lasts, keeps the attention weights of the last ``scaled_dot_product_attention``: (B, h, L, N) in ``last``."""

    def __torch_function__(self, func: Callable, types: Iterable[type], args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.last = self._weights(*args, **kwargs or {})
        return func(*args, **kwargs or {})

    @staticmethod
    def _weights(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: None = None, dropout_p: float = 0.0, scale: float | None = None
    ) -> torch.Tensor:
        return (q @ k.transpose(-2, -1) * (scale or q.shape[-1] ** -0.5)).softmax(-1)


def restored(checkpoint: Path, layer: int, **changes: Any) -> tuple[Loaded, nn.Module]:
    """A trained detector, with other options where some are named, and the attention of an encoder layer."""
    saved = load_checkpoint(checkpoint)
    if saved.get("detector") not in CLUSTERED or saved["args"]["clustering"] != "region":
        raise UserError(f"{checkpoint} is not of {' or '.join(CLUSTERED)} with --clustering region: pass `make demo`'s")
    loaded = trained(saved, checkpoint, CLUSTERED, torch.device("cpu"), changes)
    attentions = [m for m in loaded.model.modules() if hasattr(m, "W_prob")]
    if layer >= len(attentions):
        raise UserError(f"--layer {layer}, but the encoder of {checkpoint} has {len(attentions)} layers, counted from 0")
    return loaded, attentions[layer]


@torch.no_grad()
def observe(checkpoint: Path, image: np.ndarray, layer: int) -> Observation:
    """Runs a trained detector on an image (H, W, 3), uint8 RGB, of which no side is scaled, and looks into an encoder layer."""
    loaded, attention = restored(checkpoint, layer)
    calls = []
    handle = attention.register_forward_pre_hook(lambda module, *given: calls.append(given), with_kwargs=True)
    records, outputs = loaded.observe(batch_of([Image.fromarray(image)], min(image.shape[:2])))
    handle.remove()
    [(given, options)], clusters = calls, list(records.values())[layer]
    with Weights() as clustered:
        attention(*given, **options)
    with Weights() as plain, cutting(EVERY_PIXEL, torch.Generator()):
        attention(*given, **options)
    maps = (values[0].reshape(outputs["feature_size"]) for values in (clusters.information, clusters.smoothed, clusters.index))
    weights = (found.last[0].mean(0) for found in (plain, clustered))
    return Observation(image, *(values.numpy() for values in (*maps, *weights)))


@torch.no_grad()
def clusters_by_scan(checkpoint: Path, image: np.ndarray, layer: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each order of the pixels the cluster of each, and its place in the walk: (h, w) each."""
    found = {}
    for scan in SCANS:
        loaded, attention = restored(checkpoint, layer, scan=scan)
        records, outputs = loaded.observe(batch_of([Image.fromarray(image)], min(image.shape[:2])))
        size = outputs["feature_size"]
        place = places(scan, size, attention.W_prob.band)
        found[scan] = list(records.values())[layer].index.view(size).numpy(), place.view(size).numpy()
    return found


def read_pictures(folder: Path) -> list[np.ndarray]:
    """Those that a demo has drawn at its end: (H, W, 3) uint8 RGB each."""
    paths = sorted(folder.glob("*.png"))
    if not paths:
        raise UserError(f"{folder} holds no pictures: run `make demo` to its end, which draws them")
    return [cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB) for path in paths]


def draw_detections_sheet(pictures: Path) -> np.ndarray:
    """The first pictures of a demo, unselected, on one sheet: (H, W, 3) uint8 RGB."""
    sheet = contact_sheet(read_pictures(pictures)[:PICTURES], COLUMNS)
    size = WIDTH, round(WIDTH / sheet.shape[1] * sheet.shape[0])
    return cv2.resize(sheet, size, interpolation=cv2.INTER_AREA)


def draw(name: str, checkpoint: Path, image: np.ndarray, layer: int) -> Figure | np.ndarray:
    """One of the pictures of `images/`."""
    if name == "demo_detections":
        return draw_detections_sheet(checkpoint.parent / "pictures")
    if name == "detector":  # the last picture, whose shapes lie apart from each other
        return read_pictures(checkpoint.parent / "pictures")[-1]
    if name == "enact_framework":
        return draw_framework(observe(checkpoint, image, layer))
    found = clusters_by_scan(checkpoint, image, layer)
    return draw_scans(image, *({scan: pair[i] for scan, pair in found.items()} for i in range(2)))


def run(argv: list[str]) -> None:
    parser = Parser(prog="tools/figures.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--checkpoint", type=Path, default=DEMO, help="of a demo, its pictures beside it (default: runs/demo's)")
    parser.add_argument("--draw", nargs="+", choices=NAMES, default=NAMES, help="default: all")
    parser.add_argument("--image", type=number(int, 0), default=6, help="index in the shapes' val split (default: %(default)s)")
    parser.add_argument("--image_size", type=number(int, 64), default=256, help="its longer side (default: %(default)s)")
    parser.add_argument("--layer", type=number(int, 0), default=1, help="of the encoder, from 0 (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=ROOT / "images", help="folder (default: images)")
    args = parser.parse_args(argv)
    if not args.checkpoint.is_file():
        raise UserError(f"the checkpoint {args.checkpoint} does not exist: run `make demo` first")
    image = cv2.cvtColor(draw_image(0, "val", args.image, args.image_size)[0], cv2.COLOR_BGR2RGB)
    pictures = {name: draw(name, args.checkpoint, image, args.layer) for name in args.draw}
    if "detector" in pictures:
        pictures[load_checkpoint(args.checkpoint).get("detector", "detector").lower()] = pictures.pop("detector")
    pictures = {args.output / f"{name}.png": picture for name, picture in pictures.items()}
    try:
        args.output.mkdir(parents=True, exist_ok=True)
        for path, picture in pictures.items():
            picture.savefig(path) if isinstance(picture, Figure) else save_image(path, picture)
    except OSError as error:
        raise UserError(f"--output {args.output} cannot be written ({error.strerror}): choose another folder") from error
    print(f"written: {', '.join(map(str, pictures))}")


def main(argv: list[str]) -> int:
    """Runs the command line; a mistake of the user ends as one sentence and code 2."""
    try:
        run(argv)
    except UserError as error:
        print(f"tools/figures.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
