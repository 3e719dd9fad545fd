"""DETR's transformer behind poll and pool (Wang et al., ICCV 2021), with or without ENACT in its encoder.

Shapes: L decoder layers, B images, H x W pixels, N = H * W, Q queries, d features.
"""

from typing import Any

from torch import Tensor, nn

from common.models.detr_decoder import TransformerDecoder
from common.models.transformer import TransformerOptions
from enact import TransformerEncoder

from .sampler import Sampled, Sampler


class Transformer(nn.Module):
    """Sampler, encoder and decoder; encoder and decoder see the short sequence alone.

    Args:
        options: size and form.
        sampler: None for DETR.
        num_pooled: of the sampler's vectors: ENACT leaves them as they are, since they are clusters already.
        clustering: of the polled pixels: what :class:`enact.TransformerEncoder` takes beside sizes.
    """

    def __init__(self, options: TransformerOptions, sampler: Sampler | None, num_pooled: int, **clustering: Any):
        super().__init__()
        self.d_model = options.d_model
        self.encoder = TransformerEncoder(**options.encoder(), **clustering, unclustered=num_pooled if sampler else 0)
        self.decoder = TransformerDecoder(options)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.xavier_uniform_(p)
        self.sampler = sampler  # behind the Xavier initialisation, as published: it starts as its layers do

    def forward(
        self, src: Tensor, mask: Tensor, query_embed: Tensor, pos: Tensor, ratio: float
    ) -> tuple[Tensor, Tensor, Sampled | None]:
        """Detects.

        Args:
            src: (B, d, H, W).
            mask: (B, N) bool, True = padding.
            query_embed: (Q, d).
            pos: (B, N, d).
            ratio: share of the valid pixels that is polled.

        Returns:
            (L, B, Q, d); the memory (B, N, d) or, of the sample, (B, S + M, d); and the sample.
        """
        if self.sampler is None:
            memory = self.encoder(src.flatten(2).transpose(1, 2), mask, pos, tuple(src.shape[-2:]))
            return self.decoder(query_embed, memory, mask, pos), memory, None
        sampled = self.sampler(src, mask, pos, ratio)
        memory = self.encoder(sampled.src, sampled.mask, sampled.pos)
        return self.decoder(query_embed, memory, sampled.mask, sampled.pos), memory, sampled
