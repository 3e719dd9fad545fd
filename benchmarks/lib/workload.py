"""A detector at the size of the paper's experiments, and images like COCO's to run it on, without a download.

Shapes: B images, H x W pixels of the padded batch.
"""

import contextlib
import io
from argparse import Namespace
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from torchvision.ops import box_convert

from common.boundary.annotations import read_annotations
from common.cli.arguments import Parser, number
from common.cli.run import build_accelerator
from common.data.loading import Batch, collate
from common.data.shapes_drawing import draw_image
from common.data.transforms import boxes_of, evaluation_transforms
from common.detector import Detector
from common.evaluation.postprocess import PostProcess
from common.losses.criterion import Criterion
from common.models.folding import FoldedFrozenBatchNorm2d
from common.models.speed import set_tf32, speed_up
from common.training.loop import train_one_epoch
from common.training.state import TrainingState
from tools.detectors import DETECTORS, options

COCO_CLASSES = 91
# Width and height of images, and weights: like COCO 2017, mostly 4:3 and 3:2, three landscapes to a portrait.
COCO_SIZES = {(640, 480): 8, (640, 427): 8, (480, 640): 3, (427, 640): 2, (500, 375): 2, (640, 360): 1, (640, 640): 1}
QUICK = ["--image_size", "128", "--enc_layers", "2", "--dec_layers", "2"]


class Workload:
    """A model with random weights, its losses, and how it trains and infers.

    Args:
        detector: its folder.
        argv: options of its command line, on top of the paper's recipe.
    """

    def __init__(self, detector: str, argv: Iterable[str]):
        self.detector: Detector = DETECTORS[detector]
        self.args: Namespace = options(detector, argv)
        self.accelerator: Accelerator = build_accelerator(self.args)
        torch.manual_seed(self.args.seed)
        # As with pretrained weights: batch norm is a constant, the stem and layer1 are not trained.
        model = self.detector.build_model(self.args, COCO_CLASSES, False).to(self.accelerator.device)
        calibrate(model, self.accelerator.device)
        speed_up(model, self.detector.compiled, self.args, self.accelerator.device)
        rates = self.detector.parameter_groups(self.args, self.args.batch_size * self.args.accumulate)
        state = TrainingState(model, rates, self.args, self.accelerator, {})
        self.model, self.optimizer = state.model, state.optimizer
        self.criterion: Criterion = self.detector.build_criterion(self.args, COCO_CLASSES).to(self.accelerator.device)
        self.postprocess: PostProcess = self.detector.build_postprocess(self.args)

    def train(self, batch: Batch) -> None:
        """One step of the training loop: forward, matching and losses, backward, clipping, optimiser."""
        set_tf32(self.args.tf32 is not False)  # as the command line has it: when training
        loader = DataLoader([batch], batch_size=None)
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar of one step
            train_one_epoch(
                self.model,
                self.criterion,
                loader,
                self.optimizer,
                self.accelerator,
                epoch=0,
                seed=self.args.seed,
                accumulate=1,
                clip_max_norm=self.args.clip_max_norm,
            )

    @torch.inference_mode()
    def infer(self, batch: Batch) -> None:
        """From images to detections in pixels."""
        set_tf32(bool(self.args.tf32))
        batch = batch.to(self.accelerator.device)
        outputs = self.model.eval()(batch.images, batch.mask)
        self.postprocess(outputs, torch.stack([t["orig_size"] for t in batch.targets]))


def attention_kernel(attention: str) -> AbstractContextManager[None]:
    """A context in which attention is "math", with its N x N matrix in memory, or "fused", as PyTorch chooses."""
    return sdpa_kernel(SDPBackend.MATH) if attention == "math" else contextlib.nullcontext()


