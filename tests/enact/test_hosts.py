"""Plugging into the models that people use: each host's own numbers where nothing is pooled, its weights, its masks, its tokens."""

import copy
import pickle
import sys

import pytest
import timm
import torch
import transformers
from torch import nn
from torchvision.models import swin_t

import enact
from enact import ClusteredAttention, Clusters, EntropyClustering
from tests.hosts import HOSTS, MASKED, SIDE, build, outputs

each = pytest.mark.parametrize("name", HOSTS)
each_twice = pytest.mark.parametrize(("name", "implementation"), [(name, i) for name in HOSTS for i in HOSTS[name].implementations])


def images(count=2):
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def spread(model):
    """Draws scores that differ enough for many clusters."""
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, EntropyClustering):
            module.weight.data = torch.randn(module.weight.shape, generator=generator)


def one_pixel_each(scores, key, key_padding_mask=None, feature_size=None):
    """Instead of `EntropyClustering.forward`: every valid pixel is a cluster."""
    valid = torch.ones(key.shape[:2], dtype=torch.bool) if key_padding_mask is None else ~key_padding_mask
    count = valid.sum(1)
    index = (valid.cumsum(1) - 1).clamp(min=0)
    size = int(count.max())
    return Clusters(valid.float(), valid.float(), index, valid.float(), count, size, bool(count.min() < size))


# The same function as the plain model where nothing is pooled, and another one where something is


@each_twice
def test_one_pixel_per_cluster_is_the_plain_model(name, implementation, monkeypatch):
    """Projections, positions, scales, norms, gates, masks and tokens in front are the host's own."""
    model, x, inputs = build(name, implementation).double(), images().double(), {}
    if name in MASKED:
        inputs["pixel_mask"] = torch.ones(2, SIDE, SIDE, dtype=torch.long)
        inputs["pixel_mask"][1, 40:], inputs["pixel_mask"][1, :, 24:] = 0, 0
    expected = outputs(model, x, **inputs)
    names = enact.patch(model, smoothing_sigma=1.0)
    spread(model)
    with enact.record(model) as clusters:
        pooled = outputs(model, x, **inputs)
    assert list(clusters) == [f"{attention}.W_prob" for attention in names] and len(names) == 2
    for found in clusters.values():
        assert found.index.shape == (2, HOSTS[name].pixels) and 1 < found.size < HOSTS[name].pixels
        assert bool((found.weight == 0).any()) == (name in MASKED)
    assert max((new - old).abs().max() for new, old in zip(pooled, expected)) > 1e-3

    monkeypatch.setattr(EntropyClustering, "forward", one_pixel_each)
    torch.testing.assert_close(outputs(model, x, **inputs), expected, rtol=1e-5, atol=1e-6)


def of_timm():
    """timm's attention, its input as query, key and value, and its weights as those of `nn.MultiheadAttention`."""
    attention = timm.layers.Attention(16, 2, qkv_bias=True)
    x = torch.randn(2, 30, 16)
    state = {}
    for part in ("weight", "bias"):
        state[f"in_proj_{part}"] = getattr(attention.qkv, part).detach()
        state[f"out_proj.{part}"] = getattr(attention.proj, part).detach()
    return attention, lambda: attention(x), (x, x), state


def of_transformers():
    """The same of DETR's encoder, whose queries and keys have positions."""
    model = build("DETR")
    attention = copy.deepcopy(model.model.encoder.layers[0].self_attn)
    x, positions = torch.randn(2, 2, 30, 32)
    state = {}
    for part in ("weight", "bias"):
        state[f"in_proj_{part}"] = torch.cat([getattr(getattr(attention, f"{p}_proj"), part).detach() for p in "qkv"])
        state[f"out_proj.{part}"] = getattr(attention.o_proj, part).detach()
    return attention, lambda: attention(hidden_states=x, position_embeddings=positions)[0], (x + positions, x), state


@pytest.mark.parametrize("make", [of_timm, of_transformers])
@pytest.mark.parametrize("prefix", [0, 3])
def test_hosts_and_the_drop_in_are_one_function(make, prefix):
    """A host's attention, pooled after its projections, is `ClusteredAttention`, pooled before them, with the same weights."""
    torch.manual_seed(0)
    attention, run, (key, value), state = make()
    assert enact.patch(attention, smoothing_sigma=1.0, prefix=prefix) == [""]
    spread(attention)
    drop_in = ClusteredAttention(key.shape[2], 2, batch_first=True, smoothing_sigma=1.0, prefix=prefix)
    drop_in.load_state_dict(state | {f"W_prob.{k}": v for k, v in attention.W_prob.state_dict().items()})
    with enact.record(drop_in) as clusters:
        expected = drop_in(key, key, value)[0]
    assert 2 < clusters["W_prob"].size < 30 - prefix
    torch.testing.assert_close(run(), expected, rtol=1e-4, atol=1e-6)


# The weights


