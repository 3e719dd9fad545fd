"""What clustering does to a plain-trained encoder, without the noise of training: error of every attention, and AP as it is.

    python benchmarks/quality/fidelity.py --checkpoint CKPT...     # of plain detectors
    python benchmarks/quality/fidelity.py --task context           # of accuracy.py's plain demos, trained if need be
    python benchmarks/quality/fidelity.py --demo_seeds 42 43 44    # of several of them, whose loss of AP is averaged
    python benchmarks/quality/fidelity.py --quick

**Error.** Every image runs alone through the plain model. What each self-attention of its encoder meets there is also given to a
clustered attention with the same weights: ``||clustered - plain|| / ||plain||`` of the attention's output, over all pixels and
features, mean over the images. The layers are judged one by one: none meets the errors of those before it.

**AP as it is** is that of the same weights with clustering in all layers of the encoder (``--eval --resume --clustering``).

Three variants are yardsticks. ``uniform`` and ``random`` cut the pixels of an image into as many clusters as ``region`` finds in
that layer, but into equal parts, or anywhere. ``one`` pools all pixels, so that the encoder sees the mean of the image alone: what
AP loses then is what this model asks of its encoder.

A plain checkpoint has no probability layers: each of ``--seeds`` draws them, and the random cuts. A clustered checkpoint keeps its
own, and is compared with the plain attention of its weights. Several checkpoints of a detector and a dataset count as trainings of
one model: AP is compared with that of each one's plain attention, and all numbers are means over checkpoints and seeds.
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

import enact
from benchmarks.lib import cli
from benchmarks.lib.demos import train_all
from benchmarks.lib.measure import machine
from benchmarks.lib.models import shapes
from benchmarks.lib.seeds import named_seeds, over_seeds, spread, with_spread
from benchmarks.quality import accuracy
from benchmarks.quality.fidelity_chart import draw
from benchmarks.quality.fidelity_variants import PLAIN, VARIANTS, cutting
from common.boundary.checkpoints import load_checkpoint
from common.cli.arguments import number
from common.cli.categories import number_for_evaluation
from common.cli.device import build_accelerator
from common.cli.restore import Restored, recognise, restore
from common.data.coco import CocoDetection
from common.data.layouts import recognise as recognise_layout
from common.data.loading import Batch, build_dataset, collate, evaluation_loader
from common.data.shapes import OUTLINE, TASKS
from common.detector import Detector
from common.errors import UserError
from common.evaluation.evaluate import evaluate_all
from tools.detectors import DETECTORS

NAME = "quality/fidelity"
DEMO_SEEDS = (42,)


def attentions(model: nn.Module) -> list[str]:
    """The names of the clustered attentions, layer by layer."""
    return [name for name, m in model.named_modules() if isinstance(getattr(m, "W_prob", None), enact.EntropyClustering)]


@contextmanager
def calls_of(model: nn.Module, names: list[str]) -> Iterator[dict[str, tuple[tuple, dict, Any]]]:
    """Collects what modules were called with, and what they returned, last."""
    calls: dict[str, tuple[tuple, dict, Any]] = {}

    def keep(name: str) -> Callable:
        def hook(module: nn.Module, arguments: tuple, options: dict, output: Any) -> None:
            calls[name] = arguments, options, output

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name), with_kwargs=True) for name in names]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def features_of(output: Any) -> Tensor:
    """Of what an attention returns, with or without weights, the features."""
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def layer_errors(
    plain: nn.Module, clustered: dict[str, nn.Module], images: Iterable[Batch], generators: dict[str, torch.Generator]
) -> dict[str, list[dict[str, Any]]]:
    """Variant -> per layer the mean ``error`` and the mean number of clusters ``M``, of images one by one.

    Args:
        plain, clustered: models with the same weights, the latter by their variants.
    """
    found = {variant: [] for variant in clustered}
    names = attentions(next(iter(clustered.values())))
    with calls_of(plain, names) as calls:
        for batch in images:
            feature_size = plain(batch.images, batch.mask)["feature_size"]
            for variant, model in clustered.items():
                layers = {name: model.get_submodule(name) for name in names}
                for layer in layers.values():
                    layer.W_prob.feature_size = feature_size  # a plain attention was not told
                with cutting(VARIANTS[variant], generators[variant]):
                    found[variant].append([_error(layer, *calls[name]) for name, layer in layers.items()])
    return {
        variant: [{"error": float(error), "M": float(count)} for error, count in np.mean(rows, axis=0)]
        for variant, rows in found.items()
    }


def _error(attention: nn.Module, arguments: tuple, options: dict, output: Any) -> tuple[float, int]:
    """Relative error of a clustered attention to the output of the plain one, and the number of clusters."""
    expected = features_of(output)
    with enact.record(attention) as clusters:
        difference = features_of(attention(*arguments, **options)) - expected
    return (difference.norm() / expected.norm()).item(), clusters["W_prob"].size


def dataset_of(source: str, checkpoint: dict[str, Any], coco_path: Path | None) -> Path:
    """The dataset of a checkpoint, but for a given one; UserError where neither is known."""
    recorded = checkpoint.get("args") or {}
    if path := coco_path or recorded.get("coco_path"):
        return Path(path)
    if recorded.get("demo"):
        return shapes()
    raise UserError(f"{source} does not tell what it was trained on: pass --coco_path")


def measure(source: str, args: Namespace, device: torch.device) -> dict[str, Any]:
    """What the variants make of a checkpoint: a record per variant and seed."""
    checkpoint = load_checkpoint(source)
    detector = recognise([d for d in DETECTORS.values() if "clustering" in d.plain], checkpoint, source)
    coco_path = dataset_of(source, checkpoint, args.coco_path)

    def restored(options: tuple[str, ...], seed: int) -> Restored:
        torch.manual_seed(seed)  # of probability layers that the checkpoint lacks
        found = restore(detector, source, [*options, "--device", args.device], checkpoint)
        found.model.to(device).eval()
        return found

    plain = restored(PLAIN, 0)
    layout = recognise_layout(coco_path, plain.args.val_share, plain.args.seed)
    dataset = build_dataset(layout, "val", plain.args.image_size, plain.args.seed)
    number_for_evaluation(dataset, layout.val.name, plain.args, checkpoint)
    images = [collate([dataset[i]]).to(device) for i in range(min(args.count, len(dataset)))]
    record = {
        "detector": detector.name,
        "checkpoints": [source],
        "coco_path": coco_path,
        "AP_plain_checkpoints": [average_precision(detector, plain, dataset)],
        "variants": {variant: {"AP_seeds": [], "layers_seeds": []} for variant in args.variants},
    }
    for seed in tqdm(args.seeds, desc=f"{detector.name}, seeds", leave=False):
        models = {variant: restored(VARIANTS[variant].options, seed) for variant in args.variants}
        generators = {variant: torch.Generator().manual_seed(seed) for variant in models}
        layers = layer_errors(plain.model, {variant: found.model for variant, found in models.items()}, images, generators)
        for variant, found in models.items():
            with cutting(VARIANTS[variant], generators[variant]):
                record["variants"][variant]["AP_seeds"].append(average_precision(detector, found, dataset))
            record["variants"][variant]["layers_seeds"].append(layers[variant])
    return record


def merge(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Joins the records of a detector's checkpoints on a dataset: those of their numbers that are lists grow longer."""
    merged: dict[tuple, dict[str, Any]] = {}
    for record in records:
        key = record["detector"], record["coco_path"]
        if first := merged.get(key):
            for name in ("checkpoints", "AP_plain_checkpoints"):
                first[name] += record[name]
            for variant, found in record["variants"].items():
                for name in ("AP_seeds", "layers_seeds"):
                    first["variants"][variant][name] += found[name]
        else:
            merged[key] = record
    return [*merged.values()]


