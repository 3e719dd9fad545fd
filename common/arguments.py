"""The command line, the same for every detector."""

import argparse
from argparse import ArgumentTypeError, BooleanOptionalAction
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from .backbone import BACKBONES
from .errors import UserError

# Options that the shape of a checkpoint's weights depends on, whatever the detector: they are read from it.
ARCHITECTURE = (
    "backbone",
    "dilation",
    "last_stage",
    "position_embedding",
    "hidden_dim",
    "nheads",
    "dim_feedforward",
    "enc_layers",
    "dec_layers",
    "num_queries",
)
# Options of one call, which a resumed run does not take over from the one before.
OF_A_CALL = {
    *("coco_path", "demo", "eval", "export", "predict", "information", "score_threshold", "resume", "finetune", "output_dir"),
    *("device", "num_workers", "channels_last", "compile", "cache_mode"),
}
# Options that belong to a checkpoint's model and may still be changed when it is used.
HABITS = ("clustering", "smoothing_sigma", "backbone_weights", "image_size")


class Parser(argparse.ArgumentParser):
    """Reports mistakes as one sentence."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")


def number(kind: type, least: float, exclusive: bool = False) -> Callable[[str], Any]:
    """An argparse type: an int or float of at least (or above) ``least``."""

    def convert(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not (value > least if exclusive else value >= least):
            whole = "a whole number" if kind is int else "a number"
            raise ArgumentTypeError(f"{text!r} is not {whole} {'above' if exclusive else 'of at least'} {least:g}")
        return value

    return convert


def common_parser(name: str) -> Parser:
    """All options that the detectors share; each detector adds its own and sets its recipe as defaults."""
    parser = Parser(prog=f"{name}/main.py", description=f"Train, evaluate and use {name}.", allow_abbrev=False)
    positive = number(int, 1)

    what = parser.add_argument_group("what to do (default: train)")
    what.add_argument("--coco_path", type=Path, help="folder with train2017/, val2017/ and annotations/ in COCO's format")
    what.add_argument("--demo", action="store_true", help="a small model and a short schedule on the built-in shapes dataset")
    what.add_argument("--eval", action="store_true", help="evaluate the checkpoint given with --resume")
    what.add_argument("--predict", type=Path, nargs="+", metavar="PATH", help="images or folders to draw detections on")
    what.add_argument("--information", action="store_true", help="with --predict: the self-information map beside each image")
    what.add_argument("--score_threshold", type=float, default=0.5, help="with --predict: least score of a box that is drawn")
    what.add_argument("--resume", metavar="CKPT", help="checkpoint to continue, evaluate or predict with: a path or https URL")
    what.add_argument("--export", type=Path, metavar="PATH", help="write the resumed checkpoint under the published names")
    what.add_argument("--finetune", metavar="CKPT", help="checkpoint to start from, at epoch 0 and with any classes")
    what.add_argument("--output_dir", type=Path, default=Path("runs") / name, help="for all that is written (default: %(default)s)")

    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda if there is one, else cpu")
    machine.add_argument("--amp", choices=("no", "bf16", "fp16"), default="no", help="mixed precision (default: %(default)s)")
    machine.add_argument("--num_workers", type=number(int, 0), default=2, help="processes that load images (default: %(default)s)")
    machine.add_argument("--cache_mode", action="store_true", help="read the image files once and keep them in memory")
    machine.add_argument("--channels_last", action=BooleanOptionalAction, default=False, help="memory format of the backbone")
    machine.add_argument("--compile", action="store_true", help="torch.compile of the backbone and the decoder layers")
    machine.add_argument("--seed", type=number(int, 0), default=42)

    recipe = parser.add_argument_group("recipe")
    recipe.add_argument("--epochs", type=positive)
    recipe.add_argument("--batch_size", type=positive, help="images per step and GPU")
    recipe.add_argument("--accumulate", type=positive, default=1, help="batches per optimiser step (default: %(default)s)")
    recipe.add_argument(
        "--bucket", action=BooleanOptionalAction, default=False, help="batches of images of similar shape, which need less padding"
    )
    recipe.add_argument("--lr", type=number(float, 0), default=5e-5)
    recipe.add_argument("--lr_backbone", type=number(float, 0), default=1e-5)
    recipe.add_argument("--lr_drop", type=positive, help="epochs after which the learning rates are divided by 10")
    recipe.add_argument("--weight_decay", type=number(float, 0), default=1e-4)
    recipe.add_argument("--clip_max_norm", type=number(float, 0), default=0.1, help="gradient norm; 0: no clipping")
    recipe.add_argument(
        "--image_size", type=number(int, 32), default=800, help="shortest side at evaluation, which DETR's training scales follow"
    )
    recipe.add_argument("--no_aux_loss", action="store_true", help="a loss on the last decoder layer only")
    recipe.add_argument("--set_cost_class", type=number(float, 0))
    recipe.add_argument("--set_cost_bbox", type=number(float, 0), default=5.0)
    recipe.add_argument("--set_cost_giou", type=number(float, 0), default=2.0)
    recipe.add_argument("--cls_loss_coef", type=number(float, 0))
    recipe.add_argument("--bbox_loss_coef", type=number(float, 0), default=5.0)
    recipe.add_argument("--giou_loss_coef", type=number(float, 0), default=2.0)

    model = parser.add_argument_group("model")
    model.add_argument(
        "--clustering",
        choices=("region", "window", "none"),
        default="region",
        help="ENACT: the paper's regions, the released code's windows, or the plain detector",
    )
    model.add_argument("--smoothing_sigma", type=number(float, 1), help="deviation of the Gaussian that smooths the information")
    model.add_argument("--backbone", choices=BACKBONES)
    model.add_argument("--backbone_weights", default="default", metavar="default|none|PATH", help="ImageNet weights or none")
    model.add_argument("--dilation", action=BooleanOptionalAction, help="dilate the last stage (DC5)")
    model.add_argument("--last_stage", type=int, choices=(2, 3, 4), default=4, help="ResNet stage whose features are used: 4 is C5")
    model.add_argument("--hidden_dim", type=positive, default=256)
    model.add_argument("--nheads", type=positive, default=8)
    model.add_argument("--dim_feedforward", type=positive)
    model.add_argument("--enc_layers", type=positive, default=6)
    model.add_argument("--dec_layers", type=positive, default=6)
    model.add_argument("--dropout", type=number(float, 0))
    return parser


def add_query_options(parser: Parser, num_queries: int) -> None:
    """Options of the detectors with one position embedding per pixel and one learned embedding per query."""
    parser.add_argument("--position_embedding", choices=("sine", "learned"), default="sine", help="of the pixels")
    parser.add_argument("--num_queries", type=number(int, 1), default=num_queries, help="most objects found (default: %(default)s)")


def parse(parser: Parser, demo: dict[str, Any], argv: list[str] | None) -> tuple[argparse.Namespace, set[str]]:
    """Parses the command line; with ``--demo`` its values stand in for the defaults.

    Returns:
        The options, and the names of those that the user gave.
    """
    not_given = object()
    blank = argparse.Namespace(**dict.fromkeys(vars(parser.parse_args([])), not_given))
    explicit = {k: v for k, v in vars(parser.parse_args(argv, blank)).items() if v is not not_given}
    defaults = vars(parser.parse_args([])) | (demo if explicit.get("demo") else {})
    return argparse.Namespace(**defaults | explicit), set(explicit)


def check(args: argparse.Namespace) -> None:
    """Raises UserError where options contradict each other."""
    chosen = [f"--{name}" for name in ("eval", "predict", "export") if getattr(args, name)]
    if len(chosen) > 1:
        raise UserError(f"{' and '.join(chosen)} are different runs: choose one")
    if chosen and not args.resume:
        raise UserError(f"{chosen[0]} needs weights: pass a checkpoint with --resume")
    if args.resume and args.finetune:
        raise UserError("--resume continues a run and --finetune starts one: choose one")
    if not (args.coco_path or args.demo or args.predict or args.export):
        raise UserError("no data: pass --coco_path with a dataset in COCO's format, or --demo for the built-in one")
    if args.hidden_dim % args.nheads or args.hidden_dim % 4:
        raise UserError(f"--hidden_dim {args.hidden_dim} must be divisible by 4 and by --nheads {args.nheads}")
    if args.dilation and args.last_stage != 4:
        raise UserError(f"--dilation dilates stage 4, which --last_stage {args.last_stage} leaves out: choose one")
    if args.dropout >= 1:
        raise UserError(f"--dropout {args.dropout} must be below 1")


def follow_checkpoint(
    args: argparse.Namespace,
    explicit: set[str],
    checkpoint: dict[str, Any],
    revealed: dict[str, Any],
    path: str,
    architecture: tuple[str, ...],
) -> None:
    """Takes options over from the checkpoint: those that shape the model, and to resume a run of this repository all its others.

    Args:
        args: changed in place.
        explicit: names of the options that the user gave.
        checkpoint: with the options that it was trained with under ``args``, as far as it has them.
        revealed: the options that its weights tell.
        path: of the checkpoint, for messages.
        architecture: the options that shape the model.

    Raises:
        UserError: an option that shapes the model was given on the command line with another value.
    """
    recorded = checkpoint.get("args") or {}
    for name in architecture:
        known = revealed.get(name, recorded.get(name))
        if known is None or name in explicit and getattr(args, name) == known:
            continue
        if name in explicit:
            raise UserError(f"--{name} {getattr(args, name)} contradicts the checkpoint {path}, which has {name} {known}")
        setattr(args, name, known)
    resumed = args.resume and "detector" in checkpoint
    options = revealed | recorded
    for name in vars(args).keys() - OF_A_CALL - {*architecture} if resumed else HABITS:
        if name in options and name not in explicit:
            setattr(args, name, options[name])
