"""A detector at the size of the paper's experiments, and images like COCO's to run it on, without a download.

Shapes: B images, H x W pixels of the padded batch.
"""

import contextlib
import io
from argparse import Namespace
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path

import cv2
import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from torchvision.ops import FrozenBatchNorm2d, box_convert

from common.arguments import Parser, number
from common.coco import read_annotations
from common.data import Batch, collate
from common.detector import Detector
from common.loop import train_one_epoch
from common.losses import SetCriterion
from common.run import build_accelerator
from common.shapes_drawing import draw_image
from common.speed import speed_up
from common.transforms import boxes_of, evaluation_transforms
from tools.detectors import load, options

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
        self.detector: Detector = load(detector).DETECTOR
        self.args: Namespace = options(detector, argv)
        self.accelerator: Accelerator = build_accelerator(self.args)
        torch.manual_seed(self.args.seed)
        # As with pretrained weights: batch norm is a constant, the stem and layer1 are not trained.
        model = self.detector.build_model(self.args, COCO_CLASSES, False).to(self.accelerator.device)
        calibrate(model, self.accelerator.device)
        speed_up(model, self.args, self.accelerator.device)
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=self.args.lr, weight_decay=self.args.weight_decay, fused=True)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.criterion: SetCriterion = self.detector.build_criterion(self.args, COCO_CLASSES).to(self.accelerator.device)

    def train(self, batch: Batch) -> None:
        """One step of the training loop: forward, matching and losses, backward, clipping, optimiser."""
        loader = DataLoader([batch], batch_size=None)
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar of one step
            train_one_epoch(self.model, self.criterion, loader, self.optimizer, self.accelerator, 0, 1, self.args.clip_max_norm)

    @torch.inference_mode()
    def infer(self, batch: Batch) -> None:
        """From images to detections in pixels."""
        batch = batch.to(self.accelerator.device)
        outputs = self.model.eval()(batch.images, batch.mask)
        self.detector.postprocess(outputs, torch.stack([t["orig_size"] for t in batch.targets]))


def attention_kernel(attention: str) -> AbstractContextManager[None]:
    """A context in which attention is "math", with its N x N matrix in memory, or "fused", as PyTorch chooses."""
    return sdpa_kernel(SDPBackend.MATH) if attention == "math" else contextlib.nullcontext()


@torch.no_grad()
def calibrate(model: nn.Module, device: torch.device) -> None:
    """Gives every constant batch norm the statistics of its input on noise, as those of a trained network fit its data.

    Random convolutions without it let the features grow from block to block, which no trained backbone does.
    """

    def take_statistics(norm: FrozenBatchNorm2d, inputs: tuple[torch.Tensor]) -> None:
        variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3))
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)

    norms = [module for module in model.modules() if isinstance(module, FrozenBatchNorm2d)]
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
    """Which images, and how many, the rows of a table see; :func:`settle_workload` fills in the defaults."""
    positive = number(int, 1)
    parser.add_argument("--batch_size", type=positive, help="default: the paper's, 8, and 4 for Anchor DETR; quick: 1")
    parser.add_argument("--images", type=positive, help="images of the measurement (default: 160 on a GPU, 4 on a CPU; quick: 2)")
    parser.add_argument("--coco_path", type=Path, help="take the images' sizes from this dataset's training set")
    parser.add_argument("--sizes", type=size, nargs="+", metavar="WxH", help="these images in turn, before they are resized")


def settle_workload(args: Namespace) -> None:
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
        picture, annotations = draw_image(0, "val", index, max(width, height))
        scale = torch.tensor([width / picture.shape[1], height / picture.shape[0]]).repeat(2)
        pixels = cv2.cvtColor(cv2.resize(picture, (width, height)), cv2.COLOR_BGR2RGB)
        known = [a for a in annotations if not a["iscrowd"]]
        xywh = torch.tensor([a["bbox"] for a in known], dtype=torch.float32).reshape(-1, 4)
        target = {
            "boxes": boxes_of(box_convert(xywh, "xywh", "xyxy") * scale, height, width),
            "labels": torch.tensor([a["category_id"] for a in known], dtype=torch.long),
            "image_id": index,
            "orig_size": torch.tensor([height, width]),
        }
        samples.append(transforms(Image.fromarray(pixels), target))
    return [collate(samples[i : i + batch_size]) for i in range(0, len(samples), batch_size)]
