"""From a model's outputs to detections, against a direct computation in plain Python."""

import math
from functools import partial

import pytest
import torch

from common.evaluation.postprocess import PostProcess, sigmoid_detections, softmax_detections

LAYERS, BATCH, QUERIES, CLASSES = 2, 3, 5, 4
SIZES = torch.tensor([[480, 640], [100, 30], [7, 9]])  # heights and widths


def outputs_of(num_logits):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(LAYERS, BATCH, QUERIES, num_logits, generator=generator)
    return {"pred_logits": logits, "pred_boxes": torch.rand(LAYERS, BATCH, QUERIES, 4, generator=generator)}


def assert_detections(detections, expected):
    """expected: per image a list of (score, label, cxcywh)."""
    assert len(detections) == BATCH
    for detection, rows, (height, width) in zip(detections, expected, SIZES.tolist()):
        corners = [(cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2) for _, _, (cx, cy, w, h) in rows]
        boxes = [[x0 * width, y0 * height, x1 * width, y1 * height] for x0, y0, x1, y1 in corners]
        torch.testing.assert_close(detection["scores"], torch.tensor([score for score, _, _ in rows]))
        torch.testing.assert_close(detection["boxes"], torch.tensor(boxes))
        assert detection["labels"].tolist() == [label for _, label, _ in rows]


def test_softmax_detections_equal_the_direct_computation():
    """Protects DETR's rule: every query is a detection of its best class, also where 'no object' is likelier."""
    outputs = outputs_of(CLASSES + 1)
    expected = []
    for logits, boxes in zip(outputs["pred_logits"][-1].tolist(), outputs["pred_boxes"][-1].tolist()):
        rows = []
        for query in range(QUERIES):
            exponentials = [math.exp(x) for x in logits[query]]
            probabilities = [x / sum(exponentials) for x in exponentials[:-1]]
            score = max(probabilities)
            rows.append((score, probabilities.index(score), boxes[query]))
        expected.append(rows)
    assert_detections(PostProcess(softmax_detections)(outputs, SIZES), expected)


@pytest.mark.parametrize("k", [6, 100])
def test_sigmoid_detections_equal_the_direct_computation(k):
    """Protects the sigmoid detectors' rule: the best pairs of query and class, in order, a query more than once if need be."""
    outputs = outputs_of(CLASSES)
    expected = []
    for logits, boxes in zip(outputs["pred_logits"][-1].tolist(), outputs["pred_boxes"][-1].tolist()):
        pairs = [(1 / (1 + math.exp(-logits[q][c])), c, boxes[q]) for q in range(QUERIES) for c in range(CLASSES)]
        expected.append(sorted(pairs, key=lambda pair: -pair[0])[:k])
    detections = PostProcess(partial(sigmoid_detections, k=k))(outputs, SIZES)
    assert [len(d["scores"]) for d in detections] == [min(k, QUERIES * CLASSES)] * BATCH
    assert_detections(detections, expected)
