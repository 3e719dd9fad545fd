"""Conditional-DETR-ENACT against an independent implementation and against the published names.

Shapes: L decoder layers, B images, Q queries, C classes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ConditionalDetrConfig, ConditionalDetrForObjectDetection, ResNetConfig

from common.cli.options import parse
from common.data.loading import pad_batch
from conditional_detr.recipe import DETECTOR

TINY = "--hidden_dim 32 --nheads 4 --enc_layers 2 --dec_layers 2 --dim_feedforward 64 --num_queries 10 --backbone resnet10"
CLASSES = 6


def build(text: str, num_classes: int = CLASSES) -> nn.Module:
    torch.manual_seed(0)
    return DETECTOR.build_model(parse(DETECTOR, text.split())[0], num_classes, False)


# What the library calls the parts, and Conditional DETR's own names, to be replaced in this order. Older versions of the library
# have Conditional DETR's names in the decoder, and out_proj.
RENAMED = {
    "model.input_projection": "input_proj",
    "model.query_position_embeddings": "query_embed",
    "class_labels_classifier": "class_embed",
    "bbox_predictor": "bbox_embed",
    "model.encoder.": "transformer.encoder.",
    "model.decoder.": "transformer.decoder.",
    ".decoder.layernorm": ".decoder.norm",
    ".self_attn_layer_norm": ".norm1",
    ".encoder_attn_layer_norm": ".norm2",
    ".encoder_attn.o": ".cross_attn.o",
    ".o_proj": ".out_proj",
    ".mlp.": ".",
    ".fc1": ".linear1",
    ".fc2": ".linear2",
}
PROJECTIONS = {".self_attn.": ".sa_", ".encoder_attn.": ".ca_"}


def conditional_detr_names(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The library's state dict, but for the backbone, with Conditional DETR's names."""
    ours = {}
    for name, value in theirs.items():
        if ".backbone." in name:
            continue
        for old, new in RENAMED.items():
            name = name.replace(old, new)
        name = name.replace("final_layer_norm", "norm3" if ".decoder." in name else "norm2")
        if ".decoder." in name and "out_proj" not in name:
            for old, new in PROJECTIONS.items():
                name = name.replace(f"{old}q_", f"{new}q").replace(f"{old}k_", f"{new}k").replace(f"{old}v_", f"{new}v_")
        ours[name] = value
    for name in [name for name in ours if ".encoder." in name and ".q_proj." in name]:
        parts = [ours.pop(name.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
        ours[name.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
    return ours


def transformers_conditional_detr() -> ConditionalDetrForObjectDetection:
    """Conditional DETR of the library with random weights."""
    resnet = ResNetConfig(hidden_sizes=[64, 128, 256, 512], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage4"])
    config = ConditionalDetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone_config=resnet,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_queries=10,
        num_labels=CLASSES,
    )
    torch.manual_seed(0)
    model = ConditionalDetrForObjectDetection(config).eval()
    for name, value in model.state_dict().items():
        if value.dim() > 1:
            nn.init.normal_(value, std=1 if "embeddings" in name else 2 * value[0].numel() ** -0.5)
        elif "norm" in name and name.endswith(("weight", "running_var")):
            nn.init.uniform_(value, 0.5, 1.5)
        else:
            nn.init.normal_(value, std=0.2)
    return model


@torch.no_grad()
def test_plain_conditional_detr_agrees_with_an_independent_implementation():
    """With equal weights and features of a padded batch, transformer and heads give what those of transformers do."""
    theirs = transformers_conditional_detr()
    ours = build(f"{TINY} --clustering none --dropout 0").eval()
    weights = conditional_detr_names(theirs.state_dict())
    backbone = {name: value for name, value in ours.state_dict().items() if name.startswith("backbone.")}
    ours.load_state_dict(weights | backbone)

    generator = torch.Generator().manual_seed(1)
    images, mask = pad_batch([torch.randn(3, 96, 160, generator=generator), torch.randn(3, 128, 90, generator=generator)])
    features = []
    theirs.model.input_projection.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
    expected = theirs(images, pixel_mask=(~mask).long())
    [features] = features
    found = ours.detect(ours.input_proj(features), F.interpolate(mask[None].float(), features.shape[-2:])[0].bool())
    torch.testing.assert_close(found["pred_logits"][-1], expected.logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(found["pred_boxes"][-1], expected.pred_boxes, rtol=0, atol=1e-4)
    assert min(expected.logits.std(1).mean(), expected.pred_boxes.std(1).mean()) > 5e-3, "the queries must differ"


def a_batch() -> tuple[Tensor, Tensor]:
    mask = torch.zeros(2, 64, 96, dtype=torch.bool)
    mask[1, 40:] = True
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)), mask


@torch.no_grad()
def test_reference_points_are_not_rounded_under_mixed_precision():
    """In bfloat16 they would lie on a grid, and with them the boxes and the positions that the attention looks at."""
    model, found = build(TINY).eval(), []
    nn.init.normal_(model.query_embed.weight)
    model.transformer.register_forward_hook(lambda module, inputs, out: found.append(out[1]))
    model(*a_batch())
    with torch.autocast("cpu", torch.bfloat16):
        model(*a_batch())
    single, half = found
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, single, rtol=0, atol=1e-6)
    assert (half.bfloat16().float() == half).float().mean() < 0.1


def test_a_single_decoder_layer_trains_wholly():
    """``--dec_layers 1``: what scales the positions of later layers is not trained, and all that is trained gets a gradient.

    A parameter without one stops a run of several processes.
    """
    text = f"{TINY} --dec_layers 1 --backbone_weights none"
    model, criterion = build(text).train(), DETECTOR.build_criterion(parse(DETECTOR, text.split())[0], CLASSES)
    targets = [{"labels": torch.tensor([1]), "boxes": torch.tensor([[0.4, 0.4, 0.3, 0.3]])} for _ in range(2)]
    criterion(model(*a_batch()), targets, criterion.count(targets))[0].backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad != (p.grad is not None)] == []
    assert [name for name, p in model.named_parameters() if not p.requires_grad and "query_scale" not in name] == []
