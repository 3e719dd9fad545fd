"""DETR-ENACT against an independent implementation and against the published checkpoints.

Shapes: L decoder layers, B images, N pixels, Q queries, d features, h heads.
"""

import math
import re
from argparse import Namespace
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn
from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

from common.cli.options import parse
from common.data.loading import pad_batch
from detr.checkpoint import adapt, export
from detr.recipe import DETECTOR
from enact import ClusteredAttention

TINY = "--hidden_dim 32 --nheads 4 --enc_layers 2 --dec_layers 2 --dim_feedforward 64 --num_queries 10 --backbone resnet10"
CLASSES = 6


def options(text: str) -> Namespace:
    return parse(DETECTOR, text.split())[0]


def build(text: str, num_classes: int = CLASSES) -> nn.Module:
    torch.manual_seed(0)
    return DETECTOR.build_model(options(text), num_classes, False)


def padded_batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return pad_batch([torch.randn(3, 96, 160, generator=generator), torch.randn(3, 128, 90, generator=generator)])


# What the library calls the parts of DETR, and DETR's own names; to be replaced in this order. Older versions of the library have
# a conv_encoder and no mlp in their names, and out_proj.
RENAMED = {
    ".conv_encoder.": ".",
    "model.backbone.model.embedder.embedder.convolution": "backbone.0.body.conv1",
    "model.backbone.model.embedder.embedder.normalization": "backbone.0.body.bn1",
    **{f"model.backbone.model.encoder.stages.{i}.layers": f"backbone.0.body.layer{i + 1}" for i in range(4)},
    **{f".layer.{i}.convolution": f".conv{i + 1}" for i in range(2)},
    **{f".layer.{i}.normalization": f".bn{i + 1}" for i in range(2)},
    ".shortcut.convolution": ".downsample.0",
    ".shortcut.normalization": ".downsample.1",
    "model.backbone.position_embedding": "backbone.1",
    "model.position_embedding": "backbone.1",
    ".row_embeddings": ".row_embed",
    ".column_embeddings": ".col_embed",
    "model.input_projection": "input_proj",
    "model.query_position_embeddings": "query_embed",
    "class_labels_classifier": "class_embed",
    "bbox_predictor": "bbox_embed",
    "model.encoder.": "transformer.encoder.",
    "model.decoder.": "transformer.decoder.",
    ".decoder.layernorm": ".decoder.norm",
    ".self_attn_layer_norm": ".norm1",
    ".encoder_attn_layer_norm": ".norm2",
    ".encoder_attn.": ".multihead_attn.",
    ".o_proj": ".out_proj",
    ".mlp.": ".",
    ".fc1": ".linear1",
    ".fc2": ".linear2",
}


