"""DAC-DETR's transformer: Deformable DETR's, with a decoder that runs twice on the same layers (Hu et al., NeurIPS 2023).

Shapes: B images, N tokens of S feature levels, P denoising and Q matching queries, L decoder layers, d features.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from common.models.deformable_transformer import DeformableDecoderLayer, DeformableEncoder, DeformableTransformer
from common.models.layers import in_full_precision, inverse_sigmoid
from common.models.levels import Levels
from common.models.transformer import TransformerOptions


class Stream(NamedTuple):
    """What one of the decoders found.

    Attributes:
        hs: (L, B, P + Q, d) the outputs of the layers.
        boxes: (L, B, P + Q, 4) cxcywh in [0, 1].
    """

    hs: Tensor
    boxes: Tensor


class Transformer(DeformableTransformer):
    """Encoder, proposals and both decoders.

    Args:
        options: size and form.
        num_levels: S.
        enc_n_points, dec_n_points: points of a level that a head looks at.
        look_forward_twice: as for :class:`Decoder`.
    """

    def __init__(
        self, options: TransformerOptions, num_levels: int, enc_n_points: int, dec_n_points: int, look_forward_twice: bool
    ):
        encoder = DeformableEncoder(options, num_levels, enc_n_points)
        decoder = Decoder(options, num_levels, dec_n_points, look_forward_twice)
        super().__init__(encoder, decoder, options.d_model, num_levels, query_width=2 * options.d_model)
        self.reset_parameters()

    def positions(self, reference: Tensor) -> Tensor:
        """The logits of boxes (B, n, 4) -> (B, n, d); the other half of the features is for contents, which are learned here."""
        return self.embed_boxes(reference)[..., : self.d_model]


class Decoder(nn.Module):
    """The O-decoder, and beside it the C-decoder: the same layers without self-attention, but for the first layer's.

    In the first layer both are one. From then on the C-decoder's queries do not see each other; they gather at objects, which
    the O-decoder's self-attention keeps them from.

    Args:
        options, num_levels, num_points: as for its layers.
        look_forward_twice: a layer's box is relative to the one before with its gradient, which so reaches two layers (DINO).
    """

    def __init__(self, options: TransformerOptions, num_levels: int, num_points: int, look_forward_twice: bool):
        super().__init__()
        self.look_forward_twice = look_forward_twice
        self.layers = nn.ModuleList(DeformableDecoderLayer(options, num_levels, num_points) for _ in range(options.dec_layers))

    def forward(
        self,
        tgt: Tensor,
        query_pos: Tensor,
        reference: Tensor,
        memory: Tensor,
        levels: Levels,
        bbox_embed: Sequence[nn.Module],
        *,
        absent: Tensor,
        attn_mask: Tensor | None = None,
        both: bool = False,
    ) -> list[Stream]:
        """Decodes.

        Args:
            tgt, query_pos: (B, P + Q, d).
            reference: (B, P + Q, 4) boxes in [0, 1] of the valid part of the image.
            memory: (B, N, d).
            levels: of the memory.
            bbox_embed: a box head for each layer.
            absent: (B, P + Q) bool, queries that the others do not see.
            attn_mask: (P + Q, P + Q) bool, True = not seen.
            both: run the C-decoder, too. Its queries stand behind the O-decoder's, so that each layer attends to the memory once.

        Returns:
            The O-decoder's stream and, with ``both``, the C-decoder's.
        """
        queries, copies = tgt.shape[1], 2 if both else 1
        streams, previous, everywhere = tgt, reference, query_pos.repeat(1, copies, 1)
        hs, boxes = [], []
        for i, (layer, head) in enumerate(zip(self.layers, bbox_embed)):
            own = layer.attend_queries(streams[:, :queries], query_pos, absent, attn_mask)
            streams = torch.cat((own, streams[:, queries:]), dim=1)
            pos = everywhere[:, : streams.shape[1]]
            streams, _ = layer.attend_memory(streams, pos, levels.in_maps(reference), memory, levels)
            step = in_full_precision(head, streams)
            refined = (step + inverse_sigmoid(reference)).sigmoid()
            box = (step + inverse_sigmoid(previous)).sigmoid() if self.look_forward_twice else refined
            if both and i == 0:  # from here on they differ
                streams, refined, box = (x.repeat(1, 2, 1) for x in (streams, refined, box))
            previous, reference = refined, refined.detach()
            hs.append(streams)
            boxes.append(box)
        hs, boxes = torch.stack(hs), torch.stack(boxes)
        return [Stream(*parts) for parts in zip(*(x.unflatten(2, (-1, queries)).unbind(2) for x in (hs, boxes)))]
