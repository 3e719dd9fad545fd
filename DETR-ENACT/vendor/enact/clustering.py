"""Clusters of key pixels: exact regions (the paper) or equal windows (the released code).

Shapes: B images, N pixels of the flattened (row-major) feature map, d features, M clusters.

Padding sits inside the flattened sequence, at the end of every row of a narrower image. The valid pixels are therefore packed to
the front before the signal is smoothed and cut, so that an image's clusters do not depend on what it is batched with.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import Function

from .cuts import CUTS, at_bends, at_steps, in_windows
from .information import mean_length_of_noise, self_information, smooth_and_bend
from .scans import SCANS, places

CLUSTERINGS = ("region", "region+", "window")


@dataclass(frozen=True)
class Clusters:
    """What became of the N key pixels of each image.

    Attributes:
        information: (B, N) self-information in bits (eq. 3); 0 at padding.
        smoothed: (B, N) the smoothed information (eq. 5); meaningless at padding.
        index: (B, N) long, the cluster of each pixel, ascending along the sequence.
        weight: (B, N) weight of each pixel in its cluster (eq. 7); sums to 1 per cluster, 0 at padding and at dropped pixels.
        count: (B,) long, number of clusters per image.
        size: M, the largest count, or the capacity.
        ragged: whether some of the M rows may be absent in some images.
        bias: (B, M) the logarithm of each cluster's number of pixels, to be added to its logits; None: nothing is added.
    """

    information: Tensor
    smoothed: Tensor
    index: Tensor
    weight: Tensor
    count: Tensor
    size: int
    ragged: bool
    bias: Tensor | None = None

    def pool(self, x: Tensor) -> Tensor:
        """Weighted sum of x (B, N, d) inside each cluster: (B, M, d); absent clusters are zero."""
        return _Pooling.apply(x, self.weight, self.index, self.size)

    def shares(self, group: Tensor, size: int) -> Tensor:
        """How much of each cluster's weight lies in each of ``size`` groups of pixels, such as columns: (B, M, size).

        Args:
            group: (N,) long, that of each pixel.
        """
        shares = self.weight.new_zeros(self.weight.shape[0], self.size * size)
        return shares.scatter_add(1, self.index * size + group, self.weight).unflatten(1, (self.size, size))

    def present(self) -> Tensor | None:
        """(B, M) bool, True where the cluster exists; None when all do."""
        if not self.ragged:
            return None
        return torch.arange(self.size, device=self.count.device) < self.count[:, None]


class _Pooling(Function):
    """See :meth:`Clusters.pool`. Of the weighted pixels, (B, N, d), none is kept for the way back: they are the sums' inputs, which
    no gradient needs, though autograd would keep them.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, index: Tensor, size: int) -> Tensor:
        weighted = (x * weight[..., None]).flatten(0, 1)  # in float32 at least, also under autocast
        pooled = weighted.new_zeros(x.shape[0] * size, x.shape[2]).index_add_(0, _rows(index, size), weighted)
        return pooled.unflatten(0, (x.shape[0], size)).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:3])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, index = ctx.saved_tensors
        of_pixels = grad.flatten(0, 1).index_select(0, _rows(index, grad.shape[1])).view(x.shape)
        grad_x = of_pixels * weight[..., None] if ctx.needs_input_grad[0] else None
        grad_weight = (of_pixels.to(weight.dtype) * x).sum(-1) if ctx.needs_input_grad[1] else None  # fp16 would overflow
        return None if grad_x is None else grad_x.to(x.dtype), grad_weight, None, None


def _rows(index: Tensor, size: int) -> Tensor:
    """The clusters of all images, (B, N), numbered one after the other: (B N,)."""
    return (index + torch.arange(index.shape[0], device=index.device)[:, None] * size).flatten()


