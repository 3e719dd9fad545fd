"""Poll and pool: a feature map as a short sequence (Wang et al., ICCV 2021, section 3).

Shapes: B images, H x W pixels of the feature map, N = H * W, d features, S polled pixels, M pooled vectors.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.models.layers import full_precision, in_full_precision, rows

NEVER = torch.finfo(torch.float32).min  # a logit without a share; not -inf, as a softmax over nothing else is to be finite


class Sampled(NamedTuple):
    """The S polled pixels of each image in raster order, and M pooled vectors behind them.

    An image has fewer polled pixels than S where another has more valid ones; what stands in its surplus slots is masked.

    Attributes:
        src, pos: (B, S + M, d) features and positions.
        mask: (B, S + M) bool, True = masked: surplus slots, and pooled vectors of an image that left no pixel to pool.
        scores: (B, N) in (0, 1), of padding, too.
        tokens: (B, S) long, which pixels were polled.
        kept: (B, S) bool, False = surplus.
        pooled: (B, N) bool, the valid pixels that were not polled.
        log_shares: (B, M, N) the logarithm of each pooled pixel's share in each vector; meaningless elsewhere.
    """

    src: Tensor
    pos: Tensor
    mask: Tensor
    scores: Tensor
    tokens: Tensor
    kept: Tensor
    pooled: Tensor
    log_shares: Tensor

    def mean_scores(self) -> Tensor:
        """(B,) mean score of the polled pixels, 0 where there are none: what the regulariser keeps low."""
        scores = self.scores.gather(1, self.tokens).masked_fill(~self.kept, 0.0)
        return scores.sum(1) / self.kept.sum(1).clamp(min=1)

    def unpool(self, memory: Tensor) -> Tensor:
        """The encoder's output as a map again: (B, S + M, d) -> (B, N, d), 0 at padding.

        A polled pixel gets its own vector, a pooled one the mean of the M pooled vectors, weighted by its share in each.
        """
        polled, vectors = memory.split([self.tokens.shape[1], self.log_shares.shape[1]], dim=1)
        # Quotients of shares, which survive where the shares themselves underflow.
        quotients = self.log_shares.masked_fill(~self.pooled[:, None], 0.0).softmax(1)
        # Under autocast the product has half the precision of the memory, which on a GPU is a norm's output in float32.
        spread = (quotients.transpose(1, 2).to(vectors.dtype) @ vectors).to(memory.dtype).masked_fill(~self.pooled[..., None], 0.0)
        own = torch.where(self.kept[..., None], polled, rows(spread, self.tokens))
        return spread.scatter(1, self.tokens[..., None].expand_as(own), own)


class Sampler(nn.Module):
    """Polls the pixels that a small network finds worth it, and pools the rest into a few vectors.

    Args:
        d_model: d.
        num_pooled: M.
        score_pred_net: form of the network that scores pixels, one of ``options.SCORE_NETS``. (The published name of the first
            has a width in it, which is d in fact.)
        kproj_net: form of the network that shares the remaining pixels out among the pooled vectors, one of ``options.KPROJ_NETS``.
        pos_embed_kproj: it sees the pixels' positions, too.
    """

    def __init__(self, d_model: int, num_pooled: int, score_pred_net: str, kproj_net: str, pos_embed_kproj: bool):
        super().__init__()
        self.pos_embed_kproj = pos_embed_kproj
        if score_pred_net == "1layer-fc":
            self.score_pred_net = nn.Conv2d(d_model, 1, kernel_size=1)
        else:
            width = 16 if score_pred_net == "2layer-fc-16" else d_model
            self.score_pred_net = nn.Sequential(nn.Conv2d(d_model, width, 1), nn.ReLU(), nn.Conv2d(width, 1, 1))
        last = nn.Linear(d_model, num_pooled)
        self.k_proj = last if kproj_net == "1layer-fc" else nn.Sequential(nn.Linear(d_model, d_model), nn.ReLU(), last)
        self.v_proj = nn.Linear(d_model, d_model)

    def forward(self, src: Tensor, mask: Tensor, pos: Tensor, ratio: float) -> Sampled:
        """Samples. One device synchronisation, for S.

        Args:
            src: (B, d, H, W) the projected features.
            mask: (B, N) bool, True = padding.
            pos: (B, N, d).
            ratio: share of an image's valid pixels that is polled, in (0, 1).
        """
        scores = in_full_precision(self.score_pred_net, src).sigmoid().flatten(1)
        normalized = F.layer_norm(src.flatten(2).transpose(1, 2), src.shape[1:2])
        tokens, kept = poll(scores, mask, ratio)
        polled = rows(normalized, tokens) * scores.gather(1, tokens)[..., None]
        remaining = (~mask).scatter(1, tokens, ~kept & ~mask.gather(1, tokens))
        pooled, pooled_pos, log_shares = self._pool(normalized, pos, remaining)
        nothing = ~remaining.any(1, keepdim=True).expand(-1, pooled.shape[1])
        return Sampled(
            src=torch.cat((polled.to(pooled.dtype), pooled), dim=1),
            pos=torch.cat((rows(pos, tokens), pooled_pos), dim=1),
            mask=torch.cat((~kept, nothing), dim=1),
            scores=scores,
            tokens=tokens,
            kept=kept,
            pooled=remaining,
            log_shares=log_shares,
        )

    def _pool(self, normalized: Tensor, pos: Tensor, remaining: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """normalized, pos (B, N, d), remaining (B, N) -> pooled features and positions (B, M, d), and the shares' logarithms."""
        logits = full_precision(self.k_proj(normalized + pos if self.pos_embed_kproj else normalized)).transpose(1, 2)
        log_shares = logits.masked_fill(~remaining[:, None], NEVER).log_softmax(-1)
        shares = log_shares.exp()
        # The shares add up to 1: a mean of projections is the projection of the mean, which is M / N of the work.
        pooled, pooled_pos = (shares.to(x.dtype) @ x for x in (normalized, pos))
        return self.v_proj(pooled), pooled_pos, log_shares


@torch.no_grad()
def poll(scores: Tensor, mask: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """The best pixels of each image, in raster order: :attr:`Sampled.tokens` and :attr:`Sampled.kept`, (B, S) each.

    Of v valid pixels trunc(v * ratio) are polled, reckoned in float32 as by the published code: in float64 it would now and then be
    one more or less. Neighbours in the sequence are neighbours in the image, or nearly so, which ENACT's smoothing relies on.
    """
    counts = ((~mask).sum(1).float() * ratio).long()
    scores = scores.masked_fill(mask, -1.0)
    # S is the size of everything that follows. A sequence has a slot even where it is surplus.
    if torch.compiler.is_compiling():  # no image of this size has more; and ONNX has no stable sort
        most = min(scores.shape[1], scores.shape[1] * math.ceil(ratio * 1000) // 1000 + 1)
        tokens = scores.topk(most, dim=1).indices
    else:
        most = max(1, *counts.tolist())  # the one synchronisation
        tokens = scores.argsort(dim=1, descending=True, stable=True)[:, :most]
    surplus = torch.arange(most, device=scores.device) >= counts[:, None]
    # Surplus slots go to the end of the sequence.
    place = torch.where(surplus, tokens + scores.shape[1], tokens).argsort(dim=1)
    return tokens.gather(1, place), ~surplus.gather(1, place)
