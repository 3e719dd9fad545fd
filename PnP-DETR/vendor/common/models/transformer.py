"""What the layers of a transformer have in common."""

from argparse import Namespace
from dataclasses import dataclass
from typing import Any


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

    def encoder(self) -> dict[str, Any]:
        """What an encoder of layers like ``nn.TransformerEncoderLayer`` is built with."""
        return {
            "d_model": self.d_model,
            "nhead": self.nhead,
            "num_layers": self.enc_layers,
            "dim_feedforward": self.dim_feedforward,
            "dropout": self.dropout,
            "normalize_before": self.normalize_before,
        }


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
