"""What the layers of a transformer have in common."""

from argparse import Namespace
from dataclasses import dataclass


@dataclass(frozen=True)
class TransformerOptions:
    """The size and the form of a transformer.

    Attributes:
        d_model, nhead, dim_feedforward, dropout: as in ``nn.Transformer``.
        enc_layers, dec_layers: how many layers.
        normalize_before: normalise before each part (pre-norm) instead of after it.
    """

    d_model: int
    nhead: int
    dim_feedforward: int
    dropout: float
    enc_layers: int
    dec_layers: int
    normalize_before: bool = False


def build_transformer_options(args: Namespace) -> TransformerOptions:
    return TransformerOptions(
        d_model=args.hidden_dim,
        nhead=args.nheads,
        dim_feedforward=args.dim_feedforward,
        dropout=args.dropout,
        enc_layers=args.enc_layers,
        dec_layers=args.dec_layers,
        normalize_before=getattr(args, "pre_norm", False),
    )
