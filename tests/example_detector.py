"""A detector that has options and no model, for tests of what reads options."""

from common.detector import ARCHITECTURE, Detector
from detr.options import add_arguments


def a_detector():
    """DETR's options, and no model: a checkpoint's "weights" are what they reveal."""
    unused = dict.fromkeys(("build_model", "build_criterion", "build_postprocess", "adapt", "export", "record"))
    return Detector(
        name="X-ENACT",
        add_arguments=add_arguments,
        reveal=lambda weights: {"num_classes": 7} | weights,
        demo={"hidden_dim": 128, "lr": 5e-4, "num_queries": 20, "image_size": 128},
        architecture=(*ARCHITECTURE, "masks"),
        changeable=("clustering", "smoothing_sigma"),
        plain={"clustering": ("none", "W_prob")},
        **unused,
    )


DETECTOR = a_detector()
