"""Figure 4 of the paper: images and their maps of self-information, and whether these are brighter inside the objects.

    python benchmarks/quality/information.py                              # the checkpoint of `make demo`
    python benchmarks/quality/information.py --checkpoint CKPT --coco_path path_to_coco

The figure shows the first images with objects, unselected, above the self-information of an encoder layer, before it is smoothed,
with boxes of the same colours: the true ones, or those that the model detects where only ``--images`` are given.

The paper observes that a trained map "is brighter in regions where objects are located" (section 4.5.2). Measured is, in every
layer, the mean self-information inside the true boxes divided by that outside; a pixel of the feature map counts inside by the
share of it that the boxes cover. Images without objects, with crowds (whose objects have no boxes of their own), or without a
pixel outside are left out. Over the images the geometric mean is taken, because 2 and 1/2 are equally far from 1. The same with
the weights that training started from tells what training has to do with it.

Shapes: h x w pixels of the feature map, H x W of an image; boxes (n, 4) are (cx, cy, w, h) in [0, 1] of the image.
"""

import math
import sys
from argparse import Namespace
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, Stroke
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_convert
from tqdm import tqdm

from benchmarks.lib import cli
from benchmarks.lib.models import Loaded, before_training, images_of, shapes, trained
from common.boundary.checkpoints import load_checkpoint
from common.cli.arguments import number
from common.data.coco import CocoDetection
from common.data.images import read_image
from common.data.loading import Batch, build_dataset, collate
from common.errors import UserError
from common.output.drawing import PALETTE
from common.output.panels import information_map
from common.predictor import batch_of

NAME = "quality/information"
DEMO = cli.ROOT / "runs" / "demo" / "checkpoint.pth"
COLUMNS, WIDTH = 6, 8.2  # images in a line of the figure, and its width in inches
HEIGHT = 320  # pixels of a map in the figure
FINENESS = 16  # parts of a feature pixel's side


class Sample(NamedTuple):
    """An image for the figure: its file, the batch of it alone that the model sees, and boxes (n, 4)."""

    path: Path
    batch: Batch
    boxes: Tensor