@each
def test_the_names_of_the_weights_stay(name):
    """Plain weights load into a patched model and lack W_prob alone; parameters are the very ones that an optimiser may hold."""
    model, other = build(name), build(name, seed=1)
    plain, parameters = copy.deepcopy(model.state_dict()), dict(model.named_parameters())
    new = [f"{attention}.W_prob.{part}" for attention in enact.patch(model) for part in ("weight", "bias")]
    enact.patch(other)
    assert set(model.state_dict()) == {*plain, *new}
    assert all(dict(model.named_parameters())[key] is parameter for key, parameter in parameters.items())
    missing, unexpected = other.load_state_dict(plain, strict=False)
    assert sorted(missing) == sorted(new) and not unexpected
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(outputs(other, images()), outputs(model, images()))


@pytest.mark.parametrize("name", ["timm DINOv2", "DETR"])
def test_copies(name):
    """A patched model can be copied and pickled, and a copy's clustering is its own."""
    model = build(name)
    enact.patch(model)
    for duplicate in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with enact.record(model) as own, enact.record(duplicate) as its:
            torch.testing.assert_close(outputs(duplicate, images()), outputs(model, images()))
        assert len(own) == len(its) == 2


@each
def test_training_reaches_the_scores(name):
    """In training every W_prob gets a finite gradient that is not zero."""
    model = build(name).train()
    enact.patch(model, smoothing_sigma=1.0)
    sum(x.square().mean() for x in outputs(model, images()) if x.requires_grad).backward()
    for module in model.modules():
        if isinstance(module, EntropyClustering):
            assert module.training and module.weight.grad.isfinite().all() and module.weight.grad.abs().max() > 0


@each
@pytest.mark.parametrize("precision", ["bfloat16", "float16", "autocast"])
def test_mixed_precision(name, precision):
    """A model of 16 bits, or under autocast, gives numbers of the plain model's type; the clustering decides in float32."""
    model = build(name)
    dtype = torch.bfloat16 if precision == "autocast" else getattr(torch, precision)
    x = images()
    if precision != "autocast":
        model, x = model.to(dtype), x.to(dtype)
    with torch.autocast("cpu", dtype, enabled=precision == "autocast"), torch.no_grad():
        expected = [output.dtype for output in outputs(model, x)]
        enact.patch(model)
        with enact.record(model) as clusters:
            found = outputs(model, x)
    assert [output.dtype for output in found] == expected and all(output.isfinite().all() for output in found)
    assert all(c.information.dtype == c.weight.dtype == torch.float32 for c in clusters.values())


# Masks


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_padding_changes_nothing(name, implementation):
    """In a padded batch an image has the clusters and the encoder's output that it has alone."""
    model = build(name, implementation)
    enact.patch(model, smoothing_sigma=1.0)
    spread(model)
    x, positions = torch.randn(2, 2, 40, 32, generator=torch.Generator().manual_seed(1))
    valid = torch.arange(40) % 8 < torch.tensor([[8], [5]])  # the second image is narrower
    with enact.record(model) as clusters, torch.no_grad():
        padded = model.model.encoder(x, valid.long(), spatial_position_embeddings=positions).last_hidden_state
        counts = [c.count.tolist() for c in clusters.values()]
        for i in (0, 1):
            own = [t[i : i + 1, valid[i]] for t in (x, positions)]
            alone = model.model.encoder(own[0], None, spatial_position_embeddings=own[1]).last_hidden_state
            assert [c.count.item() for c in clusters.values()] == [count[i] for count in counts]
            torch.testing.assert_close(padded[i : i + 1, valid[i]], alone, rtol=1e-4, atol=1e-5)


def test_masks_of_whole_keys():
    """Bool or float, broadcast or not: one meaning, and what they hide reaches nothing."""
    model = build("timm ViT")
    enact.patch(model, smoothing_sigma=1.0)
    spread(model)
    attention, x = model.blocks[0].attn, torch.randn(2, 65, 32)
    seen = torch.arange(65) < torch.tensor([[65], [40]])
    seen = seen[:, None, None]
    expected = attention(x, seen)
    hidden = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)
    for mask in (seen.expand(2, 2, 65, 65), hidden, hidden.clamp(min=torch.finfo(torch.float32).min)):
        torch.testing.assert_close(attention(x, mask), expected)
    torch.testing.assert_close(attention(x[1:, :40])[0], expected[1, :40])
    x[1, 40:] = 1e4
    torch.testing.assert_close(attention(x, seen)[1, :40], expected[1, :40])


