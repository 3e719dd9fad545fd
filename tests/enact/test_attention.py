"""Clustered attention: a drop-in for plain attention, with right gradients, and cheap."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from enact import ClusteredAttention, EntropyClustering, TransformerEncoder, TransformerEncoderLayer
from tests.reference import CLUSTERINGS, pad, random_maps, smooth

both = pytest.mark.parametrize("clustering", CLUSTERINGS)


def attention(clustering="region", d=8, heads=2, **options):
    """Clustered attention in float64 with every parameter random, W_prob strong enough for clear decisions; batch first."""
    clustered = ClusteredAttention(d, heads, clustering=clustering, **{"batch_first": True, "dtype": torch.float64, **options})
    for parameter in clustered.parameters():
        nn.init.normal_(parameter, std=d**-0.5)
    nn.init.normal_(clustered.W_prob.weight, std=2 * d**-0.5)
    return clustered


def batch(d=8, queries=7):
    """query (3, 7, d), key and value (3, 40, d), and a mask with 40, 23 and 4 valid keys at random places."""
    query, key, value = (torch.randn(3, n, d, dtype=torch.float64) for n in (queries, 40, 40))
    padding = torch.rand(3, 40).argsort(1) >= torch.tensor([[40], [23], [4]])
    return query, key, value, padding


# Gradients


@both
def test_gradients(clustering):
    """Output and weights have the derivatives of finite differences for every input and W_prob, between the changes of clusters."""
    torch.manual_seed(0)
    clustered = attention(clustering, d=4, smoothing_sigma=1.0)
    query, key, value, padding = (x[:2, :9] for x in batch(d=4, queries=2))
    padding[:, :2] = False
    inputs = [x.clone().requires_grad_() for x in (query, key, value, clustered.W_prob.weight.detach())]
    sizes = clustered.W_prob(key, padding).count
    assert (sizes > 1).all() and (sizes < (~padding).sum(1)).any()

    def run(query, key, value, weight):
        arguments = (query, key, value, padding)
        return functional_call(clustered, {"W_prob.weight": weight}, arguments, {"average_attn_weights": False})

    assert torch.autograd.gradcheck(run, inputs)


@both
def test_the_scores_are_trained(clustering):
    """W_prob learns through the weights of eq. 7; its bias cannot, since the softmax of eq. 4 cancels it."""
    torch.manual_seed(0)
    clustered = attention(clustering)
    clustered(*batch())[0].square().sum().backward()
    scale = clustered.W_prob.weight.grad.abs().max()
    assert scale > 1e-4 and clustered.W_prob.bias.grad.abs() < 1e-12 * scale


@both
def test_an_image_that_is_all_padding_is_harmless(clustering):
    """Such an image gives numbers, and neither its forward nor its backward pass reaches the rest of the batch."""
    torch.manual_seed(0)
    clustered = attention(clustering)
    query, key, value, padding = batch()
    key[1] = value[1] = 1e30
    padding[1] = True
    key.requires_grad_()
    out, weights = clustered(query, key, value, padding)
    out.square().sum().backward()
    assert out.isfinite().all() and key.grad.isfinite().all() and not weights[1].any()
    assert all(parameter.grad.isfinite().all() for parameter in clustered.parameters())
    others = torch.tensor([0, 2])
    assert clustered.W_prob(key[1:2, :1], padding[1:2, :1]).size == 1
    alone = clustered(query[others], key[others], value[others], padding[others])[0]
    torch.testing.assert_close(out[others], alone)


# The same function as plain attention where nothing is pooled, and the same interface


def logits_of_single_pixels(n):
    """Scores of n (even) pixels each of which is a cluster: after smoothing with sigma 1, the second derivative alternates in sign.

    Smoothing and bending are linear, and near equal probabilities so is the information: invert both.
    """
    columns = []
    for pixel in range(n):
        unit = [float(i == pixel) for i in range(n)]
        smoothed = [smooth(unit, i, sigma=1, radius=3) for i in range(-1, n + 1)]
        columns.append([2 * smoothed[i + 1] - smoothed[i] - smoothed[i + 2] for i in range(n)])
    bend = torch.tensor(columns, dtype=torch.float64).T
    alternating = (-1.0) ** torch.arange(n, dtype=torch.float64)
    information = torch.linalg.lstsq(bend, alternating[:, None], driver="gelsd").solution[:, 0]
    information -= information.mean()
    return (1 / n + 1e-3 / n * information / information.abs().max()).log()


@pytest.mark.parametrize("masked", [False, True])
def test_one_pixel_per_cluster_is_plain_attention(masked):
    """Where every pixel is its own cluster, the outputs and the weights are those of nn.MultiheadAttention."""
    torch.manual_seed(0)
    clustered = attention(smoothing_sigma=1.0)
    plain = nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
    plain.load_state_dict(clustered.state_dict(), strict=False)
    clustered.W_prob.weight.data = torch.eye(8, dtype=torch.float64)[:1]  # the first feature is the score
    maps = random_maps([(2, 6), (5, 2), (1, 4)] if masked else [(3, 4)] * 3, 8)
    for x in maps:
        x[..., 0] = logits_of_single_pixels(x[..., 0].numel()).view_as(x[..., 0])
    key, padding = pad(maps, fill=0.5)
    padding = padding if masked else None
    assert clustered.W_prob(key, padding).count.tolist() == [x[..., 0].numel() for x in maps]

    query, value = torch.randn(3, 5, 8, dtype=torch.float64), torch.randn_like(key)
    for average in (True, False):
        arguments = dict(key_padding_mask=padding, average_attn_weights=average)
        torch.testing.assert_close(clustered(query, key, value, **arguments), plain(query, key, value, **arguments))


@pytest.mark.parametrize("bias", [True, False])
def test_parameters_are_those_of_plain_attention(bias):
    """The weights of a plain attention load and lack W_prob alone, which starts as the paper says; a bias-free one works too."""
    plain, clustered = nn.MultiheadAttention(8, 2, bias=bias), ClusteredAttention(8, 2, bias=bias)
    result = clustered.load_state_dict(plain.state_dict(), strict=False)
    assert result.unexpected_keys == [] and result.missing_keys == ["W_prob.weight", "W_prob.bias"]
    assert clustered.W_prob.weight.shape == (1, 8) and clustered.W_prob.bias.tolist() == [0.0]
    assert clustered(*torch.randn(3, 5, 2, 8))[0].shape == (5, 2, 8)


@both
def test_layouts_and_masks_agree(clustering):
    """Batch first or second, one image without a batch, a bool or a float mask: the same numbers."""
    torch.manual_seed(0)
    clustered = attention(clustering)
    *x, padding = batch()
    expected = clustered(*x, padding)
    float_mask = torch.zeros(padding.shape, dtype=torch.float64).masked_fill(padding, -torch.inf)
    torch.testing.assert_close(clustered(*x, float_mask), expected)

    second = attention(clustering, batch_first=False)
    second.load_state_dict(clustered.state_dict())
    out, weights = second(*(t.transpose(0, 1) for t in x), padding)
    torch.testing.assert_close((out.transpose(0, 1), weights), expected)

    for module in (clustered, second):
        for mask in (padding, float_mask):
            torch.testing.assert_close(module(*(t[1] for t in x), mask[1]), (expected[0][1], expected[1][1]))


@both
def test_weights_are_those_of_the_original_keys(clustering):
    """need_weights gives a distribution over the N keys, 0 at padding, that turns the projected values into the output."""
    torch.manual_seed(0)
    clustered = attention(clustering)
    query, key, value, padding = batch()
    out, weights = clustered(query, key, value, padding, average_attn_weights=False)
    assert weights.shape == (3, 2, 7, 40)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 7, dtype=torch.float64))
    assert not weights[padding[:, None, None, :].expand_as(weights)].any()
    projected = nn.functional.linear(value, clustered.in_proj_weight[16:], clustered.in_proj_bias[16:])
    heads = weights @ projected.unflatten(-1, (2, 4)).transpose(1, 2)
    torch.testing.assert_close(clustered.out_proj(heads.transpose(1, 2).flatten(2)), out)

    torch.testing.assert_close(clustered(query, key, value, padding), (out, weights.mean(1)))
    unweighted = clustered(query, key, value, padding, need_weights=False)
    assert unweighted[1] is None
    torch.testing.assert_close(unweighted[0], out)


@pytest.mark.parametrize("mask", [{"attn_mask": torch.zeros(5, 5)}, {"is_causal": True}], ids=lambda mask: next(iter(mask)))
def test_masks_between_pixels_are_refused(mask):
    """A mask that clusters cannot obey is an error and not ignored."""
    with pytest.raises(ValueError, match="attn_mask"):
        ClusteredAttention(8, 2)(*torch.randn(3, 5, 1, 8), **mask)


def test_dropout_only_in_training():
    """Attention dropout follows the training flag."""
    torch.manual_seed(0)
    clustered, x = attention(dropout=0.5), batch()
    training, evaluation = clustered(*x)[0], clustered.eval()(*x)[0]
    assert not torch.allclose(training, evaluation)
    clustered.train().dropout = 0.0
    torch.testing.assert_close(clustered(*x)[0], evaluation)


@both
def test_decisions_keep_their_precision_in_bfloat16(clustering):
    """Mixed precision and bfloat16 weights change the attention by rounding and, for the same keys, the clusters not at all."""
    torch.manual_seed(0)
    half = attention(clustering, d=16, dtype=torch.bfloat16)
    full = attention(clustering, d=16, dtype=torch.float32)
    full.load_state_dict(half.state_dict())
    *x, padding = batch(d=16)
    x = [t.bfloat16() for t in x]
    exact = [t.float() for t in x]
    expected, clusters = full(*exact, padding), full.W_prob(exact[1], padding)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = [(full(*inputs, padding), full.W_prob(inputs[1], padding)) for inputs in (exact, x)]
    for (out, weights), found in [*mixed, (half(*x, padding), half.W_prob(x[1], padding))]:
        assert torch.equal(found.index, clusters.index) and torch.equal(found.weight, clusters.weight)
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close((out.float(), weights.float()), expected, atol=0.05, rtol=0.05)


# Cost


class Created(TorchDispatchMode):
    """Records the most elements of any tensor that an operation returns, and the devices of all."""

    def __init__(self):
        super().__init__()
        self.most, self.devices = 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.most = max(self.most, tensor.numel())
                self.devices.add(tensor.device.type)
        return out


@both
@pytest.mark.parametrize("sigma", [3.0, 5.0])
def test_memory_is_linear_in_the_pixels(clustering, sigma):
    """No tensor grows faster than N, forward or backward, but for the N x M of the attention: few clusters, no large tensor."""
    torch.manual_seed(0)
    n, d = 2000, 16
    key = torch.linspace(-3, 3, n)[None, :, None].sin().repeat(1, 1, d).requires_grad_()  # smooth: a few clusters
    padding = torch.arange(n)[None] >= n - 100
    layer = TransformerEncoderLayer(d, 2, 32, clustering=clustering, smoothing_sigma=sigma)
    assert layer.self_attn.W_prob(key, padding).size < 64 / layer.self_attn.num_heads
    with Created() as created:
        layer(key, padding).square().sum().backward()
    assert n * d <= created.most <= n * 64

    enact = EntropyClustering(d, clustering, sigma)
    key = torch.randn(1, n, d)  # many clusters
    with Created() as created:
        clusters = enact(key, padding)
        clusters.pool(key)
    assert clusters.size > 64 and created.most <= n * 64


@both
def test_one_device_synchronisation_per_layer(clustering, monkeypatch):
    """The number of clusters is all that the host ever reads: fake GPU tensors have a shape, but any other look at them fails."""
    reads = []

    def tolist(counts):
        reads.append(counts.shape)
        return [3, 7]

    monkeypatch.setattr(FakeTensor, "tolist", tolist)
    try:
        with FakeTensorMode(), Created() as created, torch.device("cuda"):
            encoder = TransformerEncoder(16, 2, num_layers=3, dim_feedforward=32, clustering=clustering)
            src, padding = torch.randn(2, 30, 16), torch.zeros(2, 30, dtype=torch.bool)
            assert encoder(src, padding, src).shape == src.shape
            assert reads == [(2,)] * 3
            encoder.layers[0].self_attn(src, src, src, padding)
    except RuntimeError as error:
        if "CUDA driver" in str(error):
            pytest.skip("the fake GPU tensors of this version of torch need a CUDA driver")
        raise
    assert len(reads) == 4 and created.devices == {"cuda"}


@both
@pytest.mark.parametrize("masked", [False, True])
def test_keys_in_front_are_keys_at_the_end(clustering, masked):
    """Attention does not know the order of its keys: what stays as it is may stand before the pixels or behind them."""
    torch.manual_seed(0)
    front = attention(clustering, prefix=5)
    end = attention(clustering, unclustered=5)
    end.load_state_dict(front.state_dict())
    query, key, value, padding = batch()
    behind = [x.roll(-5, dims=1) for x in (key, value, padding)]
    padding, behind[2] = (padding, behind[2]) if masked else (None, None)
    expected, weights = end(query, *behind)
    found = front(query, key, value, padding)
    torch.testing.assert_close(found, (expected, weights.roll(5, dims=2)))
