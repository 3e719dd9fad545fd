"""A detector that has options and no model, for tests of what reads options."""

from common.cli.arguments import add_clustering_options, add_query_options
from common.detector import Detector


def a_detector():
    """A recipe, as each detector sets it, and no model: a checkpoint's "weights" are what they reveal."""

    def add_arguments(parser):
        add_query_options(parser, num_queries=100)
        add_clustering_options(parser, smoothing_sigma=3.0)
        parser.set_defaults(
            backbone="resnet50",
            dilation=False,
            dim_feedforward=2048,
            dropout=0.1,
            batch_size=8,
            epochs=300,
            lr_drop=200,
            set_cost_class=1.0,
            cls_loss_coef=1.0,
        )

    unused = dict.fromkeys(("build_model", "build_criterion", "build_postprocess", "adapt", "export", "record"))
    return Detector(
        name="X-ENACT",
        add_arguments=add_arguments,
        reveal=lambda weights: {"num_classes": 7} | weights,
        demo={"hidden_dim": 128, "lr": 5e-4, "num_queries": 20, "image_size": 128},
        changeable=("clustering", "smoothing_sigma"),
        plain={"clustering": "none"},
        **unused,
    )


DETECTOR = a_detector()
