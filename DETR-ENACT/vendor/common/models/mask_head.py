"""DETR's mask head (Carion et al., ECCV 2020, section 4.4): a mask for every query that is asked for.

Shapes: B images, H x W pixels of the encoder's map, h x w of the finest stage, Q queries, M heads, K asked queries, d features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import gcd

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GROUPS = 8  # of the norms, or as many as divide their channels


class AttentionMaps(nn.Module):
    """Where queries attend to in the memory: weights of each head, one softmax over all heads and pixels together.

    Args:
        d_model: d.
        nhead: M.
    """

    def __init__(self, d_model: int, nhead: int):
        super().__init__()
        self.nhead = nhead
        self.q_linear = nn.Linear(d_model, d_model)
        self.k_linear = nn.Linear(d_model, d_model)
        for linear in (self.q_linear, self.k_linear):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, hs: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """hs (B, Q, d), memory (B, H * W, d), mask (B, H, W) bool with True = padding -> (B, Q, M, H, W)."""
        q, k = (linear(x).unflatten(-1, (self.nhead, -1)) for linear, x in ((self.q_linear, hs), (self.k_linear, memory)))
        logits = torch.einsum("bqmc,bnmc->bqmn", q * q.shape[-1] ** -0.5, k)
        logits = logits.masked_fill(mask.flatten(1)[:, None, None], -torch.inf)
        return logits.flatten(2).softmax(-1).view(*logits.shape[:3], *mask.shape[1:])


class MaskHead(nn.Module):
    """A small feature pyramid: from attention maps and features to masks at the resolution of the finest stage.

    Args:
        d_model: d.
        nhead: M.
        channels: of the backbone's stages that refine the masks, the coarsest first.
        attention_gain: by how much the initial weights of the attention maps are larger than the published ones. A map sums up to 1
            over all heads and pixels, so that beside features of unit variance it is hardly noticed at first.
    """

    def __init__(self, d_model: int, nhead: int, channels: Sequence[int], attention_gain: float = 1.0):
        super().__init__()
        widths = [d_model + nhead, d_model + nhead, *(d_model // 2 ** (i + 1) for i in range(1 + len(channels)))]
        self.d_model, self.stages = d_model, len(channels)
        for i, (before, after) in enumerate(zip(widths, widths[1:]), start=1):  # the names of the published weights
            self.add_module(f"lay{i}", nn.Conv2d(before, after, kernel_size=3, padding=1))
            self.add_module(f"gn{i}", nn.GroupNorm(gcd(GROUPS, after), after))
        for i, (before, after) in enumerate(zip(channels, widths[2:]), start=1):
            self.add_module(f"adapter{i}", nn.Conv2d(before, after, kernel_size=1))
        self.out_lay = nn.Conv2d(widths[-1], 1, kernel_size=3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            self.lay1.weight[:, d_model:] *= attention_gain

    def forward(self, src: Tensor, maps: Tensor, image: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Masks of K queries.

        Args:
            src: (B, d, H, W) the projected features.
            maps: (K, M, H, W) their attention.
            image: (K,) which image each is of.
            features: of the backbone's stages, the coarsest first.

        Returns:
            (K, h, w) logits.
        """
        # The first convolution's part of the features is the same for all queries of an image.
        weight_src, weight_maps = self.lay1.weight.split([self.d_model, maps.shape[1]], dim=1)
        shared = F.conv2d(src, weight_src, self.lay1.bias, padding=1)
        x = F.relu(self.gn1(shared[image] + F.conv2d(maps, weight_maps, padding=1)))
        x = F.relu(self.gn2(self.lay2(x)))
        for i, feature in enumerate(features, start=1):
            lay, gn, adapter = (self.get_submodule(name) for name in (f"lay{i + 2}", f"gn{i + 2}", f"adapter{i}"))
            x = adapter(feature)[image] + F.interpolate(x, feature.shape[-2:])
            x = F.relu(gn(lay(x)))
        return self.out_lay(x)[:, 0]


@dataclass(frozen=True)
class QueryMasks:
    """The masks of a batch's queries, computed for those that are asked for, since all at once would be the peak of the memory.

    Attributes:
        attention, head: what computes them.
        src: (B, d, H, W).
        hs: (B, Q, d), of the last decoder layer.
        memory: (B, H * W, d), as a map.
        mask: (B, H, W) bool, True = padding.
        features: see :class:`MaskHead`.
    """

    attention: AttentionMaps
    head: MaskHead
    src: Tensor
    hs: Tensor
    memory: Tensor
    mask: Tensor
    features: tuple[Tensor, ...]

    @cached_property
    def maps(self) -> Tensor:
        """(B, Q, M, H, W)."""
        return self.attention(self.hs, self.memory, self.mask)

    def __call__(self, image: Tensor, query: Tensor) -> Tensor:
        """image, query (K,) -> (K, h, w) logits."""
        return self.head(self.src, self.maps[image, query], image, self.features)
