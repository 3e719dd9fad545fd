"""Draws the pictures of `images/` from a trained demo: the framework of ENACT, and a sheet of the demo's detections.

`make demo` trains it; `make figures`, or `python tools/figures.py --checkpoint CKPT`, then draws.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np
import torch
from PIL import Image
from torch import nn

from benchmarks.lib.models import trained
from common.boundary.checkpoints import load_checkpoint
from common.cli.arguments import Parser, number
from common.data.shapes_drawing import draw_image
from common.errors import UserError
from common.models.checkpoint import load_model
from common.output.drawing import save_image
from common.output.panels import contact_sheet
from common.predictor import batch_of
from tools.framework_figure import Observation, draw_framework

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "runs" / "demo" / "checkpoint.pth"
PICTURES, COLUMNS, WIDTH = 6, 2, 1600
FIGURED = ("DETR-ENACT", "Conditional-DETR-ENACT")  # row-column decoupled attention has no N x N matrix to show


@torch.no_grad()
def observe(checkpoint: Path, image: np.ndarray, layer: int) -> Observation:
    """Runs a trained detector on an image (H, W, 3), uint8 RGB, of which no side is scaled, and looks into an encoder layer."""
    saved = load_checkpoint(checkpoint)
    if saved.get("detector") not in FIGURED or saved["args"]["clustering"] != "region":
        raise UserError(f"{checkpoint} is not of {' or '.join(FIGURED)} with --clustering region: pass `make demo`'s")
    loaded = trained(saved, checkpoint, FIGURED, torch.device("cpu"), {})
    layers = loaded.model.transformer.encoder.layers
    if layer >= len(layers):
        raise UserError(f"--layer {layer}, but the encoder of {checkpoint} has {len(layers)} layers, counted from 0")
    attention = layers[layer].self_attn

    inputs = []
    handle = attention.register_forward_pre_hook(lambda module, given: inputs.extend(given))
    height, width = image.shape[:2]
    records, outputs = loaded.observe(batch_of([Image.fromarray(image)], min(height, width)))
    handle.remove()
    size, clusters = outputs["feature_size"], list(records.values())[layer]

    plain = nn.MultiheadAttention(attention.embed_dim, attention.num_heads, batch_first=True)
    load_model(plain, {name: value for name, value in attention.state_dict().items() if "W_prob" not in name}, checkpoint)
    of_keys = attention(*inputs)[1][0]
    # A cluster's weight is spread over its keys by shares that sum to one.
    of_clusters = of_keys.new_zeros(len(of_keys), clusters.size).index_add(1, clusters.index[0], of_keys)
    maps = (values[0].reshape(size).numpy() for values in (clusters.information, clusters.smoothed, clusters.index))
    return Observation(image, *maps, plain(*inputs)[1][0].numpy(), of_clusters.numpy())


def draw_detections_sheet(pictures: Path) -> np.ndarray:
    """The first pictures of a demo, unselected, on one sheet: (H, W, 3) uint8 RGB."""
    paths = sorted(pictures.glob("*.png"))[:PICTURES]
    if not paths:
        raise UserError(f"{pictures} holds no pictures: run `make demo` to its end, which draws them")
    panels = [cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB) for path in paths]
    sheet = contact_sheet(panels, COLUMNS)
    size = WIDTH, round(WIDTH / sheet.shape[1] * sheet.shape[0])
    return cv2.resize(sheet, size, interpolation=cv2.INTER_AREA)


def run(argv: list[str]) -> None:
    parser = Parser(prog="tools/figures.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--checkpoint", type=Path, default=DEMO, help="of a demo, its pictures beside it (default: runs/demo's)")
    parser.add_argument("--image", type=number(int, 0), default=6, help="index in the shapes' val split (default: %(default)s)")
    parser.add_argument("--image_size", type=number(int, 64), default=256, help="its longer side (default: %(default)s)")
    parser.add_argument("--layer", type=number(int, 0), default=1, help="of the encoder, from 0 (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=ROOT / "images", help="folder (default: images)")
    args = parser.parse_args(argv)
    if not args.checkpoint.is_file():
        raise UserError(f"the checkpoint {args.checkpoint} does not exist: run `make demo` first")
    sheet = draw_detections_sheet(args.checkpoint.parent / "pictures")
    image = cv2.cvtColor(draw_image(0, "val", args.image, args.image_size)[0], cv2.COLOR_BGR2RGB)
    figure = draw_framework(observe(args.checkpoint, image, args.layer))
    try:
        args.output.mkdir(parents=True, exist_ok=True)
        figure.savefig(args.output / "enact_framework.png")
    except OSError as error:
        raise UserError(f"--output {args.output} cannot be written ({error.strerror}): choose another folder") from error
    save_image(args.output / "demo_detections.png", sheet)
    print(f"written: {args.output / 'enact_framework.png'}, {args.output / 'demo_detections.png'}")


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
