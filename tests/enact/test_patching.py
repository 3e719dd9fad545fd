"""Plugging into models of torch and torchvision: the clustering really runs, the weights stay, and recording leaves no trace."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer

import enact
from enact import ClusteredAttention, EntropyClustering
from tests.reference import CLUSTERINGS


def encoder(norm_first=False):
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=norm_first)
    return nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=not norm_first)


def encoder_input():
    """src (2, 40, 16) and its padding mask; the second image has 25 valid pixels, not at the end."""
    return torch.randn(2, 40, 16), torch.arange(40) % 8 >= torch.tensor([[8], [5]])


def vision_transformer():
    return VisionTransformer(image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32)


def spread(model):
    """Draws scores that differ enough for many clusters."""
    for module in model.modules():
        if isinstance(module, EntropyClustering):
            nn.init.normal_(module.weight, std=1.0)


# Replacing


@pytest.mark.parametrize("clustering", CLUSTERINGS)
@pytest.mark.parametrize("norm_first", [False, True], ids=["post-norm", "pre-norm"])
@pytest.mark.parametrize("patched", ["encoder", "single layer"])
def test_fused_kernels_do_not_bypass_the_clustering(clustering, norm_first, patched):
    """In evaluation without gradients torch has fast paths that read an attention's weights and never call it."""
    torch.manual_seed(0)
    model = encoder(norm_first) if patched == "encoder" else encoder(norm_first).layers[0]
    src, padding = encoder_input()
    plain = model(src, src_key_padding_mask=padding)
    names = enact.patch(model, clustering=clustering, smoothing_sigma=1.0)
    assert names == [name for name, m in model.named_modules() if isinstance(m, ClusteredAttention)]
    spread(model)
    for mask in (None, padding, padding.sort(1).values):  # torch makes a nested tensor of sequences that are padded at the end only
        with enact.record(model.train()) as clusters:
            expected = model(src, src_key_padding_mask=mask)
        assert len(clusters) == (2 if patched == "encoder" else 1) and all(1 < c.size < 40 for c in clusters.values())
        with torch.no_grad():  # and without record: torch leaves its fast paths where there are hooks
            found = model.eval()(src, src_key_padding_mask=mask)
        torch.testing.assert_close(found, expected)
        assert not torch.allclose(found, plain, atol=1e-3)


@pytest.mark.parametrize("clustering", CLUSTERINGS)
def test_vision_transformer_of_torchvision(clustering):
    """One line plugs into a model of another library, in evaluation and in training."""
    torch.manual_seed(0)
    model = vision_transformer()
    names = enact.patch(model, clustering=clustering, smoothing_sigma=1.0)
    assert names == [f"encoder.layers.encoder_layer_{i}.self_attention" for i in (0, 1)]
    images = torch.randn(2, 3, 32, 32)
    nn.init.normal_(model.heads.head.weight)
    expected = model(images)
    expected.square().sum().backward()
    assert all(model.get_submodule(name).W_prob.weight.grad.abs().sum() > 0 for name in names)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), expected)


@pytest.mark.parametrize(
    ("options", "renamed", "replaced"),
    [
        ({}, False, ["encoder.layers.0.self_attn", "encoder.layers.1.self_attn"]),
        ({}, True, ["encoder.layers.0.self_attn", "encoder.layers.1.self_attn"]),
        (
            {"where": lambda name, attention: "1.multi" in name and attention.embed_dim == 16},
            False,
            ["decoder.layers.1.multihead_attn"],
        ),
    ],
    ids=["default", "decoder of another name", "chosen"],
)
def test_where(options, renamed, replaced):
    """The decoder stays plain unless it is asked for, and what is not chosen stays the very same module."""
    model = nn.Transformer(16, 2, 2, 2, 32, batch_first=True)
    if renamed:
        model.head, model.decoder = model.decoder, None
    before = {name: module for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)}
    assert enact.patch(model, **options) == replaced
    for name, module in before.items():
        assert (
            isinstance(model.get_submodule(name), ClusteredAttention) if name in replaced else model.get_submodule(name) is module
        )


def test_patched_transformer_runs():
    """The decoder of nn.Transformer attends to the memory of a clustered encoder."""
    torch.manual_seed(0)
    model = nn.Transformer(16, 2, 2, 2, 32, dropout=0.0, batch_first=True)
    src, padding = encoder_input()
    queries = torch.randn(2, 3, 16)
    plain = model(src, queries, src_key_padding_mask=padding, memory_key_padding_mask=padding)
    enact.patch(model)
    clustered = model(src, queries, src_key_padding_mask=padding, memory_key_padding_mask=padding)
    assert clustered.shape == plain.shape and clustered.isfinite().all() and not torch.allclose(clustered, plain)


