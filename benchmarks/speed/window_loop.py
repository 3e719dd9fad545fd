"""The yardstick of the batched clustering: window clustering as one would write it down first.

Shapes: B images, N pixels, d features, M clusters of L pixels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from enact.information import gaussian_kernel


class WindowLoop(nn.Module):
    """Attention over equal windows of pixels, image by image; a reshape makes the windows.

    Args:
        attention: the plain attention that runs over the clusters; batch first.
        prob: the layer (d -> 1) that scores the pixels.
        smoothing_sigma: as in ``enact.ClusteredAttention``.
    """

    def __init__(self, attention: nn.MultiheadAttention, prob: nn.Linear, smoothing_sigma: float):
        super().__init__()
        self.attention = attention
        self.prob = prob
        self.radius = int(3 * smoothing_sigma) - 1
        kernel = gaussian_kernel(smoothing_sigma, self.radius, dtype=torch.float32, device=prob.weight.device)
        self.register_buffer("gaussian", kernel[None, None])
        self.register_buffer("bend", kernel.new_tensor([[[-1.0, 2.0, -1.0]]]))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False) -> tuple[Tensor, None]:
        """query, key, value (B, N, d) -> (B, N, d)."""
        outputs = []
        for q, k, v in zip(query, key, value):
            k, v = self.pool(k, v)
            outputs.append(self.attention(q, k, v, need_weights=need_weights)[0])
        return torch.stack(outputs), None

    def pool(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """key, value (N, d) of one image -> (M, d)."""
        n = len(key)
        p = self.prob(key).squeeze(1).softmax(0) + 1e-8
        smoothed = F.conv1d((-p * p.log2())[None, None], self.gaussian, padding=self.radius)
        bends = F.conv1d(smoothed, self.bend, padding=1)[0, 0] > 0
        length = round(n / (1 + int((bends[1:] != bends[:-1]).sum())))
        count = n // length
        start = (n - count * length) // 2
        kept = slice(start, start + count * length)
        weight = smoothed[0, 0, kept].reshape(count, length).softmax(1)
        return tuple(torch.einsum("ml,mld->md", weight, x[kept].reshape(count, length, -1)) for x in (key, value))