def test_a_fixed_capacity_is_one_graph():
    """Protects compilation and export of a host that hands over a mask of N x N, which is not looked at there."""
    model, x = build("DETR"), images()
    enact.patch(model, capacity="auto")
    mask = torch.ones(2, SIDE, SIDE, dtype=torch.long)
    mask[1, :, 24:] = 0
    with torch.no_grad():
        expected = model(x, mask).pred_boxes
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x, mask).pred_boxes, expected, rtol=1e-4, atol=1e-5)
        exported = torch.export.export(model, (x, mask)).module()
        torch.testing.assert_close(exported(x, mask).pred_boxes, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "mask",
    [torch.ones(65, 65).tril().bool(), torch.randn(1, 2, 1, 65), torch.eye(65).log()],
    ids=["causal", "bias of heads", "float between pixels"],
)
def test_masks_between_pixels_are_refused(mask):
    """A mask that has no meaning between clusters is not taken for padding."""
    model = build("timm ViT")
    enact.patch(model)
    with pytest.raises(ValueError, match="masks of whole keys"):
        model.blocks[0].attn(torch.randn(2, 65, 32), mask)
    with pytest.raises(ValueError, match="cannot be causal"):
        model.blocks[0].attn(torch.randn(2, 65, 32), is_causal=True)


@pytest.mark.parametrize("name", [name for name in HOSTS if HOSTS[name].implementations != ("",)])
def test_attention_weights_of_transformers(name):
    """Where transformers asks for attention weights, it gets those of the original keys, which sum to 1."""
    model = build(name, "eager")
    enact.patch(model)
    found = model(images(), output_attentions=True)
    weights = found.encoder_attentions if hasattr(found, "encoder_attentions") else found.attentions
    keys = HOSTS[name].prefix + HOSTS[name].pixels
    assert [w.shape for w in weights] == [(2, 2, keys, keys)] * 2
    assert all(torch.allclose(w.sum(-1), torch.ones(())) for w in weights)


# What is chosen, and what is refused


def test_where_of_hosts():
    """Of a host, too, one layer can be chosen, in the decoder, too, and the others stay as they are."""
    model = build("timm ViT")
    assert enact.patch(model, where=lambda name, attention: name.startswith("blocks.1")) == ["blocks.1.attn"]
    assert type(model.blocks[0].attn) is timm.layers.Attention
    model = build("DETR")
    assert enact.patch(model, where=lambda name, attention: "decoder" in name) == ["model.decoder.layers.0.self_attn"]
    assert model.model.encoder.layers[0].self_attn.config is model.config
    with enact.record(model) as clusters:
        outputs(model, images())
    assert clusters["model.decoder.layers.0.self_attn.W_prob"].index.shape == (2, 5)


@each
def test_tokens_in_front(name):
    """A number of one's own goes before that of the host."""
    model = build(name)
    names = enact.patch(model, prefix=2)
    with enact.record(model) as clusters:
        outputs(model, images())
    assert clusters[f"{names[0]}.W_prob"].index.shape == (2, HOSTS[name].prefix + HOSTS[name].pixels - 2)


def test_two_hosts_in_one_model():
    """A backbone of one library under a head of another: both are patched, in the model's order."""
    layer = nn.TransformerEncoderLayer(32, 2, 32, batch_first=True)
    model = nn.ModuleDict({"backbone": build("timm ViT"), "detr": build("DETR"), "encoder": nn.TransformerEncoder(layer, 1)})
    names = enact.patch(model)
    assert [name.partition(".")[0] for name in names] == ["backbone"] * 2 + ["detr"] * 2 + ["encoder"]
    model = nn.ModuleDict({"backbone": build("timm ViT"), "head": nn.MultiheadAttention(32, 2, kdim=8)})
    with pytest.raises(ValueError, match="kdim"):
        enact.patch(model)
    assert type(model["backbone"].blocks[0].attn) is timm.layers.Attention


def test_a_library_that_is_too_old_is_named(monkeypatch):
    """One sentence says what to update."""
    model = build("timm ViT")
    monkeypatch.delitem(sys.modules, "enact.hosts.timm", raising=False)
    monkeypatch.delattr(timm.layers, "AttentionRope")
    with pytest.raises(ValueError, match="pip install -U timm"):
        enact.patch(model)


def deformable_detr():
    backbone = transformers.ResNetConfig(hidden_sizes=[8] * 4, depths=[1] * 4, out_features=["stage2", "stage3", "stage4"])
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    return transformers.DeformableDetrModel(
        transformers.DeformableDetrConfig(backbone_config=backbone, use_timm_backbone=False, **sizes)
    )


def patched():
    model = build("DETR")
    enact.patch(model)
    return model


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: swin_t(), "windows"),
        (lambda: timm.create_model("swin_tiny_patch4_window7_224", embed_dim=8, depths=(1, 1), num_heads=(1, 2)), "windows"),
        (lambda: transformers.SwinModel(transformers.SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[1, 2])), "windows"),
        (deformable_detr, "samples a few keys"),
        (patched, "clustered already"),
        (lambda: timm.create_model("resnet10t"), "timm .* or transformers"),
    ],
    ids=["torchvision Swin", "timm Swin", "transformers Swin", "Deformable DETR", "patched", "no attention"],
)
def test_what_cannot_be_clustered_says_why(make, reason):
    """One sentence, and nothing is changed."""
    with pytest.raises(ValueError, match=reason) as caught:
        enact.patch(make())
    assert "\n" not in str(caught.value)
