"""Anchor DETR (Wang et al., AAAI 2022) with ENACT in its encoder.

Shapes: L decoder layers, B images, S feature levels, H x W pixels of each, Q queries, C classes, d features.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.models.backbone import Backbone
from common.models.layers import build_heads, in_full_precision
from common.models.levels import GROUPS
from common.models.model import DetectionModel
from common.models.transformer import TransformerOptions

from .transformer import DecoderLayer, EncoderLayer, LevelEncoderLayer, Positions, embed_1d, embed_2d, keys_of, pixel_coordinates


class AnchorDETR(DetectionModel):
    """Detects the objects of an image as a set of boxes around anchor points, several patterns at each.

    Args:
        backbone: images to features of stride 16 or 32; with several levels, of layer2, layer3 and the dilated layer4.
        transformer: encoder, decoder and heads.
        aux_loss: return the predictions of all decoder layers in training, not only the last.
    """

    def __init__(self, backbone: Backbone, transformer: "Transformer", aux_loss: bool = True):
        super().__init__()
        hidden_dim = transformer.d_model
        self.backbone = backbone
        self.transformer = transformer
        self.aux_loss = aux_loss
        several = len(backbone.num_channels) > 1
        self.input_proj = nn.ModuleList(
            nn.Sequential(
                # Of several levels the first has stride 8: it is halved, so that all have the same size.
                nn.Conv2d(channels, hidden_dim, 3, stride=2, padding=1)
                if several and level == 0
                else nn.Conv2d(channels, hidden_dim, kernel_size=1),
                nn.GroupNorm(GROUPS, hidden_dim),
            )
            for level, channels in enumerate(backbone.num_channels)
        )
        for proj in self.input_proj:
            nn.init.xavier_uniform_(proj[0].weight)
            nn.init.zeros_(proj[0].bias)

    def forward(self, images: Tensor, mask: Tensor, targets: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        """See :class:`DetectionModel`. The targets are not looked at."""
        features = self.backbone(images, mask)
        src = torch.stack([proj(feature) for proj, (feature, _) in zip(self.input_proj, features)], dim=1)
        return self.detect(src, features[-1][1])

    def detect(self, src: Tensor, mask: Tensor) -> dict[str, Any]:
        """src (B, S, d, H, W), the projected features, and their mask (B, H, W) -> as :meth:`forward`."""
        logits, boxes = self.transformer(src, mask)
        if not (self.training and self.aux_loss):
            logits, boxes = logits[-1:], boxes[-1:]
        return {"pred_logits": logits, "pred_boxes": boxes, "feature_size": tuple(src.shape[-2:])}


class Transformer(nn.Module):
    """Encoder, decoder, and the heads, which all decoder layers share.

    Args:
        options: size and form.
        num_classes: C.
        num_query_position, num_query_pattern: anchor points, and patterns at each; their product is Q.
        spatial_prior: "learned" anchor points, or a fixed "grid".
        num_feature_levels: S.
        decoupled: RCDA instead of ordinary multi-head attention.
        clustering: of the encoder, see :class:`EncoderLayer`.
    """

    def __init__(
        self,
        options: TransformerOptions,
        *,
        num_classes: int,
        num_query_position: int,
        num_query_pattern: int,
        spatial_prior: str,
        num_feature_levels: int,
        decoupled: bool,
        **clustering: Any,
    ):
        super().__init__()
        self.d_model = d_model = options.d_model
        self.encoder_layers = nn.ModuleList(EncoderLayer(options, decoupled, **clustering) for _ in range(options.enc_layers))
        self.decoder_layers = nn.ModuleList(DecoderLayer(options, decoupled, num_feature_levels) for _ in range(options.dec_layers))
        if num_feature_levels > 1:
            self.level_embed = nn.Embedding(num_feature_levels, d_model)
            self.encoder_layers_level = nn.ModuleList(LevelEncoderLayer(options) for _ in range(options.enc_layers))
        self.num_feature_levels = num_feature_levels

        self.pattern = nn.Embedding(num_query_pattern, d_model)
        if spatial_prior == "learned":
            self.position = nn.Embedding(num_query_position, 2)
            nn.init.uniform_(self.position.weight)
        else:
            self.register_buffer("grid", _grid(num_query_position), persistent=False)
        self.adapt_pos2d = nn.Sequential(nn.Linear(d_model, d_model), nn.ReLU(), nn.Linear(d_model, d_model))
        if decoupled:
            self.adapt_pos1d = nn.Sequential(nn.Linear(d_model, d_model), nn.ReLU(), nn.Linear(d_model, d_model))
        self.decoupled = decoupled

        self.class_embed, self.bbox_embed = build_heads(d_model, num_classes, options.dec_layers, separate=False)
        nn.init.constant_(self.bbox_embed[0].layers[-1].bias[2:], -2.0)  # every box starts small

    def forward(self, src: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """src (B, S, d, H, W), mask (B, H, W) bool with True = padding -> logits (L, B, Q, C), boxes (L, B, Q, 4) in [0, 1]."""
        batch, levels = src.shape[:2]
        mask = mask.repeat_interleave(levels, dim=0)
        pos = self._pixel_positions(mask)
        memory = src.flatten(0, 1).permute(0, 2, 3, 1)
        for i, layer in enumerate(self.encoder_layers):
            memory = layer(memory, mask, pos)
            if levels > 1:
                memory = self.encoder_layers_level[i](memory, self.level_embed.weight)

        reference, tgt = self._queries(batch)
        query_pos, keys = self._query_positions(reference), keys_of(memory, mask, pos)
        hs = []
        for layer in self.decoder_layers:
            tgt = layer(tgt, query_pos, keys, memory, mask)
            hs.append(tgt)
        hs = torch.stack(hs)
        anchor = F.pad(torch.logit(reference, eps=1e-5), (0, 2))
        return self.class_embed[0](hs), (in_full_precision(self.bbox_embed[0], hs) + anchor).sigmoid()

    def _queries(self, batch: int) -> tuple[Tensor, Tensor]:
        """Anchor points (B, Q, 2) and contents (B, Q, d), one pattern at all points after the other."""
        position = self.position.weight if hasattr(self, "position") else self.grid
        patterns = len(self.pattern.weight)
        tgt = self.pattern.weight.repeat_interleave(len(position), dim=0)
        return position.repeat(patterns, 1).expand(batch, -1, -1), tgt.expand(batch, -1, -1)

    def _query_positions(self, reference: Tensor) -> Positions:
        both = in_full_precision(self.adapt_pos2d, embed_2d(reference, self.d_model))
        return Positions(*self._embed_1d(*reference.unbind(-1)), both) if self.decoupled else Positions(None, None, both)

    def _pixel_positions(self, mask: Tensor) -> Positions:
        x, y = pixel_coordinates(mask)
        if self.decoupled:
            row, col = self._embed_1d(x, y)
            return Positions(row[:, None], col[:, :, None], None)
        grid = torch.stack((x[:, None, :].expand_as(mask), y[:, :, None].expand_as(mask)), dim=-1)
        return Positions(None, None, in_full_precision(self.adapt_pos2d, embed_2d(grid, self.d_model)))

    def _embed_1d(self, x: Tensor, y: Tensor) -> list[Tensor]:
        return [in_full_precision(self.adapt_pos1d, embed_1d(coordinate, self.d_model)) for coordinate in (x, y)]


def _grid(num_positions: int) -> Tensor:
    """(num_positions, 2) centres of a square grid of cells, in (0, 1)."""
    side = math.isqrt(num_positions)
    centres = (torch.arange(side) + 0.5) / side
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack((x, y), dim=-1).flatten(0, 1)
