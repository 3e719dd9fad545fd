"""Which tokens the encoder updates: the scoring network of Sparse DETR, and the selection (Roh et al., ICLR 2022, section 3.1).

Shapes: B images, N tokens, k selected ones, d features.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class ScoringNetwork(nn.Module):
    """Scores tokens by themselves and by the mean of their image.

    Args:
        d_model: d.
    """

    def __init__(self, d_model: int):
        super().__init__()
        self.layer1 = nn.Sequential(nn.LayerNorm(d_model), nn.Linear(d_model, d_model), nn.GELU())
        self.layer2 = nn.Sequential(
            nn.Linear(d_model, d_model // 2),
            nn.GELU(),
            nn.Linear(d_model // 2, d_model // 4),
            nn.GELU(),
            nn.Linear(d_model // 4, 1),
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, N, d), mask (B, N) bool with True = padding -> (B, N) float32 logits.

        The second half of the features becomes its mean over the image, of the tokens that are not padding: with them, as in the
        released code, what an image keeps would depend on the images that it is batched with.
        """
        own, shared = self.layer1(x).chunk(2, dim=-1)
        total = shared.masked_fill(mask[..., None], 0.0).sum(1, keepdim=True)
        shared = (total / (~mask).sum(1)[:, None, None]).to(own.dtype)
        return self.layer2(torch.cat((own, shared.expand_as(own)), dim=-1)).squeeze(-1).float()


class Selection(NamedTuple):
    """The tokens that the encoder updates.

    Attributes:
        scores: (B, N) of all tokens.
        tokens: (B, k) indices of tokens, the best first.
        kept: (B, k) bool, the first n_i of each image. The others are surplus: they are carried along, since images of a batch may
            keep different numbers, and never used.
    """

    scores: Tensor
    tokens: Tensor
    kept: Tensor

    @property
    def counts(self) -> Tensor:
        """(B,) n_i."""
        return self.kept.sum(1)

    def gather(self, x: Tensor) -> Tensor:
        """x (B, N, ...) -> (B, k, ...)."""
        index = self.tokens.reshape(*self.tokens.shape, *[1] * (x.dim() - 2))
        return x.gather(1, index.expand(-1, -1, *x.shape[2:]))

    def scatter(self, x: Tensor, update: Tensor, before: Tensor) -> Tensor:
        """x (B, N, d) with the kept rows of update (B, k, d); before (B, k, d) is what x has there."""
        index = self.tokens[..., None].expand_as(update)
        return x.scatter(1, index, torch.where(self.kept[..., None], update, before).to(x.dtype))


def count_tokens(valid: Tensor, rho: float) -> Tensor:
    """How many of ``valid`` tokens are kept: the share rho, rounded down in float32, and one more, but not more than there are."""
    return torch.minimum((valid.float() * rho).trunc().long() + 1, valid)


def select(scores: Tensor, mask: Tensor, rho: float) -> Selection:
    """The best tokens of each image.

    k is what an image without padding keeps; it follows from N alone, so that no number has to come from the device.

    Args:
        scores: (B, N).
        mask: (B, N) bool, True = padding, which is not selected.
        rho: share of the tokens, in (0, 1].
    """
    size = count_tokens(torch.tensor(scores.shape[1]), rho).item()
    tokens = scores.detach().masked_fill(mask, -torch.inf).topk(size, dim=1).indices
    counts = count_tokens((~mask).sum(1), rho)
    return Selection(scores, tokens, torch.arange(size, device=scores.device) < counts[:, None])
