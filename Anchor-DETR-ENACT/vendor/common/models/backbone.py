"""ResNet backbones.

Shapes: B images, C channels, H x W pixels.
"""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import BasicBlock, ResNet

from ..errors import UserError
from .folding import FoldedBatchNorm2d, FoldedFrozenBatchNorm2d, fold_batch_norms

BLOCKS = {  # per stage, and whether they are bottlenecks
    "resnet10": ((1, 1, 1, 1), False),
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
}
BACKBONES = tuple(BLOCKS)


class Backbone(nn.Module):
    """The convolutional stages of a ResNet.

    Args:
        name: one of :data:`BACKBONES`; ``resnet10`` is ResNet-18 with one block per stage, for small experiments.
        dilation: keep the resolution of the last stage at stride 16 and dilate it (DC5).
        frozen: DETR's rule for pretrained weights: batch norm is a constant, the stem and layer1 are not trained. Without
            pretrained weights everything is trained.
        layers: the stages to return.

    Constant batch norm is folded into the convolutions, that of training without pretrained weights in evaluation.
    """

    def __init__(self, name: str, dilation: bool = False, frozen: bool = True, layers: Sequence[str] = ("layer4",)):
        super().__init__()
        self.memory_format = torch.contiguous_format
        norm_layer = FoldedFrozenBatchNorm2d if frozen else FoldedBatchNorm2d
        if name == "resnet10":
            resnet = ResNet(BasicBlock, [1, 1, 1, 1], norm_layer=norm_layer)
        else:
            resnet = getattr(torchvision.models, name)(norm_layer=norm_layer)
        if dilation:
            _dilate(resnet.layer4)
        expansion = resnet.layer4[-1].expansion
        self.num_channels = [64 * expansion * 2 ** (int(layer[-1]) - 1) for layer in layers]
        self.body = IntermediateLayerGetter(resnet, {layer: layer for layer in layers})
        fold_batch_norms(self.body)
        if frozen:
            for parameter_name, parameter in self.body.named_parameters():
                if not parameter_name.startswith(("layer2", "layer3", "layer4")):
                    parameter.requires_grad_(False)

    def forward(self, images: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        """images (B, 3, H0, W0), mask (B, H0, W0) with True = padding -> per stage (B, C, H, W) and its mask (B, H, W)."""
        features = self.body(images.contiguous(memory_format=self.memory_format))
        return [(feature, F.interpolate(mask[None].float(), size=feature.shape[-2:])[0].bool()) for feature in features.values()]

    def use_channels_last(self) -> None:
        """Lays images, weights and features out with the channels innermost."""
        self.memory_format = torch.channels_last
        self.to(memory_format=torch.channels_last)

    def load_pretrained(self, source: str, name: str) -> None:
        """Loads ImageNet weights: ``source`` is "default" (torchvision's, as DETR used) or the path of a state dict.

        Raises:
            UserError: there are none, they cannot be downloaded or read, or they are of another network.
        """
        state_dict = _default_weights(name) if source == "default" else _weights_from_file(Path(source))
        state_dict = {k: v for k, v in state_dict.items() if not k.startswith("fc.")}
        ours = {k for k in self.body.state_dict() if not k.endswith("num_batches_tracked")}
        theirs = {k for k in state_dict if not k.endswith("num_batches_tracked")}
        # The body stops at the last stage it returns; what lies behind it is rightly left out.
        if not ours <= theirs or any(state_dict[k].shape != self.body.state_dict()[k].shape for k in ours):
            raise UserError(f"--backbone_weights {source} does not hold the weights of a {name}")
        self.body.load_state_dict({k: state_dict[k] for k in ours}, strict=False)


def _dilate(stage: nn.Module) -> None:
    """Takes the stride out of a stage and dilates every 3x3 convolution behind it, so that each sees the same pixels as before."""
    behind = False
    for block in stage:
        for conv in [m for m in block.modules() if isinstance(m, nn.Conv2d)]:
            if conv.kernel_size == (3, 3) and behind:
                conv.dilation = conv.padding = (2, 2)
            if conv.stride == (2, 2):
                conv.stride = (1, 1)
                behind = True


def _default_weights(name: str) -> dict[str, Tensor]:
    if name == "resnet10":
        raise UserError("there are no ImageNet weights for resnet10: pass --backbone_weights none or a file")
    try:
        return torchvision.models.get_model_weights(name).IMAGENET1K_V1.get_state_dict(check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"the ImageNet weights of {name} could not be downloaded ({error}): "
            "check the network, or pass a file or 'none' with --backbone_weights"
        ) from error


def _weights_from_file(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return {k: v for k, v in content.items() if isinstance(v, Tensor)}
    except Exception as error:
        raise UserError(f"--backbone_weights {path} is not a PyTorch state dict: pass default, none or a file") from error


def build_backbone(args: Namespace, load_weights: bool, layers: Sequence[str] = ()) -> Backbone:
    """The backbone that the options name.

    Args:
        load_weights: whether to read the weights that ``--backbone_weights`` names; a checkpoint brings its own.
        layers: the stages to return; by default the one that ``--last_stage`` names.
    """
    pretrained = args.backbone_weights != "none"
    backbone = Backbone(args.backbone, args.dilation, frozen=pretrained, layers=layers or [f"layer{args.last_stage}"])
    if pretrained and load_weights:
        backbone.load_pretrained(args.backbone_weights, args.backbone)
    return backbone