def nothing_left():
    model = encoder()
    enact.patch(model)
    return model


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        (lambda: nn.Linear(2, 2), {}, r"pass a model with an attention of torch \(nn.MultiheadAttention\)"),
        (lambda: nn.MultiheadAttention(8, 2), {}, "call ClusteredAttention.from_attention"),
        (encoder, {"where": lambda name, attention: False}, "chosen by where"),
        (nothing_left, {}, "clustered already"),
    ],
    ids=["no attention", "an attention itself", "none chosen", "patched before"],
)
def test_nothing_to_replace_is_an_error(model, options, reason):
    """A call that would change nothing says so, and does not leave a plain model that is taken for a clustered one."""
    with pytest.raises(ValueError, match=reason):
        enact.patch(model(), **options)


@pytest.mark.parametrize(
    "unsupported", [{"kdim": 4}, {"add_bias_kv": True}, {"add_zero_attn": True}], ids=lambda option: next(iter(option))
)
def test_unsupported_attention_leaves_the_model_alone(unsupported):
    """A model with an attention that cannot be clustered is refused as a whole, not half-patched."""
    model = nn.ModuleList([nn.MultiheadAttention(8, 2), nn.MultiheadAttention(8, 2, **unsupported)])
    with pytest.raises(ValueError, match="kdim"):
        enact.patch(model)
    assert not any(isinstance(module, ClusteredAttention) for module in model)


# The weights


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("dtype", "device"), [(torch.float64, "cpu"), (torch.bfloat16, "cpu"), (torch.float32, "meta")])
@pytest.mark.parametrize("options", [{}, {"bias": False, "dropout": 0.2, "batch_first": True}], ids=["plain", "options"])
def test_parameters_are_shared(training, dtype, device, options):
    """An optimiser built before still holds every old parameter; dtype, device, mode and options are those of the attention."""
    model = nn.Sequential(nn.MultiheadAttention(8, 2, dtype=dtype, device=device, **options)).train(training)
    model[0].out_proj.weight.requires_grad_(False)
    plain = model[0]
    enact.patch(model, clustering="window", smoothing_sigma=5.0)
    parameters = dict(model[0].named_parameters())
    assert all(parameters.pop(name) is parameter for name, parameter in plain.named_parameters())
    assert set(parameters) == {"W_prob.weight", "W_prob.bias"}
    assert all(new.dtype == dtype and new.device.type == device for new in parameters.values())
    for name in ("embed_dim", "num_heads", "dropout", "batch_first", "training"):
        assert getattr(model[0], name) == getattr(plain, name)
    assert model[0].W_prob.training == training
    assert (model[0].W_prob.clustering, model[0].W_prob.smoothing_sigma) == ("window", 5.0)


def test_an_attention_in_two_places_stays_one():
    """Layers that share their weights share their scores too."""
    shared = nn.MultiheadAttention(8, 2)
    model = nn.ModuleDict({"first": shared, "second": nn.ModuleDict({"inner": shared})})
    assert enact.patch(model) == ["first", "second.inner"]
    assert model["first"] is model["second"]["inner"] and isinstance(model["first"], ClusteredAttention)


def test_copies_and_checkpoints():
    """A patched model can be copied, and its state loads into another that was patched alike, in evaluation too."""
    torch.manual_seed(0)
    model, other = encoder(), encoder()
    for each in (model, other):
        enact.patch(each, smoothing_sigma=1.0)
        spread(each)
    src, padding = encoder_input()
    duplicate = copy.deepcopy(model)
    assert not {id(p) for p in duplicate.parameters()} & {id(p) for p in model.parameters()}
    other.load_state_dict(model.state_dict())
    expected = model(src, src_key_padding_mask=padding)
    with torch.no_grad():
        for each in (duplicate, other):
            torch.testing.assert_close(each.eval()(src, src_key_padding_mask=padding), expected)


# Recording


def hooks(model):
    return [hook for module in model.modules() for hook in module._forward_hooks.values()]


def test_record_collects_clusters_by_name():
    """Every layer's latest clusters are there by the name of its module, and what it found is what the module finds."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"encoder": encoder()}).eval()
    enact.patch(model)
    src, padding = encoder_input()
    with enact.record(model) as clusters:
        model["encoder"](torch.randn(1, 5, 16))
        model["encoder"](src, src_key_padding_mask=padding)
    assert list(clusters) == [f"encoder.layers.{i}.self_attn.W_prob" for i in (0, 1)]
    expected = model["encoder"].layers[0].self_attn.W_prob(src, padding)
    torch.testing.assert_close(vars(clusters["encoder.layers.0.self_attn.W_prob"]), vars(expected))
    assert not hooks(model)


def test_record_cleans_up_after_an_error():
    """A forward pass that fails inside the context is reported and leaves no hook that would keep tensors alive."""
    model = encoder()
    enact.patch(model)
    with pytest.raises(RuntimeError, match="boom"), enact.record(model):
        assert len(hooks(model)) == 2
        raise RuntimeError("boom")
    assert not hooks(model)
