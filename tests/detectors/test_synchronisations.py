"""How often a training step and an evaluated batch wait for the GPU, counted on a CPU."""

from collections import Counter

import pytest
import torch

from common.cli.run import build_accelerator
from common.evaluation import evaluate as evaluation
from common.evaluation.evaluate import evaluate
from common.training.loop import train_one_epoch
from tests.detector_runs import tiny, waits_of_forward
from tests.synchronisations import Synchronisations, put_on_host
from tests.tiny_models import build, bytes_of
from tools.detectors import DETECTORS, options

STEPS = 1  # of two batches, or two of one


class Loader(list):
    """Batches, and what else the loop asks of a loader."""

    dataset = None


def test_a_step_and_an_evaluated_batch_wait_no_more_than_they_must(variant, dataset, monkeypatch):
    """Protects the speed on a GPU, which stands still while the host waits and then works ahead anew.

    A training step, with gradients accumulated or not, waits once per clustered encoder layer for the number of clusters, once for
    the number of polled pixels, for the costs of the matching, and for the numbers of the log. A batch of an evaluation waits for
    its detections, too.
    """
    detector, argv = variant
    layers = {"tolist": waits_of_forward(detector, argv)}
    model, criterion = build(detector, *argv, "--dilation")
    args = options(detector, tiny(detector))
    accelerator = build_accelerator(args)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    model, optimizer = accelerator.prepare(model, optimizer)
    batches = Loader([bytes_of(dataset)] * 2 * STEPS)
    put_on_host(batches)

    def times(number, waits):
        return Counter({name: number * count for name, count in waits.items()})

    recipe = {"epoch": 0, "seed": 0, "clip_max_norm": 0.1}
    for accumulate in (1, 2):
        with Synchronisations() as counted:
            train_one_epoch(model, criterion, batches, optimizer, accelerator, **recipe, accumulate=accumulate)
        steps = len(batches) // accumulate
        assert +counted.found == +times(len(batches), layers) + times(len(batches), {"cpu": 1}) + times(steps, {"tolist": 1})

    for name, result in (("coco_evaluation", None), ("numbers_of", []), ("class_precisions", {})):
        monkeypatch.setattr(evaluation, name, lambda *args, result=result: result)
    postprocess = DETECTORS[detector].build_postprocess(args)
    batches.dataset = type("Dataset", (), {"truth": None})
    with Synchronisations() as counted:
        results = evaluate(model, criterion, postprocess, batches, accelerator)[2]
    assert +counted.found == +times(len(batches), layers) + times(len(batches), {"cpu": 1, "tolist": 2})
    assert {result["image_id"] for result in results} == {target["image_id"] for target in batches[0].targets}


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x.max().item(),
        lambda x: x.tolist(),
        lambda x: x.cpu().numpy(),
        lambda x: x.sum() if x.any() else x,
        lambda x: range(x.argmax()),
        lambda x: x[x > 0],
        lambda x: x.clone().index_put_((x > 0,), torch.zeros((), device="cpu")),
        lambda x: (x > 0).nonzero(),
        lambda x: torch.where(x > 0),
        lambda x: x.masked_select(x > 0),
        lambda x: x.unique(),
        lambda x: x.repeat_interleave(x.long().clamp(min=0)),
        lambda x: torch.equal(x, x),
        lambda x: x[torch.tensor([0, 1])],
        lambda x: x + torch.ones(4),
        lambda x: torch.tensor([1.0, 2.0], device=x.device),
        lambda x: torch.ones(4).to(x.device),
        lambda x: x.new_tensor(3.0),
        lambda x: x.clone().__setitem__((x > 0).long(), 1.0),
    ],
)
def test_every_kind_of_wait_is_counted(work):
    """Protects the test above from counting nothing."""
    x = torch.tensor([1.0, -1.0, 2.0, 0.0])
    with Synchronisations() as counted:
        work(x)
    assert (+counted.found).total() == 1


@pytest.mark.parametrize(
    "work",
    [
        lambda x: (x * 2 + torch.tensor(1.0)).softmax(-1),
        lambda x: x.masked_fill(x > 0, 0.0).gather(0, x.argsort()),
        lambda x: torch.tensor([1.0, 2.0]).tolist() + torch.arange(4).nonzero().tolist(),
        lambda x: x.clone().__setitem__(slice(2), 1.0),
        lambda x: x.clone().__setitem__((x > 0).long(), x),
        lambda x: x + torch.ones(4).to(x.device, non_blocking=True) + torch.arange(4, device=x.device),
        lambda x: x.double().to(torch.float16).to(x) + x.shape[0],
        lambda x: x.requires_grad_().square().sum().backward(),
    ],
)
def test_work_that_does_not_wait_is_not_counted(work):
    """Protects the test above from bounds that nothing could keep."""
    x = torch.tensor([1.0, -1.0, 2.0, 0.0])
    with Synchronisations() as counted:
        work(x)
    assert not +counted.found
