"""Which parameters an optimiser's group holds, and with which rate."""

import pytest
from torch import nn

from common.training.state import group_parameters
from tests.tiny_models import build
from tools.detectors import DETECTORS, options


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.ModuleDict({"sampling": nn.Linear(2, 3), "frozen": nn.Linear(2, 3).requires_grad_(False)})
        self.sampling = nn.Linear(2, 3)
        self.head = self.again = nn.Linear(2, 3)


def names_of(model, groups):
    names = {id(p): name for name, p in model.named_parameters()}
    return [([names[id(p)] for p in group["params"]], group["lr"]) for group in groups]


def test_a_parameter_belongs_to_the_first_expression_that_its_name_matches():
    """Protects special rates: not the last, not the longest, and each parameter once; what is not trained is in no group."""
    model = Model()
    groups = group_parameters(model, [("backbone", 1e-5), (r"sampling\.weight$", 1e-6), ("nothing", 7.0), ("", 1e-4)])
    assert names_of(model, groups) == [
        (["sampling.bias", "head.weight", "head.bias"], 1e-4),  # first: its rate is that of the log
        (["sampling.weight"], 1e-6),
        (["backbone.sampling.weight", "backbone.sampling.bias"], 1e-5),
    ]


def test_a_parameter_without_a_rate_is_an_error():
    """Protects from a parameter that nothing trains."""
    with pytest.raises(ValueError, match="no learning rate fits the parameter"):
        group_parameters(Model(), [("backbone", 1e-5)])


@pytest.mark.parametrize("weights", ["frozen", "trained"])
def test_every_trained_parameter_of_a_detector_is_in_one_group(clustered, weights):
    """Protects the recipes: the backbone has its own rate, all else the other, and nothing is left out or trained twice."""
    model, _ = build(clustered)
    if weights == "frozen":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("conv1" not in name)
    args = options(clustered, ["--lr", "1e-3", "--lr_backbone", "1e-5"])
    (others, rate), (backbone, slow) = names_of(model, group_parameters(model, DETECTORS[clustered].parameter_groups(args, 8)))
    assert (rate, slow) == (1e-3, 1e-5)
    assert sorted(others + backbone) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    assert all("backbone" in name for name in backbone) and not any("backbone" in name for name in others)