class EntropyClustering(nn.Linear):
    """The ENACT module: one linear layer that scores key pixels, and the clustering that follows from the scores.

    Its parameters are the layer's ``weight`` (1, d) and ``bias`` (1,). The bias cancels in the softmax of eq. 4; it is kept because
    the paper and the published checkpoints have it.

    Args:
        embed_dim: d.
        clustering: "region", the paper's clusters of equal sign of the second derivative; "region+", the same along bands of rows
            and with a size bias, which loses less; or "window", equal windows of the mean region length, as in the authors'
            released code.
        smoothing_sigma: standard deviation of the Gaussian, in pixels of the sequence.
        capacity: None: M is the largest number of clusters in the batch, which costs one device synchronisation. A number, or
            "auto" for :class:`AutoCapacity`: M is that, whatever the images hold, and nothing waits; the surplus joins the last
            cluster. For ``torch.compile(fullgraph=True)``, CUDA graphs, ``torch.export`` and ONNX.
        scan: the order in which the pixels are smoothed and cut: "raster", row by row, as the paper; or "serpentine", "band" or
            "hilbert", see :mod:`enact.scans`. None: "band" for "region+", else "raster".
        band: rows of a band of ``scan="band"``; None: the side of a square of 2 sigma pixels, rounded up.
        size_bias: add the logarithm of a cluster's number of pixels to its logits, so that it counts as its pixels together. None:
            for "region+" alone.
        cuts: where the clusters of a region begin: at the "bends" of the smoothed information, as in the paper; or, in as many
            clusters, at the largest "steps" of the keys along the walk, see :mod:`enact.cuts`.
        feature_size: H, W of the map where the forward pass is not told, as in plugged-in models; None: the map is square.

    Raises:
        ValueError: an option has an impossible value.
    """

    def __init__(
        self,
        embed_dim: int,
        clustering: str = "region",
        smoothing_sigma: float = 3.0,
        capacity: int | Literal["auto"] | None = None,
        scan: str | None = None,
        band: int | None = None,
        size_bias: bool | None = None,
        cuts: str = "bends",
        feature_size: tuple[int, int] | None = None,
        device=None,
        dtype=None,
    ):
        if clustering not in CLUSTERINGS:
            raise ValueError(f"clustering must be one of {', '.join(CLUSTERINGS)}, not {clustering!r}")
        if not 1 <= smoothing_sigma < math.inf:
            raise ValueError(f"smoothing_sigma must be at least 1 pixel, not {smoothing_sigma}")
        if capacity not in (None, "auto") and not (isinstance(capacity, int) and capacity >= 1):
            raise ValueError(f'capacity must be None, "auto" or at least 1 cluster, not {capacity!r}')
        if scan not in (None, *SCANS):
            raise ValueError(f"scan must be one of {', '.join(SCANS)}, not {scan!r}")
        if band is not None and not (isinstance(band, int) and band >= 1):
            raise ValueError(f"band must be None or at least 1 row, not {band!r}")
        if cuts not in CUTS:
            raise ValueError(f"cuts must be one of {', '.join(CUTS)}, not {cuts!r}")
        if cuts == "steps" and clustering == "window":
            raise ValueError('cuts="steps" has no meaning for windows of equal size: choose clustering="region" or "region+"')
        super().__init__(embed_dim, 1, device=device, dtype=dtype)
        better = clustering == "region+"
        self.clustering = clustering.removesuffix("+")
        self.smoothing_sigma = smoothing_sigma
        self.scan = scan or ("band" if better else "raster")
        self.band = band or math.ceil((2 * smoothing_sigma) ** 0.5)
        self.size_bias = better if size_bias is None else size_bias
        self.cuts = cuts
        self.feature_size = feature_size
        self.capacity = capacity
        self._auto = AutoCapacity(self.clustering, smoothing_sigma)

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        names = ("clustering", "smoothing_sigma", "capacity", "scan", "band", "size_bias", "cuts")
        return ", ".join([super().extra_repr(), *(f"{name}={getattr(self, name)!r}" for name in names)])

    def forward(self, key: Tensor, key_padding_mask: Tensor | None = None, feature_size: tuple[int, int] | None = None) -> Clusters:
        """Clusters the pixels of key (B, N, d), positional encodings included; key_padding_mask (B, N) bool, True = padding.

        feature_size: H, W of the map whose N pixels they are, which a ``scan`` other than "raster" needs.

        The decisions are made in float32 at least, also under autocast: in 8 bits of mantissa the second derivative is noise.
        """
        dtype = torch.promote_types(key.dtype, torch.float32)
        with torch.autocast(key.device.type, enabled=False):
            # Not a matrix product, nor a sum over strided memory such as that of `flatten(2).transpose(1, 2)`: both may add up the
            # last rows in another order, and equal keys must get equal bits.
            logits = (key.to(dtype) * self.weight.to(dtype)).contiguous().sum(-1) + self.bias.to(dtype)
            capacity = self._auto.of(key.shape[1]) if self.capacity == "auto" else self.capacity
            place = None if self.scan == "raster" else self._places(key, key_padding_mask, feature_size)
            steps_of = key.detach() if self.cuts == "steps" else None
            clusters = cluster(logits, key_padding_mask, self.clustering, self.smoothing_sigma, capacity, place, steps_of)
        return replace(clusters, bias=_log_size(clusters)) if self.size_bias else clusters

    def _places(self, key: Tensor, key_padding_mask: Tensor | None, feature_size: tuple[int, int] | None) -> Tensor:
        """(B, N), or (1, N) without a mask."""
        n = key.shape[1]
        height, width = feature_size or self.feature_size or (math.isqrt(n), math.isqrt(n))
        if height * width != n:
            raise ValueError(f"scan={self.scan!r} needs the feature_size of these {n} pixels, or a square map")
        mask = None if key_padding_mask is None else key_padding_mask.unflatten(1, (height, width))
        return places(self.scan, (height, width), self.band, mask, key.device)


