"""What the names and shapes of a checkpoint's weights tell about the options of its model."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from .sizes import BLOCKS, SWINS

DETECTOR_OF_MASKS = "detr."  # the names of a detector's weights begin so where it has a mask head


def has_mask_head(names: Iterable[str]) -> bool:
    return any(name.startswith(DETECTOR_OF_MASKS) for name in names)


def reveal_masks(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The detector's own weights, and ``masks``: whether there is a mask head beside it."""
    if not has_mask_head(state_dict):
        return dict(state_dict), {"masks": False}
    own = {name.removeprefix(DETECTOR_OF_MASKS): x for name, x in state_dict.items() if name.startswith(DETECTOR_OF_MASKS)}
    return own, {"masks": True}


def count_layers(keys: Iterable[str], prefix: str) -> int:
    """How many numbered modules ``<prefix>0.``, ``<prefix>1.``, ... the names tell of."""
    return len({key.removeprefix(prefix).split(".")[0] for key in keys if key.startswith(prefix)})


def reveal_transformer(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """The options of a detector with DETR's names for its backbone, transformer and queries.

    Raises:
        KeyError: the names are others.
    """
    return {
        "hidden_dim": state_dict["query_embed.weight"].shape[1],
        "num_queries": state_dict["query_embed.weight"].shape[0],
        "dim_feedforward": len(state_dict["transformer.encoder.layers.0.linear1.bias"]),
        "enc_layers": count_layers(state_dict, "transformer.encoder.layers."),
        "dec_layers": count_layers(state_dict, "transformer.decoder.layers."),
        "position_embedding": "learned" if "backbone.1.row_embed.weight" in state_dict else "sine",
    } | reveal_backbone(state_dict)


def reveal_detr(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """The options of a detector with DETR's names and classes, the last of which is "no object"; and ``num_classes``.

    Raises:
        KeyError: the names are others.
    """
    decoder = "transformer.decoder.layers.0.multihead_attn.in_proj_weight"
    if decoder not in state_dict:  # Conditional DETR has another attention there, and else DETR's names
        raise KeyError(decoder)
    own = {
        "num_classes": len(state_dict["class_embed.bias"]) - 1,
        "pre_norm": "transformer.encoder.norm.weight" in state_dict,
    }
    return own | reveal_transformer(state_dict)


def reveal_backbone(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """The options that a detector's weights tell about its backbone.

    ``last_stage``; ``backbone`` where only one fits; of a ResNet ``backbone_weights`` "none" where its batch norm was trained; of a
    Swin transformer, which knows none, ``dilation``.
    """
    body = {key.partition("body.")[2]: value for key, value in state_dict.items() if "body." in key}
    return _reveal_swin(body) if "patch_embed.proj.weight" in body else _reveal_resnet(body)


def _reveal_resnet(keys: Iterable[str]) -> dict[str, Any]:
    found = [{key.split(".")[1] for key in keys if key.startswith(f"layer{stage}.")} for stage in range(1, 5)]
    depths = tuple(len(blocks) for blocks in found if blocks)
    bottleneck = any(".conv3." in key for key in keys)
    options: dict[str, Any] = {"last_stage": len(depths)}
    fits = [name for name, (blocks, kind) in BLOCKS.items() if (blocks[: len(depths)], kind) == (depths, bottleneck)]
    if len(fits) == 1:
        options["backbone"] = fits[0]
    if any(key.endswith("num_batches_tracked") for key in keys):
        options["backbone_weights"] = "none"
    return options


def _reveal_swin(body: Mapping[str, Tensor]) -> dict[str, Any]:
    depths = tuple(count_layers(body, f"layers.{stage}.blocks.") for stage in range(count_layers(body, "layers.")))
    form = (depths, len(body["patch_embed.proj.weight"]), len(body["layers.0.blocks.0.attn.relative_position_index"]))
    fits = [name for name, size in SWINS.items() if (size.depths[: len(depths)], size.embed_dim, size.window**2) == form]
    options: dict[str, Any] = {"last_stage": len(depths), "dilation": False}
    if len(fits) == 1:
        options["backbone"] = fits[0]
    return options
