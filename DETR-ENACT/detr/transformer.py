"""The transformer of DETR (Carion et al., ECCV 2020) with ENACT in its encoder.

Shapes: L decoder layers, B images, N pixels, Q queries, d features.
"""

from typing import Any

from torch import Tensor, nn

from common.models.detr_decoder import TransformerDecoder
from common.models.transformer import TransformerOptions
from enact import TransformerEncoder


class Transformer(nn.Module):
    """Encoder and decoder.

    Args:
        options: size and form.
        clustering: of the encoder: what :class:`enact.TransformerEncoder` takes beside sizes.
    """

    def __init__(self, options: TransformerOptions, **clustering: Any):
        super().__init__()
        self.d_model = options.d_model
        self.encoder = TransformerEncoder(**options.encoder(), **clustering)
        self.decoder = TransformerDecoder(options)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.xavier_uniform_(p)

    def forward(
        self, src: Tensor, mask: Tensor, query_embed: Tensor, pos: Tensor, feature_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """src (B, N, d), mask (B, N) bool with True = padding, query_embed (Q, d), pos (B, N, d), feature_size H, W.

        Returns:
            What the decoder layers put out (L, B, Q, d), and the memory (B, N, d).
        """
        memory = self.encoder(src, mask, pos, feature_size)
        return self.decoder(query_embed, memory, mask, pos), memory
