"""Swin transformers (Liu et al., ICCV 2021): torchvision's blocks under the names of Microsoft's published weights.

Shapes: B images, C channels, H x W pixels of a feature map, n pixels of a window.
"""

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from torchvision.ops import StochasticDepth

from .sizes import Size

PATCH = 4

NAMES = {  # of torchvision's parts -> Microsoft's
    "features.0.0": "patch_embed.proj",
    "features.0.2": "patch_embed.norm",
    **{f"features.{2 * stage + 1}": f"layers.{stage}.blocks" for stage in range(4)},
    **{f"features.{2 * stage + 2}": f"layers.{stage}.downsample" for stage in range(3)},
}


class SwinBody(nn.Module):
    """The stages of a Swin transformer, each returned one through a layer norm of its own.

    Like torchvision's network, it leaves out the shift of the windows along a side on which the map is one window long.

    Args:
        size: of the network.
        layers: the stages to return, "layer1" (stride 4) to "layer4" (stride 32), as those of a ResNet; what lies behind the last
            of them is left out.
        recompute: keep of each block its input alone, and run it again on the way back.
    """

    def __init__(self, size: Size, layers: Sequence[str], recompute: bool = False):
        super().__init__()
        self.recompute = recompute
        swin = SwinTransformer(
            patch_size=[PATCH, PATCH],
            embed_dim=size.embed_dim,
            depths=list(size.depths),
            num_heads=list(size.num_heads),
            window_size=[size.window, size.window],
            stochastic_depth_prob=size.stochastic_depth,
        ).features
        returned = [int(layer.removeprefix("layer")) - 1 for layer in layers]
        self.patch_embed = nn.Sequential(OrderedDict(zip(("proj", "permute", "norm"), swin[0])))
        self.layers = nn.ModuleList()
        for stage in range(max(returned) + 1):
            blocks = swin[2 * stage + 1]
            for block in blocks:
                _rename(block)
            self.layers.append(nn.ModuleDict({"blocks": blocks}))
            if stage < max(returned):
                self.layers[stage]["downsample"] = swin[2 * stage + 2]
        for stage in sorted(returned):
            self.add_module(f"norm{stage}", nn.LayerNorm(size.embed_dim * 2**stage))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """images (B, 3, H0, W0) -> per returned stage its name and features (B, C, H, W); sides are rounded up at each halving."""
        height, width = images.shape[-2:]
        x = self.patch_embed(F.pad(images, (0, -width % PATCH, 0, -height % PATCH)))  # (B, H, W, C) from here on
        features = {}
        for stage, layer in enumerate(self.layers):
            for block in layer["blocks"]:
                again = self.recompute and self.training and torch.is_grad_enabled()
                x = checkpoint(block, x, use_reentrant=False) if again else block(x)
            if hasattr(self, f"norm{stage}"):
                features[f"layer{stage + 1}"] = getattr(self, f"norm{stage}")(x).permute(0, 3, 1, 2)
            if "downsample" in layer:
                x = layer["downsample"](x)
        return features

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Leaves the network as it is.

        Padding to whole windows in every block makes the sizes of the maps such nested expressions of an image's size that
        torch.compile does not get through them in minutes where that size may be any.
        """

    def freeze_early_layers(self) -> None:
        """Makes constants of the patch embedding and the first stage with its merging: no gradient, and no branch is left out."""
        for part in (self.patch_embed, self.layers[0]):
            part.requires_grad_(False)
            for module in part.modules():
                if isinstance(module, StochasticDepth):
                    module.p = 0.0  # rather than eval(), which train() of the whole model would undo


def _rename(block: SwinTransformerBlock) -> None:
    """Gives the parts of a block Microsoft's names and shapes, in place; torchvision's code takes them as well."""
    fc1, act, _, fc2, _ = block.mlp  # the others are dropouts, which the published networks do not have
    block.mlp = nn.Sequential(OrderedDict(fc1=fc1, act=act, fc2=fc2))
    block.attn.relative_position_index = _square(block.attn.relative_position_index)


def _square(index: Tensor) -> Tensor:
    """(n * n,) -> (n, n)"""
    return index.reshape(isqrt(index.numel()), -1)


def microsofts_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of torchvision's network under Microsoft's names; what has other names comes back as it is."""
    renamed = {}
    for key, value in state_dict.items():
        part = re.match(r"features\.(0\.)?\d+", key)
        if part and part[0] in NAMES:
            key = NAMES[part[0]] + key[part.end() :].replace(".mlp.0.", ".mlp.fc1.").replace(".mlp.3.", ".mlp.fc2.")
            if key.endswith("relative_position_index"):
                value = _square(value)
        renamed[key] = value
    return renamed
