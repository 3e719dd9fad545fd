"""What it saves to compute masks for those queries alone that need one.

    python benchmarks/speed/masks.py            # minutes on two CPU cores
    python benchmarks/speed/masks.py --quick    # a shorter look

DETR's mask head with random weights (R50, 100 queries) on one image without padding. Training needs the masks of the matched
queries, as many as there are ``--objects``, evaluation all, of which 20 are computed at once; the published code computes all at
once in both. The losses and the masks are the same, which is checked.

"head" is the mask head with its losses, forward and backward, or with the masks of the original size; "step" the whole training
step up to the gradients, "inference" the whole of detection with masks. **Memory** is the peak beyond the model, see
``lib/measure.py``; times are medians of ``--repeats`` calls, in turn.
"""

import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.lib.cli import build_parser, complete, main, save
from benchmarks.lib.measure import peak_memory, seconds
from benchmarks.lib.workload import size
from common.cli.arguments import number
from common.errors import UserError
from common.evaluation.masks import CHUNK, image_masks
from common.models.mask_head import QueryMasks
from tools.detectors import DETECTORS, options

NAME = "speed/masks"
SEGMENTERS = tuple(name for name, detector in DETECTORS.items() if "masks" in detector.architecture)
NUM_CLASSES = 91
ALL, ASKED = "all queries at once", "those that are asked for"


