"""The command line, the same for every detector."""

import argparse
import math
import os
from argparse import ArgumentTypeError, BooleanOptionalAction
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from ..errors import UserError, quoted
from ..models.sizes import BACKBONES, backbone_name

# What every detector's small model for --demo has in common.
DEMO = {
    "backbone": "resnet10",
    "backbone_weights": "none",
    "dilation": False,
    "last_stage": 2,
    "image_size": 96,
    "hidden_dim": 128,
    "dim_feedforward": 256,
    "enc_layers": 2,
    "dec_layers": 2,
    "dropout": 0.0,
    "batch_size": 8,
    "lr": 3e-4,
    "lr_backbone": 5e-4,
    "epochs": 8,
    "lr_drop": 6,
    "num_workers": 0,  # an image takes a millisecond, and on few cores workers take it from the training
}

DEFAULT = "(default: %(default)s)"  # how an option's help ends, or all of it
CLUSTERING = ("clustering", "smoothing_sigma", "scan", "band", "size_bias", "cuts", "capacity")  # ENACT's options


class Parser(argparse.ArgumentParser):
    """Reports mistakes as one sentence."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")


def number(kind: type, least: float, exclusive: bool = False, most: float = math.inf) -> Callable[[str], Any]:
    """An argparse type: an int or float of at least (or above) ``least`` and at most ``most``."""

    def convert(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not (value > least if exclusive else value >= least) or not value <= most:
            whole = "a whole number" if kind is int else "a number"
            limit = f" and at most {most:g}" if most < math.inf else ""
            raise ArgumentTypeError(
                f"{quoted(repr(text))} is not {whole} {'above' if exclusive else 'of at least'} {least:g}{limit}"
            )
        return value

    return convert


def named(text: str) -> str:
    """An argparse type: any text but none, as which a shell passes a variable that is not set."""
    if not text:
        raise ArgumentTypeError("it is empty: name something, or leave the option out")
    return text


def path(text: str) -> Path:
    """An argparse type: a path; an empty one would be the current folder."""
    return Path(named(text))


def capacity(text: str) -> int | str:
    """An argparse type: "auto" or a number of clusters."""
    return text if text == "auto" else number(int, 1)(text)


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def common_parser(name: str) -> Parser:
    """All options that the detectors share; each detector adds its own and sets its recipe as defaults."""
    parser = Parser(prog=f"{name}/main.py", description=f"Train, evaluate and use {name}.", allow_abbrev=False)
    _add_runs(parser.add_argument_group("what to do (default: train)"), name)
    _add_machine(parser.add_argument_group("machine"))
    _add_recipe(parser.add_argument_group("recipe"))
    _add_model(parser.add_argument_group("model"))
    return parser


def _add_runs(group: argparse._ArgumentGroup, name: str) -> None:
    group.add_argument(
        "--coco_path",
        type=path,
        help="folder of a dataset: COCO 2017's layout, Roboflow's COCO export, a YOLO dataset, or images and a JSON file",
    )
    for split, use in (("train", "train"), ("val", "validate")):
        group.add_argument(f"--{split}_images", type=path, metavar="DIR", help=f"instead of --coco_path: images to {use} on")
        group.add_argument(f"--{split}_annotations", type=path, metavar="JSON", help="their annotations in COCO's format")
    group.add_argument(
        "--val_share",
        type=number(float, 0, exclusive=True, most=0.9),
        default=0.2,
        help=f"share of images to validate on, drawn by --seed, where the folder does not tell them apart {DEFAULT}",
    )
    group.add_argument("--demo", action="store_true", help="a small model and a short schedule on the built-in shapes dataset")
    group.add_argument("--eval", action="store_true", help="evaluate the checkpoint given with --resume")
    group.add_argument(
        "--predict",
        nargs="+",
        type=named,
        metavar="SOURCE",
        help="images, videos, folders, patterns such as 'photos/**/*.jpg' and https URLs to draw detections on; or 0 for the first "
        "camera, until Ctrl-C (a file of that name goes first)",
    )
    group.add_argument("--information", action="store_true", help="with --predict: maps of what the model does beside each image")
    group.add_argument(
        "--score_threshold", type=float, default=0.5, help=f"with --predict: least score of a box that is drawn {DEFAULT}"
    )
    group.add_argument(
        "--save_json", action="store_true", help="with --predict: what is drawn as COCO's results, predictions.json and images.json"
    )
    group.add_argument(
        "--resume", type=named, metavar="CKPT", help="checkpoint to continue, evaluate or predict with: a path or https URL"
    )
    group.add_argument("--export", type=path, metavar="PATH", help="write the resumed checkpoint: .pth, .onnx or .pt2")
    group.add_argument("--finetune", type=named, metavar="CKPT", help="checkpoint to start from, at epoch 0 and with any classes")
    group.add_argument("--output_dir", type=path, default=Path("runs") / name, help=f"folder to write to {DEFAULT}")


def _add_machine(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda if there is one, else cpu")
    group.add_argument(
        "--amp", choices=("no", "bf16", "fp16"), default="no", help="mixed precision; a resumed run keeps its own (default: no)"
    )
    group.add_argument(
        "--tf32", action=BooleanOptionalAction, help="TF32 in float32 products and convolutions of a GPU (default: when training)"
    )
    group.add_argument(
        "--num_workers", type=number(int, 0), default=min(8, cores()), help="processes that load images (default: cores, at most 8)"
    )
    group.add_argument(
        "--channels_last", action=BooleanOptionalAction, default=True, help="memory format of the backbone (default: on)"
    )
    group.add_argument("--compile", action="store_true", help="torch.compile of the backbone and the decoder layers")
    group.add_argument("--seed", type=number(int, 0, most=2**32 - 1), default=42, help=DEFAULT)


def _add_recipe(group: argparse._ArgumentGroup) -> None:
    positive = number(int, 1)
    group.add_argument("--epochs", type=positive, help=DEFAULT)
    group.add_argument("--eval_every", type=positive, default=1, metavar="N", help="evaluate every N epochs, and after the last")
    group.add_argument("--batch_size", type=positive, help=f"images per step and GPU {DEFAULT}")
    group.add_argument("--accumulate", type=positive, default=1, help=f"batches per optimiser step {DEFAULT}")
    group.add_argument(
        "--bucket", action=BooleanOptionalAction, default=False, help="batches of images of similar shape, which need less padding"
    )
    group.add_argument("--lr", type=number(float, 0), default=5e-5, help=DEFAULT)
    group.add_argument("--lr_backbone", type=number(float, 0), default=1e-5, help=DEFAULT)
    group.add_argument("--lr_drop", type=positive, help=f"epochs after which the learning rates are divided by 10 {DEFAULT}")
    group.add_argument("--weight_decay", type=number(float, 0), default=1e-4, help=DEFAULT)
    group.add_argument("--clip_max_norm", type=number(float, 0), default=0.1, help=f"gradient norm; 0: no clipping {DEFAULT}")
    group.add_argument(
        "--image_size",
        type=number(int, 32, most=10_000),
        default=800,
        help=f"shortest side at evaluation, which DETR's training scales follow {DEFAULT}",
    )
    group.add_argument("--no_aux_loss", action="store_true", help="a loss on the last decoder layer only")
    group.add_argument("--set_cost_class", type=number(float, 0), help=DEFAULT)
    group.add_argument("--set_cost_bbox", type=number(float, 0), default=5.0, help=DEFAULT)
    group.add_argument("--set_cost_giou", type=number(float, 0), default=2.0, help=DEFAULT)
    group.add_argument("--cls_loss_coef", type=number(float, 0), help=DEFAULT)
    group.add_argument("--bbox_loss_coef", type=number(float, 0), default=5.0, help=DEFAULT)
    group.add_argument("--giou_loss_coef", type=number(float, 0), default=2.0, help=DEFAULT)


def _add_model(group: argparse._ArgumentGroup) -> None:
    positive = number(int, 1)
    group.add_argument("--backbone", type=backbone_name, choices=BACKBONES, help=DEFAULT)
    group.add_argument(
        "--backbone_weights", default="default", metavar="default|none|PATH", help="ImageNet's, none, or those of a file"
    )
    group.add_argument("--dilation", action=BooleanOptionalAction, help="dilate the last stage (DC5)")
    group.add_argument("--last_stage", type=int, choices=(2, 3, 4), default=4, help="ResNet stage whose features are used: 4 is C5")
    group.add_argument("--hidden_dim", type=positive, default=256, help=DEFAULT)
    group.add_argument("--nheads", type=positive, default=8, help=DEFAULT)
    group.add_argument("--dim_feedforward", type=positive, help=DEFAULT)
    group.add_argument("--enc_layers", type=positive, default=6, help=DEFAULT)
    group.add_argument("--dec_layers", type=positive, default=6, help=DEFAULT)
    group.add_argument("--dropout", type=number(float, 0), help=DEFAULT)


def add_query_options(parser: Parser, num_queries: int) -> None:
    """Options of the detectors with one position embedding per pixel and one learned embedding per query."""
    parser.add_argument("--position_embedding", choices=("sine", "learned"), default="sine", help="of the pixels")
    parser.add_argument("--num_queries", type=number(int, 1), default=num_queries, help=f"most objects found {DEFAULT}")


def add_clustering_options(parser: Parser, smoothing_sigma: float) -> None:
    """Options of the detectors whose encoder may cluster its keys and values."""
    group = parser.add_argument_group("ENACT")
    group.add_argument(
        "--clustering",
        choices=("region", "region+", "window", "none"),
        default="region",
        help="the paper's regions, the same with --scan band and --size_bias, the released code's windows, or the plain detector "
        + DEFAULT,
    )
    group.add_argument(
        "--smoothing_sigma",
        type=number(float, 1, most=1000),
        default=smoothing_sigma,
        help=f"deviation of the Gaussian that smooths the information {DEFAULT}",
    )
    group.add_argument(
        "--scan",
        choices=("raster", "serpentine", "band", "hilbert"),
        help="order in which pixels are smoothed and cut: row by row as in the paper, there and back, in bands of rows walked "
        "column by column, or along a Hilbert curve (default: raster; of region+ band)",
    )
    group.add_argument("--band", type=number(int, 1, most=10_000), metavar="ROWS", help="of --scan band (default: follows sigma)")
    group.add_argument(
        "--size_bias", action=BooleanOptionalAction, help="a cluster counts as its pixels together (default: off; of region+ on)"
    )
    group.add_argument(
        "--cuts",
        choices=("bends", "steps"),
        default="bends",
        help="begin clusters where the information bends as in the paper, or, as many, where neighbouring keys differ most "
        + DEFAULT,
    )
    group.add_argument(
        "--capacity",
        type=capacity,
        metavar="auto|M",
        help="fixed number of clusters per image, for --compile and --export; what exceeds it joins the last one (default: exact)",
    )


def clustering_of(args: argparse.Namespace) -> dict[str, Any]:
    """The options of :func:`add_clustering_options`, by name."""
    return {name: getattr(args, name) for name in CLUSTERING}
