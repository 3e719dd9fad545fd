"""What a run says of an evaluation in its line."""

from common.evaluation.evaluate import Evaluation
from common.output.files import summaries


def evaluation(**stats) -> Evaluation:
    return Evaluation(stats, {}, [], {}, {})


def test_where_there_is_nothing_to_find_there_is_no_precision():
    """Protects from a line with a gap, of a validation split without objects; sizes that it lacks are left out alone."""
    nothing, some = [-1.0] * 12, [0.5, 0.75, 0.25, -1.0, 0.125, -1.0] + [0.0] * 6
    assert summaries({"": evaluation(coco_eval_bbox=nothing)}) == ["no objects, so no precision"]
    assert summaries({"": evaluation(coco_eval_bbox=some)}) == ["AP 0.500, AP50 0.750, AP75 0.250, APm 0.125"]
    assert summaries({"last": evaluation(coco_eval_bbox=nothing)}) == ["last: no objects, so no precision"]
