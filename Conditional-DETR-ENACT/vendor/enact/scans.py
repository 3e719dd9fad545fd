"""Orders in which the pixels of a feature map are walked, smoothed and cut.

The paper walks row after row ("raster"), so that clusters are thin strips, some of which jump from the end of a row to the start of
the next. The other orders go from each pixel to a neighbour, and clusters of some of them are compact.

Shapes: B images, H x W pixels of the feature map, N = H * W; an image has h x w valid pixels at the upper left.
"""

import torch
from torch import Tensor

SCANS = ("raster", "serpentine", "band", "hilbert")


def places(
    scan: str, feature_size: tuple[int, int], band: int, mask: Tensor | None = None, device: torch.device | None = None
) -> Tensor:
    """How many pixels of its image are walked before each pixel: (B, N) long, a permutation of 0 .. h w - 1 over the valid pixels.

    Args:
        scan: one of :data:`SCANS`.
        feature_size: H, W.
        band: rows of a band.
        mask: (B, H, W) bool, True = padding, which lies at the right and bottom; None: there is none, in any image.
        device: that of the mask, or where there is none, of the result.

    Returns:
        Anything at padding; (1, N) without a mask.
    """
    height, width = h, w = feature_size
    y, x = torch.arange(height, device=device)[:, None], torch.arange(width, device=device)
    if mask is not None:
        h, w = (~mask[:, :, 0]).sum(1)[:, None, None], (~mask[:, 0]).sum(1)[:, None, None]
    if scan == "hilbert":
        if mask is None:
            h, w = (torch.full((1, 1, 1), side, device=device) for side in (h, w))
        return _hilbert(x.expand(height, -1), y.expand(-1, width), w, h).flatten(1)
    rows = {"raster": 1, "serpentine": 1, "band": band}[scan]
    number = y // rows  # of the band
    first = number * rows  # row of the band
    high = (h - first).clamp(min=1, max=rows)  # rows of the band: the last may have fewer
    down = y - first
    # There and back, and in each band down and up.
    column = x if scan == "raster" else torch.where((number & 1).bool(), w - 1 - x, x)
    row = torch.where((column & 1).bool(), high - 1 - down, down)
    return (first * w + column * high + row).expand(1 if mask is None else mask.shape[0], height, width).flatten(1)


def _hilbert(x: Tensor, y: Tensor, w: Tensor, h: Tensor) -> Tensor:
    """The generalised Hilbert curve of a w x h rectangle for any sides: x, y (H, W), w, h (B, 1, 1) -> (B, H, W).

    A rectangle is walked along its longer side ``a``, and has the shorter side ``b``; both are vectors (of signed length along an
    axis). A long one is cut in two along ``a``; another in three: a part of half of ``b`` that is walked across, the rest of ``b``
    along ``a``, and a part that is walked back. Each pixel descends into the part that it is in.
    """
    across = w >= h
    zero = torch.zeros_like(w)
    ax, ay = torch.where(across, w, zero), torch.where(across, zero, h)
    bx, by = torch.where(across, zero, w), torch.where(across, h, zero)
    x, y = x - torch.zeros_like(w), y - torch.zeros_like(h)  # relative to the corner where the rectangle is entered
    place = torch.zeros_like(x)
    ax, ay, bx, by = (side.expand_as(x) for side in (ax, ay, bx, by))
    for _ in range(2 * max(x.shape[1:]).bit_length() + 2):
        a, b = (ax + ay).abs(), (bx + by).abs()
        ends = (a == 1) | (b == 1)
        half_ax, half_ay, half_bx, half_by = (torch.div(side, 2, rounding_mode="trunc") for side in (ax, ay, bx, by))
        half_a, half_b = (half_ax + half_ay).abs(), (half_bx + half_by).abs()
        long = 2 * a > 3 * b
        odd_a, odd_b = (half_a % 2 == 1) & (a > 2), (half_b % 2 == 1) & (b > 2)
        # An even number of pixels, so that the parts meet at neighbours.
        half_ax, half_ay = (half + side.sign() * (long & odd_a) for half, side in ((half_ax, ax), (half_ay, ay)))
        half_bx, half_by = (half + side.sign() * (~long & odd_b) for half, side in ((half_bx, bx), (half_by, by)))
        half_a, half_b = (half_ax + half_ay).abs(), (half_bx + half_by).abs()
        along, side = x * ax.sign() + y * ay.sign(), x * bx.sign() + y * by.sign()  # coordinates in the rectangle

        second_of_two = long & (along >= half_a)
        first_of_three = ~long & (side < half_b) & (along < half_a)
        third_of_three = ~long & (side < half_b) & (along >= half_a)
        second_of_three = ~long & (side >= half_b)
        before = (
            second_of_two * half_a * b + second_of_three * half_a * half_b + third_of_three * (half_a * half_b + a * (b - half_b))
        )
        # Where the part is entered: behind the half; of the third, at its far end, next to where the second was left.
        dx = second_of_two * half_ax + second_of_three * half_bx + third_of_three * (ax - ax.sign() + half_bx - bx.sign())
        dy = second_of_two * half_ay + second_of_three * half_by + third_of_three * (ay - ay.sign() + half_by - by.sign())
        parts = (
            (second_of_two, (ax - half_ax, ay - half_ay, bx, by)),
            (long & ~second_of_two, (half_ax, half_ay, bx, by)),
            (first_of_three, (half_bx, half_by, half_ax, half_ay)),
            (second_of_three, (ax, ay, bx - half_bx, by - half_by)),
            (third_of_three, (-half_bx, -half_by, half_ax - ax, half_ay - ay)),
        )
        new = [sum(chosen * sides[i] for chosen, sides in parts) for i in range(4)]
        place = torch.where(ends, place, place + before)
        x, y = torch.where(ends, x, x - dx), torch.where(ends, y, y - dy)
        ax, ay, bx, by = (torch.where(ends, old, one) for old, one in zip((ax, ay, bx, by), new))
    along, side = x * ax.sign() + y * ay.sign(), x * bx.sign() + y * by.sign()
    return place + torch.where((bx + by).abs() == 1, along, side)
