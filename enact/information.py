"""Self-information of the key pixels, and where its smoothed signal bends (paper, sections 3.2 and 3.3).

Shapes: B images, N pixels of the flattened (row-major) feature map.
"""

import math

import torch
from torch import Tensor


def self_information(logits: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
    """Self-information in bits, ``H = -p log2 p`` with ``p = softmax(logits) + 1e-8`` (eq. 3 and 4).

    Args:
        logits: (B, N), one number per pixel.
        key_padding_mask: (B, N) bool, True = padding. Padding gets no probability mass and no information.

    Returns:
        (B, N), in [0, log2(e)/e].
    """
    if key_padding_mask is not None:
        logits = logits.masked_fill(key_padding_mask, torch.finfo(logits.dtype).min)  # finite, also where all is padding
    p = logits.softmax(-1) + 1e-8
    information = -p * p.log2()
    return information if key_padding_mask is None else information.masked_fill(key_padding_mask, 0.0)


def gaussian_kernel(sigma: float, radius: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(2 * radius + 1,) samples of the Gaussian density (eq. 5, with the minus sign that the print lost)."""
    x = torch.arange(-radius, radius + 1, dtype=dtype, device=device)
    return torch.exp(-x.square() / (2 * sigma**2)) / (math.sqrt(2 * math.pi) * sigma)


def mean_length_of_noise(sigma: float, radius: int) -> float:
    """Mean length, in pixels, of the regions that independent normal pixels have.

    The sign of a stationary normal sequence changes arccos(rho) / pi times a step, rho being the correlation of neighbours: here in
    the second derivative of smoothed noise. The length is not proportional to sigma, as the kernel's ends bend the signal, too.
    """
    kernel = [math.exp(-(x**2) / (2 * sigma**2)) for x in range(-radius, radius + 1)]
    padded = [0.0, 0.0, *kernel, 0.0, 0.0]
    response = [2 * b - a - c for a, b, c in zip(padded, padded[1:], padded[2:])]
    rho = sum(map(math.prod, zip(response, response[1:]))) / sum(x * x for x in response)
    return math.pi / math.acos(rho)


def smooth_and_bend(
    information: Tensor, lengths: Tensor, sigma: float, radius: int, *, zero_ends: bool = False
) -> tuple[Tensor, Tensor]:
    """Smooths the information (eq. 5) and takes the sign of its second derivative (eq. 6).

    Beyond its ends a sequence continues with its first and last value: zeros would bend every signal there, a constant one too.
    Every output sums the same products in the same order, so equal neighbourhoods give equal bits and a constant no sign change.

    Args:
        information: (B, N), valid pixels first.
        lengths: (B,) number of valid pixels, at least 1.
        sigma, radius: of the Gaussian, in pixels.
        zero_ends: as in the released code, information and smoothed signal are both 0 beyond the ends.

    Returns:
        smoothed: (B, N), and bends: (B, N) bool, True where ``[-1, 2, -1] * smoothed > 0``; both undefined behind ``lengths``.
    """
    n = information.shape[1]
    position = torch.arange(-radius - 1, n + radius + 1, device=information.device)
    outside = (position < 0) | (position >= lengths[:, None])
    extended = information.gather(1, torch.minimum(position.clamp(min=0), lengths[:, None] - 1))
    if zero_ends:
        extended = extended.masked_fill(outside, 0.0)
    kernel = gaussian_kernel(sigma, radius, dtype=information.dtype, device=information.device)
    # Contiguous already, but for a sequence shorter than the kernel: its product is laid out the other way round, and summing over
    # strided memory may add up the last outputs in another order.
    smoothed = (extended.unfold(1, 2 * radius + 1, 1) * kernel).contiguous().sum(-1)
    if zero_ends:
        smoothed = smoothed.masked_fill(outside[:, radius : n + radius + 2], 0.0)
    second_derivative = 2 * smoothed[:, 1:-1] - smoothed[:, :-2] - smoothed[:, 2:]
    return smoothed[:, 1:-1], second_derivative > 0