def everything(masks: QueryMasks, num_queries: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Masks as the published code has them: all of one image, of which some are taken."""
    query = torch.arange(num_queries, device=masks.hs.device)
    every = masks(torch.zeros_like(query), query)
    return lambda image, query: every[query]


class Workload:
    """A model with a mask head, its losses, and an image with objects.

    Args:
        args: of the command line.
        device: to measure on.
    """

    def __init__(self, args: Namespace, device: torch.device):
        self.args = options(
            args.detector, ["--masks", "--backbone_weights", "none", "--dropout", "0", "--clustering", args.clustering]
        )
        detector = DETECTORS[args.detector]
        torch.manual_seed(0)
        self.model = detector.build_model(self.args, NUM_CLASSES, False).to(device)
        self.criterion = detector.build_criterion(self.args, NUM_CLASSES).to(device)
        width, height = args.image
        self.size = (height, width)
        self.images = torch.randn(1, 3, height, width, device=device)
        self.mask = torch.zeros(1, height, width, dtype=torch.bool, device=device)
        centres, sides = torch.rand(args.objects, 2) / 2 + 0.25, torch.rand(args.objects, 2) / 4 + 0.1
        boxes = torch.cat((centres, sides), dim=1)
        self.targets = [{"boxes": boxes.to(device), "labels": torch.randint(1, NUM_CLASSES, (args.objects,), device=device)}]
        self.targets[0]["masks"] = self._inside(boxes).to(device)

    def _inside(self, boxes: Tensor) -> Tensor:
        """(n, H, W) bool: which pixels the boxes cover."""
        y, x = ((torch.arange(n) + 0.5) / n for n in self.size)
        near_x, near_y = ((x - c[:, None]).abs() < s[:, None] / 2 for x, c, s in zip((x, y), boxes.t()[:2], boxes.t()[2:]))
        return near_y[:, :, None] & near_x[:, None]

    def losses(self, outputs: dict[str, Any], form: str) -> Tensor:
        """All of them, weighted."""
        if form == ALL:
            outputs = outputs | {"masks": everything(outputs["masks"], self.args.num_queries)}
        return self.criterion(outputs, self.targets, self.criterion.count(self.targets).to(self.images.device))[0]

    def step(self, form: str) -> Tensor:
        """Forward and backward."""
        loss = self.losses(self.model.train()(self.images, self.mask), form)
        loss.backward()
        self.model.zero_grad()
        return loss.detach()

    def head_losses(self, outputs: dict[str, Any], form: str) -> None:
        """The head's part of a step, on outputs that need no gradients."""
        outputs = outputs | {"masks": replace(outputs["masks"])}  # which keeps its attention maps, and their graph
        self.losses(outputs, form).backward()
        self.model.zero_grad()

    @torch.no_grad()
    def detect(self) -> dict[str, Any]:
        """What the model returns."""
        return self.model.eval()(self.images, self.mask)

    @torch.no_grad()
    def masks(self, outputs: dict[str, Any], form: str) -> Tensor:
        """(Q, H, W) bool, of the original image, which has the same size."""
        queries = torch.arange(self.args.num_queries, device=self.images.device)
        chunk = self.args.num_queries if form == ALL else CHUNK
        return image_masks(outputs["masks"], 0, queries, self.size, self.size, self.size, chunk)


def measure(workload: Workload, repeats: int, device: torch.device) -> list[dict[str, Any]]:
    """A record for each part and form."""
    detected = workload.detect()
    runs = {
        ("training", "head"): lambda form: workload.head_losses(detected, form),
        ("training", "step"): workload.step,
        ("evaluation", "head"): lambda form: workload.masks(detected, form),
        ("evaluation", "inference"): lambda form: workload.masks(workload.detect(), form),
    }
    agree(workload, detected)
    records = []
    for (task, part), call in tqdm(runs.items(), leave=False):
        times: dict[str, list[float]] = {ALL: [], ASKED: []}
        for _ in range(repeats):
            for form, durations in times.items():
                durations.append(seconds(partial(call, form), 1, device))
        memory = {form: peak_memory(partial(call, form), device) for form in times}
        for form, durations in times.items():
            ratios = {"memory": memory[form] / memory[ALL], "time": median(durations) / median(times[ALL])}
            r = {"task": task, "part": part, "masks": form, "memory": memory[form], "time": median(durations)}
            records.append(r | {"time_rounds_s": durations, "ratios": ratios})
    return records


def agree(workload: Workload, outputs: dict[str, Any]) -> None:
    """UserError where losses or masks differ by more than rounding."""
    losses = [workload.losses(outputs, form).item() for form in (ALL, ASKED)]
    masks = [workload.masks(outputs, form) for form in (ALL, ASKED)]
    if abs(losses[0] - losses[1]) > 1e-4 * losses[0] or (masks[0] != masks[1]).float().mean() > 1e-4:
        raise UserError(f"the forms differ: losses {losses}, {(masks[0] != masks[1]).sum()} pixels: report this")


def table(records: list[dict[str, Any]]) -> str:
    lines = [f"{'':48}{'memory':>22}{'time':>20}"]
    for r in records:
        memory = f"{r['memory'] / 2**20:10.0f} MiB{r['ratios']['memory']:7.2f}x"
        lines.append(
            f"{r['task']}, {r['part']}: {r['masks']:24}".ljust(48) + f"{memory:>22}{r['time']:11.2f} s{r['ratios']['time']:6.2f}x"
        )
    return "\n".join(lines)


def parse(argv: list[str]) -> Namespace:
    parser = build_parser(NAME, __doc__, detectors=SEGMENTERS, several=False)
    positive = number(int, 1)
    parser.add_argument("--image", type=size, metavar="WxH", help="default: 1066x800; quick: 320x256")
    parser.add_argument("--objects", type=positive, default=7, help="in the image, as in COCO's on average (default: %(default)s)")
    parser.add_argument("--clustering", choices=("none", "region"), default="none", help="of the encoder (default: %(default)s)")
    parser.add_argument("--repeats", type=positive, help="calls (default: 5; quick: 1)")
    args = parser.parse_args(argv)
    args.image = args.image or ((320, 256) if args.quick else (1066, 800))
    args.repeats = args.repeats or (1 if args.quick else 5)
    return args


def run(argv: list[str]) -> None:
    args = parse(argv)
    device = complete(args)
    records = measure(Workload(args, device), args.repeats, device)
    print("\n" + table(records), flush=True)
    save(NAME, args, argv, {"units": {"memory": "bytes", "time": "s"}, "results": records})


if __name__ == "__main__":
    sys.exit(main(NAME, run, sys.argv[1:]))