def detr_names(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The library's state dict with DETR's names; query, key and value projections become one."""
    ours = {}
    for name, value in theirs.items():
        for old, new in RENAMED.items():
            name = name.replace(old, new)
        ours[name.replace("final_layer_norm", "norm3" if ".decoder." in name else "norm2")] = value
    for name in [name for name in ours if ".q_proj." in name]:
        parts = [ours.pop(name.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
        ours[name.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
    return ours


def transformers_detr(position_embedding: str) -> DetrForObjectDetection:
    """DETR of the library; all its weights and batch norm statistics are random."""
    resnet = ResNetConfig(hidden_sizes=[64, 128, 256, 512], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage4"])
    config = DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone_config=resnet,
        position_embedding_type=position_embedding,
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
    model = DetrForObjectDetection(config).eval()
    for name, value in model.state_dict().items():
        if value.dim() > 1:
            gain = 3 if "coder.layers" in name else 1  # attention that is not uniform
            nn.init.normal_(value, std=1 if "embeddings" in name else gain * value[0].numel() ** -0.5)
        elif "norm" in name and name.endswith(("weight", "running_var")):
            nn.init.uniform_(value, 0.5, 1.5)
        else:
            nn.init.normal_(value, std=0.2)
    return model


@torch.no_grad()
def layer_outputs(model: DetrForObjectDetection, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Class logits (L, B, Q, C + 1) and boxes (L, B, Q, 4) of every decoder layer of the library's model.

    Taken from its layers: with ``auxiliary_loss`` newer versions feed the normalised output of a layer to the next, which
    DETR does not.
    """
    states = []
    hooks = [
        layer.register_forward_hook(lambda _, inputs, out: states.append(out[0] if isinstance(out, tuple) else out))
        for layer in model.model.decoder.layers
    ]
    last = model(images, pixel_mask=(~mask).long())
    for hook in hooks:
        hook.remove()
    hs = model.model.decoder.layernorm(torch.stack(states))
    logits, boxes = model.class_labels_classifier(hs), model.bbox_predictor(hs).sigmoid()
    torch.testing.assert_close(logits[-1], last.logits)
    torch.testing.assert_close(boxes[-1], last.pred_boxes)
    return logits, boxes


@pytest.mark.parametrize("position_embedding", ["sine", "learned"])
def test_plain_detr_agrees_with_an_independent_implementation(position_embedding):
    """With equal weights and a padded batch, backbone, positions, transformer and heads give what those of transformers do."""
    theirs = transformers_detr(position_embedding)
    ours = build(f"{TINY} --clustering none --dropout 0 --position_embedding {position_embedding}")
    ours.load_state_dict(detr_names(theirs.state_dict()))
    images, mask = padded_batch()
    logits, boxes = layer_outputs(theirs, images, mask)

    with torch.no_grad():
        last, layers = ours.eval()(images, mask), ours.train()(images, mask)
    torch.testing.assert_close(layers["pred_logits"], logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(layers["pred_boxes"], boxes, rtol=0, atol=1e-4)
    torch.testing.assert_close(last["pred_logits"], logits[-1:], rtol=0, atol=1e-4)
    torch.testing.assert_close(last["pred_boxes"], boxes[-1:], rtol=0, atol=1e-4)
    assert min(logits.std(2).min(), boxes.std(2).min()) > 1e-3, "the weights must be such that the queries differ"


def library_names(ours: dict[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """The inverse of :func:`detr_names`, for the names that the library wants."""
    theirs = {}
    for name in names:
        part = re.search(r"\.([qkv])_proj\.", name)
        stand_in = name if part is None else name.replace(f".{part[1]}_proj.", ".q_proj.")
        renamed = {stand_in.replace(".q_proj.", f".{p}_proj."): torch.empty(0) for p in ("qkv" if part else "q")}
        [our_name] = detr_names(renamed)
        theirs[name] = ours[our_name] if part is None else ours[our_name].chunk(3)["qkv".index(part[1])]
    return theirs


@torch.no_grad()
def test_an_exported_detr_loads_into_transformers():
    """Exported weights have DETR's names: renamed for the library, all of them load there and give the same outputs."""
    theirs = transformers_detr("sine")
    ours = build(f"{TINY} --clustering none --dropout 0").eval()
    exported = export(ours.state_dict(), 4)
    theirs.load_state_dict(library_names(exported, theirs.state_dict()))
    images, mask = padded_batch()
    logits, boxes = layer_outputs(theirs, images, mask)
    outputs = ours(images, mask)
    torch.testing.assert_close(outputs["pred_logits"], logits[-1:], rtol=0, atol=1e-4)
    torch.testing.assert_close(outputs["pred_boxes"], boxes[-1:], rtol=0, atol=1e-4)


def test_own_checkpoints_are_left_as_they_are():
    """What this repository wrote goes through the same adapter and comes out unchanged."""
    weights = build(f"{TINY} --clustering region").state_dict()
    adapted = adapt(weights, 4)
    assert adapted.keys() == weights.keys()
    assert all(adapted[name] is value for name, value in weights.items())


def released_attention(weights: dict[str, Tensor], key: Tensor, value: Tensor, sigma: float, heads: int) -> tuple[Tensor, int]:
    """The released attention written out for one image (N, d): queries are the keys; logits are unscaled, the output is divided.

    Returns:
        The output (N, d), and the length of the windows.
    """

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    n, d = key.shape
    p = linear("W_prob", key).flatten().softmax(0) + 1e-8
    information = (-p * p.log2()).tolist()
    radius = int(3 * sigma) - 1
    gaussian = {x: math.exp(-x * x / (2 * sigma**2)) / (math.sqrt(2 * math.pi) * sigma) for x in range(-radius, radius + 1)}
    smoothed = [sum(w * information[i + x] for x, w in gaussian.items() if 0 <= i + x < n) for i in range(n)]
    smoothed = [0.0, *smoothed, 0.0]  # both convolutions are padded with zeros
    bends = [2 * smoothed[i] - smoothed[i - 1] - smoothed[i + 1] > 0 for i in range(1, n + 1)]
    regions = 1 + sum(a != b for a, b in zip(bends, bends[1:]))
    length = round(n / regions)

    clustered_key, clustered_value = [], []
    for start in range(n % length // 2, n - length + 1, length):
        window = slice(start, start + length)
        share = torch.tensor(smoothed[1:-1][window], dtype=key.dtype).softmax(0)
        clustered_key.append(share @ key[window])
        clustered_value.append(share @ value[window])
    assert len(clustered_key) == n // length

    q, k = linear("W_q", key), linear("W_k", torch.stack(clustered_key))
    v = linear("W_v", torch.stack(clustered_value))
    width = d // heads
    parts = [slice(i * width, (i + 1) * width) for i in range(heads)]
    out = torch.cat([(q[:, c] @ k[:, c].T).softmax(-1) @ v[:, c] / width for c in parts], dim=-1)
    return linear("W_o", out), length


@pytest.mark.parametrize("n", [47, 94])
def test_the_released_attention_is_reproduced(n):
    """Converted weights and windows give what the released code's formula gives, its missing scale included."""
    d, heads, sigma = 32, 8, 3.0
    generator = torch.Generator().manual_seed(n)
    weights = {}
    for name in ("W_q", "W_k", "W_v", "W_o", "W_prob"):
        rows = 1 if name == "W_prob" else d
        weights[f"{name}.weight"] = torch.randn(rows, d, generator=generator, dtype=torch.float64) / math.sqrt(d)
        weights[f"{name}.bias"] = torch.randn(rows, generator=generator, dtype=torch.float64)
    key = torch.randn(n, d, generator=generator, dtype=torch.float64)
    value = torch.randn(n, d, generator=generator, dtype=torch.float64)
    expected, length = released_attention(weights, key, value, sigma, heads)
    assert length > 1 and n % length > 0, "the case must have windows of several pixels, and pixels that are dropped"

    prefix = "transformer.encoder.layers.0.self_attn."
    adapted = adapt({prefix + name: value for name, value in weights.items()}, heads)
    attention = ClusteredAttention(d, heads, batch_first=True, clustering="window", smoothing_sigma=sigma, dtype=torch.float64)
    attention.load_state_dict({name.removeprefix(prefix): value for name, value in adapted.items()})
    out, _ = attention(key[None], key[None], value[None])
    torch.testing.assert_close(out[0], expected, rtol=0, atol=1e-10)


def test_pre_norm_trains():
    """``--pre_norm`` normalises before each part and once more behind the encoder; a step reaches every weight and changes it."""
    args = options(f"{TINY} --backbone_weights none --pre_norm")
    model = build(f"{TINY} --backbone_weights none --pre_norm").train()
    assert isinstance(model.transformer.encoder.norm, nn.LayerNorm)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    images, mask = padded_batch()
    targets = [
        {"labels": torch.tensor([1, 4]), "boxes": torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.7, 0.6, 0.4, 0.5]])},
        {"labels": torch.tensor([2]), "boxes": torch.tensor([[0.5, 0.5, 0.6, 0.2]])},
    ]
    criterion = DETECTOR.build_criterion(args, CLASSES)
    loss, _ = criterion(model(images, mask), targets, criterion.count(targets))
    loss.backward()
    torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2).step()
    assert loss.isfinite()
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name]) or not p.isfinite().all()] == []


def test_dc5_doubles_the_feature_map():
    """With ``--dilation`` the last stage keeps stride 16; the weights are the same."""
    images, mask = padded_batch()
    sizes = {}
    for option in ("--no-dilation", "--dilation"):
        model = build(f"{TINY} {option}").eval()
        sizes[option] = model(images, mask)["feature_size"]
    assert sizes == {"--no-dilation": (4, 5), "--dilation": (8, 10)}


def test_auxiliary_outputs_are_for_training_alone():
    """Every decoder layer predicts in training, the last one alone in evaluation and with ``--no_aux_loss``."""
    images, mask = padded_batch()
    plain, without = build(f"{TINY} --dec_layers 3"), build(f"{TINY} --dec_layers 3 --no_aux_loss")
    assert plain.train()(images, mask)["pred_logits"].shape == (3, 2, 10, CLASSES + 1)
    assert plain.train()(images, mask)["pred_boxes"].shape == (3, 2, 10, 4)
    assert plain.eval()(images, mask)["pred_boxes"].shape == (1, 2, 10, 4)
    assert without.train()(images, mask)["pred_boxes"].shape == (1, 2, 10, 4)
