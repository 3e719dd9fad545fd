"""Backbones: ResNets and Swin transformers.

Shapes: B images, C channels, H x W pixels.
"""

from argparse import Namespace
from collections.abc import Mapping, Sequence
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
from .sizes import SWINS
from .swin import SwinBody, microsofts_names

SCRL_NAMES = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


class Backbone(nn.Module):
    """The stages of a ResNet or a Swin transformer.

    Args:
        name: one of :data:`BACKBONES`; ``resnet10`` is ResNet-18 with one block per stage, for small experiments.
        dilation: of a ResNet: keep the resolution of the last stage at stride 16 and dilate it (DC5).
        frozen: DETR's rule for pretrained weights: batch norm is a constant, the stem and layer1 are not trained; of a Swin
            transformer the patch embedding and the first stage. Without pretrained weights everything is trained.
        layers: the stages to return, named as those of a ResNet.
        finetune_early_layers: train the stem and layer1, or the patch embedding and the first stage, of pretrained weights, too.
        drop_path_rate: of a Swin transformer, its stochastic depth; by default that of its paper.
        recompute: of a Swin transformer, see :class:`SwinBody`.

    Constant batch norm is folded into the convolutions, that of training without pretrained weights in evaluation.

    Raises:
        UserError: a Swin transformer is to be dilated.
    """

    def __init__(
        self,
        name: str,
        dilation: bool = False,
        frozen: bool = True,
        layers: Sequence[str] = ("layer4",),
        *,
        finetune_early_layers: bool = False,
        drop_path_rate: float | None = None,
        recompute: bool = False,
    ):
        super().__init__()
        self.memory_format = torch.contiguous_format
        if name in SWINS and dilation:
            raise UserError(f"--dilation is for ResNets: pass --no-dilation with --backbone {name}")
        if name in SWINS:
            size = SWINS[name] if drop_path_rate is None else SWINS[name]._replace(stochastic_depth=drop_path_rate)
            self.body, width = SwinBody(size, layers, recompute), size.embed_dim
        else:
            self.body, width = _resnet_body(name, dilation, frozen, layers)
        self.num_channels = [width * 2 ** (int(layer[-1]) - 1) for layer in layers]
        if frozen and not finetune_early_layers:
            _freeze_early_layers(self.body)

    def forward(self, images: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        """images (B, 3, H0, W0), mask (B, H0, W0) with True = padding -> per stage (B, C, H, W) and its mask (B, H, W)."""
        features = self.body(images.contiguous(memory_format=self.memory_format))
        return [(feature, resize_mask(mask, feature.shape[-2:])) for feature in features.values()]

    def use_channels_last(self) -> None:
        """Lays images, weights and features out with the channels innermost."""
        self.memory_format = torch.channels_last
        self.to(memory_format=torch.channels_last)

    def load_pretrained(self, source: str, name: str) -> None:
        """Loads ImageNet weights.

        Args:
            source: "default" (torchvision's, as DETR used) or the path of a file: a ResNet in torchvision's or SCRL's layout, a
                Swin transformer in Microsoft's or torchvision's. None of these has the norms of a Swin's returned stages.
            name: of the network.

        Raises:
            UserError: there are none, they cannot be downloaded or read, or they are of another network.
        """
        state_dict = _default_weights(name) if source == "default" else _weights_from_file(Path(source))
        if name in SWINS:
            state_dict = microsofts_names(state_dict)
        own = {k: v for k, v in self.body.state_dict().items() if not k.endswith("num_batches_tracked")}
        needed = {k for k in own if not k.startswith("norm")}
        found = {k: v for k, v in state_dict.items() if k in own}
        # The body stops at the last stage it returns; what lies behind it is rightly left out.
        if not needed <= found.keys() or any(v.shape != own[k].shape for k, v in found.items()):
            layouts = "Microsoft's or torchvision's" if name in SWINS else "torchvision's or SCRL's"
            raise UserError(
                f"--backbone_weights {source} does not hold the weights of a {name} in {layouts} layout: pass another or 'none'"
            )
        self.body.load_state_dict(found, strict=False)


def resize_mask(mask: Tensor, size: Sequence[int]) -> Tensor:
    """mask (B, H0, W0) with True = padding, size (H, W) -> (B, H, W): each pixel is that of the mask at its upper left corner."""
    return F.interpolate(mask[None].float(), size=tuple(size))[0].bool()


def _resnet_body(name: str, dilation: bool, frozen: bool, layers: Sequence[str]) -> tuple[nn.Module, int]:
    """The stages of a ResNet up to the last of ``layers``, with folded norms, and the channels of the first one."""
    norm_layer = FoldedFrozenBatchNorm2d if frozen else FoldedBatchNorm2d
    if name == "resnet10":
        resnet = ResNet(BasicBlock, [1, 1, 1, 1], norm_layer=norm_layer)
    else:
        resnet = getattr(torchvision.models, name)(norm_layer=norm_layer)
    if dilation:
        _dilate(resnet.layer4)
    body = IntermediateLayerGetter(resnet, {layer: layer for layer in layers})
    fold_batch_norms(body)
    return body, 64 * resnet.layer4[-1].expansion


def _freeze_early_layers(body: nn.Module) -> None:
    """Leaves the stem and layer1 of a ResNet, or the patch embedding and the first stage of a Swin transformer, untrained."""
    if isinstance(body, SwinBody):
        body.freeze_early_layers()
        return
    for name, parameter in body.named_parameters():
        if not name.startswith(("layer2", "layer3", "layer4")):
            parameter.requires_grad_(False)


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
    if name in ("resnet10", "swin_l", "swin_l_w12"):  # torchvision has none
        raise UserError(f"there are no ImageNet weights for {name}: pass --backbone_weights none or a file")
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
        if "online_network_state_dict" in content:
            content = _torchvisions_names(content["online_network_state_dict"])
        elif isinstance(content.get("model"), Mapping):  # Microsoft's
            content = content["model"]
        return {k: v for k, v in content.items() if isinstance(v, Tensor)}
    except Exception as error:
        raise UserError(f"--backbone_weights {path} is not a PyTorch state dict: pass default, none or a file") from error


def _torchvisions_names(scrl: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of SCRL's encoder, a ResNet, under torchvision's names, without the heads that it was trained with."""
    renamed = {}
    for key, value in scrl.items():
        number, _, rest = key.partition("encoder.")[2].partition(".")
        if number in SCRL_NAMES:
            renamed[f"{SCRL_NAMES[number]}.{rest}"] = value
    return renamed


def build_backbone(args: Namespace, load_weights: bool, layers: Sequence[str] = ()) -> Backbone:
    """The backbone that the options name.

    Args:
        load_weights: whether to read the weights that ``--backbone_weights`` names; a checkpoint brings its own.
        layers: the stages to return; by default the one that ``--last_stage`` names.
    """
    pretrained = args.backbone_weights != "none"
    backbone = Backbone(
        args.backbone,
        args.dilation,
        frozen=pretrained,
        layers=layers or [f"layer{args.last_stage}"],
        # Options of some detectors alone.
        **{name: getattr(args, name) for name in ("finetune_early_layers", "drop_path_rate", "recompute") if hasattr(args, name)},
    )
    if pretrained and load_weights:
        backbone.load_pretrained(args.backbone_weights, args.backbone)
    return backbone