def coverage(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The share of every feature pixel that boxes (n, 4) cover together, to 1 / 16 of its side: (h, w) for ``size`` (h, w)."""
    x0, y0, x1, y1 = box_convert(boxes, "cxcywh", "xyxy").T[..., None]

    def inside(low: Tensor, high: Tensor, length: int) -> Tensor:
        centres = (torch.arange(FINENESS * length) + 0.5) / (FINENESS * length)
        return ((low <= centres) & (centres < high)).float()

    union = (inside(y0, y1, size[0]).T @ inside(x0, x1, size[1])).clamp(max=1)
    return F.avg_pool2d(union[None], FINENESS)[0]


def brightness(information: Tensor, covered: Tensor) -> float | None:
    """Mean information (h, w) inside over that outside, by the share ``covered`` (h, w); None where there is no in- or outside."""
    inside, outside = covered.double(), 1 - covered.double()
    if not (inside.sum() and outside.sum()):
        return None
    mean_inside, mean_outside = ((information.double() * part).sum() / part.sum() for part in (inside, outside))
    return (mean_inside / mean_outside).item()


def maps(loaded: Loaded, batch: Batch) -> tuple[list[Tensor], dict[str, Any]]:
    """The self-information (h, w) of every layer, the mean of several feature levels, and the model's outputs for one image."""
    clusters, outputs = loaded.observe(batch)
    return [c.information.mean(0).view(outputs["feature_size"]).float().cpu() for c in clusters.values()], outputs


def measure(loaded: Loaded, dataset: CocoDetection, most: int) -> list[list[float]]:
    """:func:`brightness` of every layer in the first ``most`` images that have it."""
    ratios: list[list[float]] = [[] for _ in range(loaded.args.enc_layers)]
    with tqdm(total=most, desc=f"{loaded.state} training", leave=False) as progress:
        for i, image_id in enumerate(dataset.ids):
            if len(ratios[0]) == most:
                break
            if any(annotation["iscrowd"] for annotation in dataset.coco.imgToAnns[image_id]):
                continue
            batch = collate([dataset[i]])
            layers, _ = maps(loaded, batch)
            covered = coverage(batch.targets[0]["boxes"], tuple(layers[0].shape))
            values = [brightness(layer, covered) for layer in layers]
            if None not in values:
                for layer, value in zip(ratios, values):
                    layer.append(value)
                progress.update()
    return ratios


def records_of(ratios: list[list[float]], loaded: Loaded) -> list[dict[str, Any]]:
    """Per layer: the geometric mean of the ratios, the share of images that are brighter inside, and every ratio."""
    return [
        {
            "state": loaded.state,
            "layer": i,
            "ratio": math.exp(np.mean(np.log(values))),
            "brighter": float(np.mean(np.array(values) > 1)),
            "ratios": values,
        }
        for i, values in enumerate(ratios)
    ]


def table(records: list[dict[str, Any]]) -> str:
    """The states side by side, one layer a line."""
    states = list(dict.fromkeys(r["state"] for r in records))
    lines = [
        "self-information inside the true boxes / outside, and images that are brighter inside",
        " " * 9 + "".join(f"{state + ' training':>26}" for state in states),
    ]
    for i in sorted({r["layer"] for r in records}):
        of_layer = {r["state"]: r for r in records if r["layer"] == i}
        cells = (f"{of_layer[s]['ratio']:16.3f}x{of_layer[s]['brighter']:9.0%}" for s in states)
        lines.append(f"  layer {i:<2}" + "".join(cells))
    return "\n".join(lines)


def annotated_samples(dataset: CocoDetection, count: int) -> list[Sample]:
    """The first images with objects, and their true boxes."""
    samples = []
    for i, image_id in enumerate(dataset.ids):
        if len(samples) == count:
            break
        batch = collate([dataset[i]])
        boxes = batch.targets[0]["boxes"]
        if len(boxes):
            samples.append(Sample(dataset.path(image_id), batch, boxes))
    if not samples:
        raise UserError(f"{dataset.image_folder} has no image with objects: choose another --coco_path")
    return samples


def detected_samples(loaded: Loaded, paths: Sequence[Path]) -> list[Sample]:
    """Images, and the boxes that the model finds in them with a score of at least its ``--score_threshold``."""
    samples = []
    postprocess = loaded.detector.build_postprocess(loaded.args)
    for path in tqdm(paths, desc="detections", leave=False):
        batch = batch_of([read_image(path)], loaded.args.image_size)
        _, outputs = maps(loaded, batch)
        unit = torch.ones(1, 2, device=outputs["pred_boxes"].device)  # boxes in shares of the image instead of its pixels
        detections = postprocess(outputs, unit)[0]
        boxes = detections["boxes"][detections["scores"] >= loaded.args.score_threshold].cpu()
        samples.append(Sample(path, batch, box_convert(boxes, "xyxy", "cxcywh")))
    return samples


def draw(loaded: Loaded, samples: Sequence[Sample], layer: int, caption: str) -> Figure:
    """Lines of images of equal height, the layer's map below each; an object's box has the same colour in both."""
    images = [np.asarray(read_image(sample.path)) for sample in samples]
    aspects = [image.shape[1] / image.shape[0] for image in images]
    lines = [range(i, min(i + COLUMNS, len(images))) for i in range(0, len(images), COLUMNS)]
    longest = max(sum(aspects[i] for i in line) for line in lines)
    figure = Figure(figsize=(WIDTH, 2 * len(lines) * WIDTH / longest + 0.4), dpi=200, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    for line, cell in zip(lines, figure.add_gridspec(len(lines), 1)):
        widths = [aspects[i] for i in line]
        rest = [longest - sum(widths)] * (sum(widths) < longest)  # a line that is not full
        grid = cell.subgridspec(2, len(widths + rest), width_ratios=widths + rest)
        for column, i in enumerate(line):
            information = maps(loaded, samples[i].batch)[0][layer].numpy()
            picture = information_map(information, (round(HEIGHT * aspects[i]), HEIGHT))
            for row, pixels in enumerate((images[i], picture)):
                _show(figure.add_subplot(grid[row, column]), pixels, samples[i].boxes)
    figure.supxlabel(caption, fontsize=7.5, color="0.4")
    return figure


def _show(axes: Axes, pixels: np.ndarray, boxes: Tensor) -> None:
    """A picture (height, width, 3) with a frame around every object, in colours that cycle."""
    height, width, _ = pixels.shape
    axes.imshow(pixels)
    axes.set_axis_off()
    corners = box_convert(boxes, "cxcywh", "xywh") * torch.tensor([width, height] * 2) - torch.tensor([0.5, 0.5, 0, 0])
    for (x, y, w, h), colour in zip(corners.tolist(), cycle(PALETTE / 255)):
        frame = Rectangle((x, y), w, h, fill=False, linewidth=1, edgecolor=colour)
        # Some colours resemble the map's: a dark line around sets the frame off.
        frame.set_path_effects([Stroke(linewidth=2, foreground="black"), Normal()])
        axes.add_patch(frame)


def parse(argv: list[str]) -> Namespace:
    parser = cli.build_parser(NAME, __doc__)
    positive = number(int, 1)
    parser.add_argument(
        "--checkpoint", metavar="CKPT", help="of this repository or published: path or https URL (default: the demo's)"
    )
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="images without annotations, for the figure alone")
    parser.add_argument("--coco_path", type=Path, help="dataset in COCO's format (default: the built-in shapes)")
    parser.add_argument("--count", type=positive, default=6, help="images in the figure (default: %(default)s)")
    parser.add_argument("--layer", type=number(int, 0), help="encoder layer of the figure, from 0 (default: the last)")
    parser.add_argument("--measure", type=positive, metavar="N", help="images to measure (default: 250; quick: 25)")
    parser.add_argument("--image_size", type=number(int, 32), help="shortest side (default: that of the checkpoint)")
    args = parser.parse_args(argv)
    args.measure = args.measure or (25 if args.quick else 250)
    if args.images and args.coco_path:
        raise UserError("--images are without annotations and --coco_path with: choose one")
    if not args.checkpoint:
        if not DEMO.is_file():
            raise UserError("no checkpoint: pass one with --checkpoint, or run `make demo` first")
        args.checkpoint = str(DEMO)
    return args


def run(argv: list[str]) -> None:
    args = parse(argv)
    device = cli.complete(args)
    loaded = trained(load_checkpoint(args.checkpoint), args.checkpoint, args.detector, device, {"image_size": args.image_size})
    layers = loaded.args.enc_layers
    layer = layers - 1 if args.layer is None else args.layer
    if layer >= layers:
        raise UserError(f"--layer {layer}, but the encoder of {args.checkpoint} has {layers} layers, counted from 0")
    print(f"{loaded.label}: {args.checkpoint}, image size {loaded.args.image_size}", flush=True)

    records: list[dict[str, Any]] = []
    caption = f"{loaded.label}, encoder layer {layer}; each map from its least value, dark, to its greatest, bright"
    if args.images:
        samples = detected_samples(loaded, images_of(args.images, args.count))
        print("no annotations: the boxes are detections, and nothing is measured", flush=True)
    else:
        dataset = build_dataset(args.coco_path or shapes(), "val", loaded.args.image_size, loaded.args.seed)
        samples = annotated_samples(dataset, args.count)
        for state in (before_training(loaded), loaded):
            records += records_of(measure(state, dataset, args.measure), state) if state else []
        images = len(records[-1]["ratios"])
        print(f"\n{images} images of {dataset.image_folder}\n" + table(records), flush=True)
        ratio = next(r["ratio"] for r in records if r["state"] == "after" and r["layer"] == layer)
        caption += f"\ninside the boxes / outside, mean over {images} images: {ratio:.2f}\u00d7"
    content = {"detector": loaded.detector.name} | loaded.settings | {"layer": layer, "results": records}
    cli.save(NAME, args, argv, content, figure=draw(loaded, samples, layer, caption))


if __name__ == "__main__":
    sys.exit(cli.main(NAME, run, sys.argv[1:]))
