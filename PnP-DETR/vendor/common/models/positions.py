"""Position embeddings.

Shapes: B images, H x W pixels of the feature map, d features.
"""

import math

import torch
from torch import Tensor, nn

from ..errors import UserError


def sine_embedding(position: Tensor, num_feats: int, temperature: float = 10000.0) -> Tensor:
    """Sines and cosines of a coordinate, interleaved.

    Args:
        position: (...) coordinates in radians: in (0, 1] times 2 pi for all detectors here.

    Returns:
        (..., num_feats): sin at even and cos at odd features, at frequencies that fall geometrically to 1 / temperature.
    """
    pair = torch.arange(num_feats // 2, dtype=torch.float32, device=position.device)
    angle = position[..., None] / temperature ** (2 * pair / num_feats)
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2)


class PositionEmbeddingSine(nn.Module):
    """Sine embedding of the normalised row and column of each pixel, counted over valid pixels only (DETR).

    Args:
        hidden_dim: d.
        shift: added to the counts, which start with 1: Deformable DETR's -0.5 leads to the pixels' centres.
    """

    def __init__(self, hidden_dim: int, shift: float = 0.0):
        super().__init__()
        self.num_feats = hidden_dim // 2
        self.shift = shift

    def forward(self, mask: Tensor) -> Tensor:
        """mask (B, H, W) bool, True = padding -> (B, H, W, d), the row's features first."""
        valid = ~mask
        y = valid.cumsum(1, dtype=torch.float32)
        x = valid.cumsum(2, dtype=torch.float32)
        y = (y + self.shift) / (y[:, -1:, :] + 1e-6) * 2 * math.pi
        x = (x + self.shift) / (x[:, :, -1:] + 1e-6) * 2 * math.pi
        return torch.cat((sine_embedding(y, self.num_feats), sine_embedding(x, self.num_feats)), dim=-1)


class PositionEmbeddingLearned(nn.Module):
    """One learned vector per row and per column (DETR), for feature maps of at most 50 x 50."""

    size = 50

    def __init__(self, hidden_dim: int):
        super().__init__()
        self.row_embed = nn.Embedding(self.size, hidden_dim // 2)
        self.col_embed = nn.Embedding(self.size, hidden_dim // 2)
        nn.init.uniform_(self.row_embed.weight)
        nn.init.uniform_(self.col_embed.weight)

    def forward(self, mask: Tensor) -> Tensor:
        """mask (B, H, W) bool -> (B, H, W, d), the column's features first."""
        batch, h, w = mask.shape
        if max(h, w) > self.size:
            raise UserError(
                f"learned position embeddings cover feature maps of {self.size} x {self.size}, not {h} x {w}: "
                "use --position_embedding sine or smaller images"
            )
        column = self.col_embed.weight[:w].expand(h, w, -1)
        row = self.row_embed.weight[:h, None].expand(h, w, -1)
        return torch.cat((column, row), dim=-1).expand(batch, -1, -1, -1)


def build_position_embedding(kind: str, hidden_dim: int) -> nn.Module:
    """kind: "sine" or "learned"."""
    return {"sine": PositionEmbeddingSine, "learned": PositionEmbeddingLearned}[kind](hidden_dim)