@torch.no_grad()
def calibrate(model: nn.Module, device: torch.device) -> None:
    """Gives every constant batch norm the statistics of its input on noise, as those of a trained network fit its data.

    Random convolutions without it let the features grow from block to block, which no trained backbone does. The convolution before
    a norm has applied the old statistics, which are taken back, and what follows sees the new ones.
    """

    def take_statistics(norm: FoldedFrozenBatchNorm2d, inputs: tuple[torch.Tensor]) -> torch.Tensor:
        scale, shift = (x[:, None, None] for x in norm.scale_and_shift())
        features = (inputs[0] - shift) / scale
        variance, mean = torch.var_mean(features, dim=(0, 2, 3))
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        scale, shift = (x[:, None, None] for x in norm.scale_and_shift())
        return features * scale + shift

    norms = [module for module in model.modules() if isinstance(module, FoldedFrozenBatchNorm2d)]
    handles = [norm.register_forward_pre_hook(take_statistics) for norm in norms]
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 128, 128, generator=generator).to(device)
    model.eval()(images, torch.zeros(2, 128, 128, dtype=torch.bool, device=device))
    for handle in handles:
        handle.remove()


def size(text: str) -> tuple[int, int]:
    """An argparse type: "640x480", width and height."""
    width, _, height = text.partition("x")
    return number(int, 1)(width), number(int, 1)(height)


def add_workload_options(parser: Parser) -> None:
    """Which images, and how many, the rows of a table see; :func:`complete_workload` fills in the defaults."""
    positive = number(int, 1)
    parser.add_argument("--batch_size", type=positive, help="default: the paper's, 8, and 4 for Anchor DETR; quick: 1")
    parser.add_argument("--images", type=positive, help="images of the measurement (default: 160 on a GPU, 4 on a CPU; quick: 2)")
    parser.add_argument("--coco_path", type=Path, help="take the images' sizes from this dataset's training set")
    parser.add_argument("--sizes", type=size, nargs="+", metavar="WxH", help="these images in turn, before they are resized")


def complete_workload(args: Namespace) -> None:
    """The defaults of :func:`add_workload_options`; needs the device."""
    if args.quick:
        args.batch_size, args.images = args.batch_size or 1, args.images or 2
    args.images = args.images or (160 if args.device == "cuda" else 4)


def image_sizes(count: int, coco_path: Path | None, sizes: list[tuple[int, int]] | None) -> list[tuple[int, int]]:
    """Width and height of ``count`` images: the given ones in turn, or drawn from those of COCO's training set or `COCO_SIZES`."""
    if sizes:
        return [sizes[i % len(sizes)] for i in range(count)]
    if coco_path:
        images = read_annotations(coco_path / "annotations" / "instances_train2017.json").dataset["images"]
        choices, weights = [(image["width"], image["height"]) for image in images], None
    else:
        choices, weights = list(COCO_SIZES), np.array(list(COCO_SIZES.values())) / sum(COCO_SIZES.values())
    chosen = np.random.default_rng(0).choice(len(choices), count, p=weights)
    return [choices[i] for i in chosen]


def draw_picture(index: int, width: int, height: int) -> tuple[Image.Image, list[dict[str, Any]]]:
    """A picture of shapes of this size, and the ``category_id`` and ``bbox`` (x, y, width, height) of its objects but crowds."""
    drawn, annotations = draw_image(0, "val", index, max(width, height))
    scale = np.tile((width / drawn.shape[1], height / drawn.shape[0]), 2)
    pixels = cv2.cvtColor(cv2.resize(drawn, (width, height)), cv2.COLOR_BGR2RGB)
    known = [
        {"category_id": a["category_id"], "bbox": (scale * np.array(a["bbox"])).tolist()} for a in annotations if not a["iscrowd"]
    ]
    return Image.fromarray(pixels), known


def build_batches(sizes: list[tuple[int, int]], batch_size: int, image_size: int) -> list[Batch]:
    """Batches of pictures of shapes with their boxes, resized as in evaluation and padded as in training.

    Args:
        sizes: width and height of the originals.
        batch_size: B.
        image_size: shortest side after resizing; the longest is at most 1333 / 800 of it.
    """
    transforms = evaluation_transforms(image_size)
    samples = []
    for index, (width, height) in enumerate(sizes):
        image, annotations = draw_picture(index, width, height)
        xywh = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float32).reshape(-1, 4)
        target = {
            "boxes": boxes_of(box_convert(xywh, "xywh", "xyxy"), height, width),
            "labels": torch.tensor([a["category_id"] for a in annotations], dtype=torch.long),
            "image_id": index,
            "orig_size": torch.tensor([height, width]),
        }
        samples.append(transforms(image, target))
    return [collate(samples[i : i + batch_size]) for i in range(0, len(samples), batch_size)]