def average_precision(detector: Detector, restored: Restored, dataset: CocoDetection) -> float:
    """In %, as the command line evaluates."""
    args = restored.args
    accelerator = build_accelerator(args)
    criterion = detector.build_criterion(args, restored.num_classes).to(accelerator.device)
    loader = evaluation_loader(dataset, args.batch_size, num_workers=0, rank=0, world_size=1, pin_memory=False)
    first, *_ = evaluate_all(detector, args, restored.model, criterion, loader, accelerator).values()
    return 100 * first.stats["coco_eval_bbox"][0]


def summarise(record: dict[str, Any]) -> dict[str, Any]:
    """Adds what checkpoints and seeds have in common: ``AP_plain``; and of every variant ``AP``, the difference to plain attention,
    ``AP_to_plain``, with its spread, and of every layer ``error``, ``error_spread`` and ``M``.
    """
    plain = record["AP_plain_checkpoints"]
    record["AP_plain"] = mean(plain)
    for found in record["variants"].values():
        seeds = len(found["AP_seeds"]) // len(plain)  # of each checkpoint, one after the other
        differences = [AP - plain[i // seeds] for i, AP in enumerate(found["AP_seeds"])]
        found |= {"AP": mean(found["AP_seeds"])} | over_seeds("AP_to_plain", differences) | {"layers": []}
        for of_seeds in zip(*found["layers_seeds"], strict=True):
            errors = [layer["error"] for layer in of_seeds]
            M = mean(layer["M"] for layer in of_seeds)
            found["layers"].append({"error": mean(errors), "error_spread": spread(errors), "M": M})
    return record


def table(record: dict[str, Any]) -> str:
    """A row per variant."""
    first = next(iter(record["variants"].values()))
    layers = range(len(first["layers"]))
    title = f"{record['detector']}, {', '.join(record['checkpoints'])}, {record['coco_path']}"
    lines = [f"{title}: AP {record['AP_plain']:.1f} with plain attention"]
    lines.append(f"{'':14}{'AP as it is':>12}{'to plain':>16}" + "".join(f"{f'error, layer {i}':>18}{'M':>8}" for i in layers))
    for variant, found in record["variants"].items():
        cells = "".join(f"{with_spread(r['error'], r['error_spread'], 3):>18}{r['M']:>8.1f}" for r in found["layers"])
        loss = with_spread(found["AP_to_plain"], found["AP_to_plain_spread"])
        lines.append(f"{variant:14}{found['AP']:>12.1f}{loss:>16}{cells}")
    return "\n".join(lines)


def plain_demos(detectors: list[str], task: str, args: Namespace, seeds: Sequence[int] = DEMO_SEEDS, jobs: int = 1) -> list[str]:
    """The checkpoints of the plain demos that ``accuracy.py`` keeps, trained where they are missing, ``jobs`` at a time."""
    argv = ["--clustering", "none", "--sigmas", "--seeds", *map(str, seeds), "--task", task, "--detector", *detectors]
    chosen = accuracy.parse(argv + ["--quick"] * args.quick)
    plain = [run.demo(chosen.runs) for run in accuracy.plan(chosen)]
    train_all(plain, jobs, args.device, args.coco_path)
    return [str(demo.checkpoint) for demo in plain]


def parse(argv: list[str]) -> Namespace:
    parser = cli.build_parser(NAME, __doc__)
    positive = number(int, 1)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--checkpoint", nargs="+", metavar="CKPT", help="of this repository or published: paths or https URLs")
    where = "without --checkpoint: the built-in shapes that --detector was trained on (default: %(default)s)"
    source.add_argument("--task", choices=TASKS, default=OUTLINE, help=where)
    parser.add_argument(
        "--demo_seeds", type=number(int, 0), nargs="+", default=DEMO_SEEDS, metavar="SEED", help="of the plain demos (default: 42)"
    )
    parser.add_argument("--coco_path", type=Path, help="with --checkpoint: data in COCO's format (default: those of its training)")
    parser.add_argument("--variants", choices=VARIANTS, nargs="+", default=[*VARIANTS], help="default: all")
    parser.add_argument("--seeds", type=number(int, 0), nargs="+", metavar="SEED", help="default: 0 1 2; quick: 0")
    parser.add_argument("--count", type=positive, help="images of the errors (default: 250; quick: 10); AP is that of all")
    args = parser.parse_args(argv)
    args.seeds = args.seeds or ([0] if args.quick else [0, 1, 2])
    args.count = args.count or (10 if args.quick else 250)
    return args


def run(argv: list[str]) -> None:
    args = parse(argv)
    device = cli.complete(args)
    records = []
    if not args.checkpoint:
        args.coco_path = shapes(args.task, args.quick)
    for source in args.checkpoint or plain_demos(args.detector, args.task, args, args.demo_seeds):
        records.append(measure(source, args, device))
    records = [summarise(record) for record in merge(records)]
    print("\n" + "\n\n".join(map(table, records)))
    drawn = f"probability layers and random cuts of {named_seeds(args.seeds)}"
    caption = f"{args.count} images, {drawn}; {cli.describe(machine(device))}"
    content = {"units": {"AP": "%", "error": "relative"}, "results": records}
    trained_on = [] if args.checkpoint else [*[args.task] * (args.task != OUTLINE), *cli.named_after(args.detector)]
    cli.save(NAME, args, argv, content, figure=draw(records, caption), variant=trained_on)


if __name__ == "__main__":
    sys.exit(cli.main(NAME, run, sys.argv[1:]))