class AutoCapacity:
    """So many clusters that N pixels hardly ever have more: a third more than independent pixels have on average, whose regions are
    the shortest, and eight, as the number varies most in small maps.

    Args:
        clustering, smoothing_sigma: as in :class:`EntropyClustering`.
    """

    def __init__(self, clustering: str, smoothing_sigma: float):
        # A whole number, since N may be a symbol in a graph that is being traced.
        self._pixels_of_75 = int(75 * mean_length_of_noise(smoothing_sigma, _radius(clustering, smoothing_sigma)))

    def of(self, num_pixels: int) -> int:
        return num_pixels * 100 // self._pixels_of_75 + 8


def _radius(clustering: str, smoothing_sigma: float) -> int:
    """Of the Gaussian's support, in pixels: the released code's is one shorter."""
    return int(3 * smoothing_sigma) - (clustering == "window")


def cluster(
    logits: Tensor,
    key_padding_mask: Tensor | None,
    clustering: str,
    smoothing_sigma: float,
    capacity: int | None = None,
    place: Tensor | None = None,
    steps_of: Tensor | None = None,
) -> Clusters:
    """From one score per pixel to clusters and weights (eq. 3 to 7), with one device synchronisation, or none with a capacity.

    Args:
        logits: (B, N) scores.
        place: (B, N), or (1, N) for all images, where each valid pixel stands in the sequence; by default as they are given.
        steps_of: (B, N, d) the keys, to cut at their steps, in as many regions; by default they are cut where information bends.
    """
    batch, n = logits.shape
    order = position = torch.arange(n, device=logits.device).expand(batch, n)
    information = packed = self_information(logits, key_padding_mask)
    lengths = torch.full((batch,), n, device=logits.device)
    valid = None
    if key_padding_mask is not None:
        valid = ~key_padding_mask
        lengths = valid.sum(1).clamp(min=1)
    moved = key_padding_mask is not None or place is not None
    if moved:
        order, position = (x.expand(batch, n) for x in _packing(order, valid, place))
        packed = information.gather(1, order)

    region = clustering == "region"
    radius = _radius(clustering, smoothing_sigma)
    smoothed, bends = smooth_and_bend(packed, lengths, smoothing_sigma, radius, zero_ends=not region)
    index, count = at_bends(bends, lengths)
    dropped = None
    if not region:
        index, count, dropped = in_windows(lengths, count, n)
    if capacity is not None:
        index, count = index.clamp(max=capacity - 1), count.clamp(max=capacity)
    if steps_of is not None:
        index = at_steps(steps_of, order, lengths, count)

    if moved:
        smoothed, index = smoothed.gather(1, position), index.gather(1, position)
    if dropped is not None:
        kept = ~dropped.gather(1, position)
        valid = kept if valid is None else valid & kept
    if capacity is None:
        counts = count.tolist() or [1]  # the one synchronisation: M is the size of everything that follows
        size, ragged = max(counts), min(counts) < max(counts)
    else:
        size, ragged = capacity, True
    weight = _softmax_in_clusters(smoothed, index, valid, size)
    return Clusters(information, smoothed, index, weight, count, size, ragged)


def _packing(pixel: Tensor, valid: Tensor | None, place: Tensor | None) -> tuple[Tensor, Tensor]:
    """order (B, N): which pixel is the i-th of the sequence; position (B, N): where each valid pixel stands in it.

    A padding pixel gets the position of some valid pixel, so that it lies in that one's cluster, with weight 0. ``pixel`` (B, N)
    numbers the pixels.
    """
    if valid is None:  # a permutation, whose inverse is the order
        return torch.empty_like(place).scatter_(1, place, pixel[: place.shape[0]]), place
    batch, n = valid.shape
    position = valid.cumsum(1) - 1 if place is None else place.masked_fill(~valid, 0)
    slot = position.masked_fill(~valid, n)  # padding is written to a spare last column
    order = torch.zeros(batch, n + 1, dtype=torch.long, device=valid.device).scatter_(1, slot, pixel)
    return order[:, :n], position.clamp(min=0)


def _log_size(clusters: Clusters) -> Tensor:
    """(B, M) logarithms of the numbers of pixels with a weight; 0 where there are none."""
    pixels = clusters.weight.new_zeros(clusters.count.shape[0], clusters.size)
    return pixels.scatter_add(1, clusters.index, (clusters.weight > 0).to(pixels.dtype)).clamp(min=1).log()


def _softmax_in_clusters(smoothed: Tensor, index: Tensor, valid: Tensor | None, size: int) -> Tensor:
    """Softmax of the smoothed information inside each cluster (eq. 7): (B, N).

    Information is at most log2(e)/e = 0.53 bit, so the exponentials need no shift by the maximum.
    """
    e = smoothed.exp()
    if valid is not None:
        e = e.masked_fill(~valid, 0.0)
    total = e.new_zeros(e.shape[0], size).scatter_add(1, index, e)
    weight = e / total.gather(1, index)
    return weight if valid is None else weight.masked_fill(~valid, 0.0)  # 0 / 0 where an image is all padding
