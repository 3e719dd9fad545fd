"""ENACT: entropy-based clustering of attention input for detection transformers.

A plug-in for the self-attention of a transformer encoder. Keys and values are pooled into data-driven clusters of pixels with
similar self-information; queries stay, so the output keeps its size while attention costs N x M instead of N x N.

    enact.patch(model)                          # the encoder attention of torch, timm and transformers models, one line
    enact.ClusteredAttention(256, 8)            # a drop-in for nn.MultiheadAttention
    with enact.record(model) as clusters: ...   # look at the information, the regions and their number
"""

from .attention import ClusteredAttention
from .clustering import CLUSTERINGS, Clusters, EntropyClustering
from .encoder import TransformerEncoder, TransformerEncoderLayer
from .patching import patch, record
from .released import convert_released_attention, reveal_clustering, to_released_attention

__all__ = [
    "CLUSTERINGS",
    "ClusteredAttention",
    "Clusters",
    "EntropyClustering",
    "TransformerEncoder",
    "TransformerEncoderLayer",
    "convert_released_attention",
    "patch",
    "record",
    "reveal_clustering",
    "to_released_attention",
]
