"""Tiny models with random weights of every host that `enact.patch` knows, and what they are run on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
import transformers
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torchvision.models import VisionTransformer

SIDE = 64
DETR = {
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_queries": 5,
}
HYBRID = {
    "d_model": 32,
    "encoder_hidden_dim": 32,
    "encoder_in_channels": [16, 16, 16],
    "feat_strides": [8, 16, 32],
    "encode_proj_layers": [1],
    "encoder_layers": 2,
    "encoder_ffn_dim": 32,
    "encoder_attention_heads": 2,
    "decoder_in_channels": [32, 32, 32],
    "decoder_layers": 2,
    "decoder_ffn_dim": 32,
    "decoder_attention_heads": 2,
    "num_queries": 5,
    "num_denoising": 0,
    "freeze_backbone_batch_norms": False,
}
VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": SIDE,
    "patch_size": 8,
}


@dataclass(frozen=True)
class Host:
    """A model of one library.

    Attributes:
        build: makes it, with the name of an attention implementation where transformers is the library.
        prefix: class and register tokens.
        pixels: of the sequence that its attentions see, for images of `SIDE`.
        implementations: of attention that it can be built with.
    """

    build: Callable[[str], nn.Module]
    prefix: int
    pixels: int
    implementations: tuple[str, ...] = ("",)


def build_resnet(stage: str = "stage4") -> transformers.PretrainedConfig:
    return transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic", out_features=[stage]
    )


def _hybrid_backbone(kind: str) -> transformers.PretrainedConfig:
    levels = ["stage2", "stage3", "stage4"]
    if kind == "DFine":
        return transformers.HGNetV2Config(
            stem_channels=[3, 8, 8],
            stage_in_channels=[8, 16, 16, 16],
            stage_mid_channels=[8, 8, 8, 8],
            stage_out_channels=[16, 16, 16, 16],
            hidden_sizes=[16, 16, 16, 16],
            stage_num_blocks=[1, 1, 1, 1],
            stage_numb_of_layers=[1, 1, 1, 1],
            out_features=levels,
        )
    return transformers.RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1], layer_type="basic", out_features=levels
    )


def _of_transformers(kind: str, model: str, make_options: Callable[[], dict[str, Any]], prefix: int, pixels: int) -> Host:
    def build(implementation: str) -> nn.Module:
        config = getattr(transformers, f"{kind}Config")(**make_options(), attn_implementation={"": implementation})
        return getattr(transformers, f"{kind}{model}")(config)

    return Host(build, prefix, pixels, ("eager", "sdpa"))


def _of_timm(name: str, prefix: int, **options: Any) -> Host:
    sizes = {"img_size": SIDE, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 3} | options
    return Host(lambda _: timm.create_model(name, pretrained=False, **sizes), prefix, (SIDE // 8) ** 2)


def _of_torchvision(_: str) -> nn.Module:
    model = VisionTransformer(SIDE, 8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=32, num_classes=3)
    nn.init.normal_(model.heads.head.weight)  # zero at first
    return model


def _detr(kind: str) -> Host:
    return _of_transformers(
        kind, "ForObjectDetection", lambda: {"backbone_config": build_resnet("stage2"), **DETR}, 0, (SIDE // 8) ** 2
    )


def _hybrid(kind: str) -> Host:
    options = lambda: {"backbone_config": _hybrid_backbone(kind), **HYBRID}  # noqa: E731
    return _of_transformers(kind, "ForObjectDetection", options, 0, (SIDE // 16) ** 2)


def _vit(kind: str, model: str, prefix: int, **options: Any) -> Host:
    return _of_transformers(kind, model, lambda: VIT | options, prefix, (SIDE // 8) ** 2)


HOSTS = {
    "torchvision ViT": Host(_of_torchvision, 1, (SIDE // 8) ** 2),
    "timm ViT": _of_timm("vit_small_patch16_224", 1),
    "timm DeiT": _of_timm("deit_small_distilled_patch16_224", 2),
    "timm DINOv2": _of_timm("vit_small_patch14_dinov2", 1),
    "timm DINOv2 with registers": _of_timm("vit_small_patch14_reg4_dinov2", 5),
    "timm DINOv3": _of_timm("vit_small_patch16_dinov3", 5),
    "timm EVA-02": _of_timm("eva02_tiny_patch14_224", 1),
    "ViT": _vit("ViT", "ForImageClassification", 1),
    "DINOv2": _vit("Dinov2", "ForImageClassification", 1),
    "DINOv2 with registers": _vit("Dinov2WithRegisters", "ForImageClassification", 4, num_register_tokens=3),
    "DINOv3": _vit("DINOv3ViT", "Model", 5, num_register_tokens=4),
    "DETR": _detr("Detr"),
    "Conditional DETR": _detr("ConditionalDetr"),
    "RT-DETR": _hybrid("RTDetr"),
    "RT-DETRv2": _hybrid("RTDetrV2"),
    "D-FINE": _hybrid("DFine"),
}
MASKED = ("DETR", "Conditional DETR")  # that take a pixel_mask for their attention


def build(name: str, implementation: str = "sdpa", seed: int = 0) -> nn.Module:
    """In evaluation; the weights are far enough from those of a fresh model that the attention of each layer counts."""
    torch.manual_seed(seed)
    model = HOSTS[name].build(implementation).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    model.train()(torch.randn(2, 3, SIDE, SIDE))  # the statistics of its batch norms
    return model.eval()


def outputs(model: nn.Module, images: Tensor, **inputs: Tensor) -> list[Tensor]:
    """Everything that a model gives: tensors, in order."""
    found = model(images, **inputs)
    return tree_leaves(found.to_tuple() if isinstance(found, transformers.utils.ModelOutput) else found)
