"""The encoder: that of torch but for its attention, with positions where they belong, and independent of the batch."""

import pytest
import torch
from torch import nn

from enact import TransformerEncoder, TransformerEncoderLayer, patch
from tests.reference import CLUSTERINGS, pad, random_maps, random_sizes

all_three = pytest.mark.parametrize("clustering", [*CLUSTERINGS, "none"])
both_norms = pytest.mark.parametrize("normalize_before", [False, True], ids=["post-norm", "pre-norm"])


@all_three
@both_norms
def test_encoder_is_that_of_torch_with_other_attention(clustering, normalize_before):
    """Without positions, and with the same parameters under the same names, it equals nn.TransformerEncoder, patched or plain."""
    torch.manual_seed(0)
    encoder = TransformerEncoder(16, 2, 2, 32, 0.0, "gelu", normalize_before, clustering=clustering).double()
    layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, "gelu", batch_first=True, norm_first=normalize_before)
    norm = nn.LayerNorm(16) if normalize_before else None
    other = nn.TransformerEncoder(layer, 2, norm, enable_nested_tensor=False).double()
    if clustering != "none":
        patch(other, clustering=clustering)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    other.load_state_dict(encoder.state_dict())
    src, padding = pad(random_maps([(5, 8), (3, 6), (4, 1)], 16), fill=1.0)
    torch.testing.assert_close(encoder(src, padding), other(src, src_key_padding_mask=padding))


@both_norms
def test_positions_are_added_to_queries_and_keys_alone(normalize_before):
    """The clusters see keys with their positions (section 3.1), the values stay free of them."""
    torch.manual_seed(0)
    layer, given = TransformerEncoderLayer(16, 2, 32, normalize_before=normalize_before), []
    layer.self_attn.register_forward_pre_hook(lambda module, inputs: given.extend(inputs))
    src, pos = torch.randn(2, 1, 30, 16)
    layer(src, None, pos)
    value = layer.norm1(src) if normalize_before else src
    torch.testing.assert_close(given, [value + pos, value + pos, value])


@all_three
@both_norms
def test_encoder_does_not_depend_on_the_batch(clustering, normalize_before):
    """An image's memory is the same alone and among padded others of very different size, with positions and any padding."""
    torch.manual_seed(0)
    encoder = TransformerEncoder(
        16, 2, num_layers=3, dim_feedforward=32, normalize_before=normalize_before, clustering=clustering
    ).double()
    encoder.eval()
    for sizes in [[(1, 1), (20, 25), (1, 40), (30, 1)], *(random_sizes(3, 12) for _ in range(4))]:
        maps, positions = random_maps(sizes, 16), random_maps(sizes, 16)
        src, padding = pad(maps, fill=1e3)
        memory = encoder(src, padding, pad(positions, fill=-50.0)[0])
        for b, (x, pos) in enumerate(zip(maps, positions)):
            alone = encoder(x.flatten(0, 1)[None], None, pos.flatten(0, 1)[None])
            torch.testing.assert_close(memory[b, ~padding[b]], alone[0], atol=1e-6, rtol=0)
