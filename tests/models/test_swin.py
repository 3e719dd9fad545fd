"""Swin transformers: torchvision's numbers under Microsoft's names, what is trained, and the layouts of pretrained files."""

import copy
import re
from argparse import Namespace
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from common.errors import UserError
from common.models.backbone import Backbone, build_backbone, resize_mask
from common.models.reveal import reveal_backbone
from common.models.sizes import SWINS
from tests.tiny_models import batch_of, build, loss_of
from tools.detectors import DETECTORS, options

THREE = ("layer2", "layer3", "layer4")
ALL = ("layer1", *THREE)
NORMS = {f"norm{stage}.{part}" for stage in range(4) for part in ("weight", "bias")}


def on_meta(*args, **kwargs):
    """A backbone without memory: its names and shapes."""
    with torch.device("meta"):
        return Backbone(*args, **kwargs)


def randomised(module, seed=0):
    """Random values in every norm, bias and bias table, so that each has a part in the features."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if value.is_floating_point() and (value.dim() == 1 or "table" in name):
            value.copy_(torch.randn(value.shape, generator=generator) * 0.3 + (value.dim() == 1 and "weight" in name))
    return module.eval()


def noise(*size, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def features(backbone, images):
    return [feature for feature, _ in backbone(images, torch.zeros(len(images), *images.shape[2:], dtype=torch.bool))]


@pytest.fixture(scope="module")
def reference():
    """Torchvision's network."""
    return randomised(torchvision.models.swin_t())


@pytest.fixture(scope="module")
def backbone(reference, tmp_path_factory):
    """Ours with its weights."""
    backbone = randomised(Backbone("swin_t", frozen=False, layers=ALL), seed=1)
    path = tmp_path_factory.mktemp("weights") / "torchvision.pth"
    torch.save(reference.state_dict(), path)
    backbone.load_pretrained(str(path), "swin_t")
    path.unlink()
    return backbone


@pytest.mark.parametrize("height, width", [(201, 331), (33, 47), (64, 64)])
def test_features_are_torchvisions(reference, backbone, height, width):
    """Protects the numbers of every stage, where sides are not multiples of patch, window and merging; weights in its layout."""
    images = noise(2, 3, height, width)
    found, expected, x = features(backbone, images), [], F.pad(images, (0, -width % 4, 0, -height % 4))
    with torch.no_grad():
        for i, part in enumerate(reference.features):
            x = part(x)
            if i % 2:  # the end of a stage, before the merging
                norm = backbone.body.get_submodule(f"norm{i // 2}")
                expected.append(F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias).permute(0, 3, 1, 2))
    assert len(found) == 4 and all(x.std() > 0.1 for x in expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["swin_t", "swin_s", "swin_b"])
def test_networks_are_torchvisions(name):
    """Protects the paper's numbers: shapes, heads, and stochastic depth that rises to the same rate over the same blocks."""
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)().features
    ours = on_meta(name, frozen=False, layers=ALL).body
    assert sorted(p.shape for k, p in ours.named_parameters() if k not in NORMS) == sorted(p.shape for p in theirs.parameters())
    for kind, what in ((StochasticDepth, ("p", "mode")), (type(theirs[1][0].attn), ("num_heads", "window_size", "shift_size"))):
        found = [[[getattr(m, name) for name in what] for m in net.modules() if isinstance(m, kind)] for net in (ours, theirs)]
        assert found[0] == found[1] and len(found[0]) == sum(SWINS[name].depths)


@pytest.mark.parametrize("size", [(201, 331), (33, 47), (130, 64), (1, 5)])
def test_feature_sizes_are_those_of_a_resnet(size):
    """Protects what follows from another size of map: rounded up at each halving; the masks have it, too."""
    images, mask = torch.empty(2, 3, *size, device="meta"), torch.empty(2, *size, dtype=torch.bool, device="meta")
    ours, theirs = (on_meta(name, layers=ALL)(images, mask) for name in ("swin_t", "resnet10"))
    assert [f.shape[-2:] for f, _ in ours] == [f.shape[-2:] for f, _ in theirs]
    assert [padding.shape for _, padding in ours] == [padding.shape for _, padding in theirs]
    backbone = on_meta("swin_l", layers=("layer2", "layer4"))
    assert [f.shape[1] for f, _ in backbone(images, mask)] == backbone.num_channels == [384, 1536]


def test_images_are_padded_by_zeros(backbone):
    """Protects batches of one image: right and bottom are filled up to whole patches, as collating a batch fills them."""
    images = noise(1, 3, 198, 331)
    found, expected = features(backbone, images), features(backbone, F.pad(images, (0, 1, 0, 2)))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_memory_format_and_mixed_precision(backbone):
    """Protects --channels_last and --amp: the same features, to rounding, in the layout that was asked for."""
    images, other = noise(2, 3, 62, 94), copy.deepcopy(backbone)
    other.use_channels_last()
    expected, found = features(backbone, images), features(other, images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in found)
    for each in (backbone, other):
        with torch.autocast("cpu", torch.bfloat16):
            for rounded, exact in zip(features(each, images), expected, strict=True):
                assert (rounded.float() - exact).norm() < 0.05 * exact.norm()


def test_compilation_leaves_it_out():
    """Protects --compile, which would trace the padding of its windows for minutes before the first step."""
    backbone = on_meta("swin_t")
    backbone.body.compile(dynamic=True)
    assert not any(module._compiled_call_impl for module in backbone.modules())


def test_names_are_those_of_published_checkpoints():
    """Protects the loading of published weights: all names of a detector's Swin-T, and the shapes that torchvision has not."""
    parts = ["patch_embed.proj", "patch_embed.norm", "norm1", "norm2", "norm3"]
    expected = set()
    for stage, depth in enumerate((2, 2, 6, 2)):
        for block in (f"layers.{stage}.blocks.{i}" for i in range(depth)):
            parts += [f"{block}.{part}" for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")]
            expected |= {f"{block}.attn.relative_position_{what}" for what in ("bias_table", "index")}
        if stage < 3:
            parts.append(f"layers.{stage}.downsample.norm")
            expected.add(f"layers.{stage}.downsample.reduction.weight")
    expected |= {f"{part}.{kind}" for part in parts for kind in ("weight", "bias")}
    found = on_meta("swin_t", layers=THREE).body.state_dict()
    assert found.keys() == expected
    shapes = {
        "patch_embed.proj.weight": (96, 3, 4, 4),
        "layers.1.blocks.0.attn.qkv.weight": (576, 192),
        "layers.2.blocks.5.attn.relative_position_bias_table": (169, 12),
        "layers.2.blocks.5.attn.relative_position_index": (49, 49),
        "layers.3.blocks.1.mlp.fc1.weight": (3072, 768),
        "layers.2.downsample.reduction.weight": (768, 1536),
        "norm1.weight": (192,),
    }
    assert {name: tuple(found[name].shape) for name in shapes} == shapes
    assert found["layers.0.blocks.0.attn.relative_position_index"].dtype == torch.int64


def test_stages_behind_the_last_one_are_left_out():
    """Protects distributed training from parameters without a gradient, and checkpoints from weights that nobody uses."""
    names = on_meta("swin_t", layers=("layer2",)).body.state_dict().keys()
    assert {name.split(".")[1] for name in names if name.startswith("layers.")} == {"0", "1"}
    assert not any(name.startswith(("layers.1.downsample", "norm0", "norm2", "norm3")) for name in names)


def test_weights_come_from_a_file_in_microsofts_layout(tmp_path, backbone):
    """Protects --backbone_weights PATH: what the classifier needs is left aside, every value arrives, and the norms are new."""
    published = {k: v for k, v in backbone.body.state_dict().items() if k not in NORMS}
    others = ("norm.weight", "norm.bias", "head.weight", "head.bias", "layers.0.blocks.1.attn_mask")
    path = tmp_path / "weights.pth"
    torch.save({"model": published | {name: torch.zeros(3) for name in others}}, path)
    args = Namespace(backbone="swin_t", backbone_weights=str(path), dilation=False, last_stage=4)
    loaded = build_backbone(args, True, THREE).body.state_dict()
    new = {k: v for k, v in loaded.items() if k in NORMS}
    assert loaded.keys() - new.keys() == published.keys()
    assert all(torch.equal(loaded[key], value) for key, value in published.items())
    assert new.keys() == {k for k in NORMS if "norm0" not in k}
    assert all(torch.equal(v, torch.full_like(v, k.endswith("weight"))) for k, v in new.items())


def test_default_weights_are_torchvisions(reference, monkeypatch):
    """Protects --backbone_weights default, and that a failed download is told as for a ResNet."""
    urls = []
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url", lambda url, **kwargs: urls.append(url) or reference.state_dict()
    )
    backbone = Backbone("swin_t", layers=("layer2",))
    backbone.load_pretrained("default", "swin_t")
    assert len(urls) == 1 and "/swin_t-" in urls[0]
    assert torch.equal(backbone.body.layers[1]["blocks"][1].mlp.fc2.weight, reference.features[3][1].mlp[3].weight)

    def fail(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    with pytest.raises(UserError, match="swin_t could not be downloaded .*no route to host.*--backbone_weights"):
        backbone.load_pretrained("default", "swin_t")
    with pytest.raises(UserError, match="no ImageNet weights for swin_l: pass --backbone_weights none or a file"):
        backbone.load_pretrained("default", "swin_l")


def test_weights_come_from_a_file_in_scrls_layout(tmp_path):
    """Protects a ResNet's weights from SCRL's names: every value of the encoder arrives, the statistics of its norms, too."""
    trained = randomised(torchvision.models.resnet18()).state_dict()
    numbers = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    online = {}
    for key, value in trained.items():
        part, _, rest = key.partition(".")
        if part in numbers:
            online[f"encoder.{numbers[part]}.{rest}"] = value
    online |= {"projector.0.weight": torch.zeros(2), "predictor.4.weight": torch.zeros(2)}
    path = tmp_path / "scrl.pth"
    torch.save({"online_network_state_dict": online, "epoch": 1000}, path)
    backbone = Backbone("resnet18")
    backbone.load_pretrained(str(path), "resnet18")
    loaded = backbone.body.state_dict()
    assert "bn1.running_var" in loaded and "layer4.1.conv2.weight" in loaded
    assert all(torch.equal(value, trained[key]) for key, value in loaded.items())


@pytest.mark.parametrize("name, layouts", [("resnet10", "torchvision's or SCRL's"), ("swin_t", "Microsoft's or torchvision's")])
@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": {"conv1.weight": torch.zeros(2)}},
        {"model": {"stages.0.blocks.0.norm1.weight": torch.zeros(96)}},
        {"online_network_state_dict": {"encoder.layer1.0.conv1.weight": torch.zeros(2)}},
        {"features.conv0.weight": torch.zeros(2), "features.0.0.weight": torch.zeros(2), "features.12.bias": torch.zeros(2)},
    ],
    ids=["nested", "timm", "scrl", "features"],
)
def test_an_unknown_layout_is_refused(tmp_path, name, layouts, content):
    """Protects from training on weights that were silently not loaded; the sentence says which layouts are known."""
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(UserError) as raised:
        on_meta(name).load_pretrained(str(path), name)
    expected = f"--backbone_weights {path} does not hold the weights of a {name} in {layouts} layout: pass another or 'none'"
    assert str(raised.value) == expected


def test_frozen_parts_are_constants():
    """Protects fine-tuning from ImageNet: patch embedding, first stage and its merging have no gradient and drop no branch."""
    backbone = Backbone("swin_t", layers=("layer1", "layer2")).train()
    body, images = backbone.body, noise(2, 3, 64, 64)
    for name, parameter in body.named_parameters():
        assert parameter.requires_grad == (not name.startswith(("patch_embed.", "layers.0."))), name
    rates = [[m.p for m in stage.modules() if isinstance(m, StochasticDepth)] for stage in body.layers]
    assert rates == [[0, 0], [0.2 * 2 / 11, 0.2 * 3 / 11]]
    for module in body.modules():
        if isinstance(module, StochasticDepth) and module.p:
            module.p = 0.5
    passes = [features(backbone, images) for _ in range(8)]
    assert all(torch.equal(first, passes[0][0]) for first, _ in passes)
    assert not all(torch.equal(second, passes[0][1]) for _, second in passes), "the trained stage has stochastic depth"
    backbone.eval()
    assert all(torch.equal(*pair) for pair in zip(features(backbone, images), features(backbone, images)))


@pytest.mark.parametrize("name", ["swin_t", "resnet10"])
@pytest.mark.parametrize("weights, early, frozen", [("default", False, True), ("default", True, False), ("none", False, False)])
def test_early_layers_are_trained_where_that_is_asked_for(name, weights, early, frozen):
    """Protects --finetune_early_layers; the norms of a pretrained ResNet stay constant with it."""
    args = Namespace(backbone=name, backbone_weights=weights, dilation=False, last_stage=3, finetune_early_layers=early)
    with torch.device("meta"):
        backbone = build_backbone(args, load_weights=False)
    assert all(p.requires_grad for p in backbone.parameters()) == (not frozen)
    rates = {m.p for m in backbone.modules() if isinstance(m, StochasticDepth)}
    assert (0.2 / 11 in rates) == (name == "swin_t" and not frozen)
    has_norms_to_train = any(isinstance(m, nn.BatchNorm2d) for m in backbone.modules())
    assert has_norms_to_train == (name == "resnet10" and weights == "none")


def test_a_swin_transformer_is_not_dilated():
    """Protects --dilation from being without effect."""
    with pytest.raises(UserError, match=re.escape("--dilation is for ResNets: pass --no-dilation with --backbone swin_t")):
        on_meta("swin_t", dilation=True)


def test_masks_are_resized_by_the_nearest_pixel():
    """Protects detectors that make further levels: a pixel is padding where the pixel of the mask at its corner is."""
    mask = torch.zeros(1, 5, 8, dtype=torch.bool)
    mask[:, 3:] = True
    assert resize_mask(mask, (2, 2)).tolist() == [[[False, False], [False, False]]]
    assert resize_mask(mask, torch.Size((5, 4))).tolist() == [[[False] * 4] * 3 + [[True] * 4] * 2]


@pytest.mark.parametrize("last_stage", [2, 3, 4])
@pytest.mark.parametrize("name", SWINS)
def test_checkpoints_reveal_the_network(name, last_stage):
    """Protects --resume without options, also of weights without memory: two stages of Swin-T and Swin-S are the same."""
    weights = on_meta(name, layers=(f"layer{last_stage}",)).state_dict()
    revealed = reveal_backbone({f"backbone.0.{key}": value for key, value in weights.items()} | {"input_proj.bias": torch.zeros(1)})
    alike = last_stage == 2 and name in ("swin_t", "swin_s")
    assert revealed == {"last_stage": last_stage, "dilation": False} | ({} if alike else {"backbone": name})


def test_every_detector_trains_with_it(detector, dataset):
    """Protects what follows the backbone: gradients reach all of its weights, and the weights tell which one it is."""
    assert options(detector, ["--backbone", "swin-t"]).backbone == "swin_t"
    model, criterion = build(detector, "--backbone", "swin_t", "--no-dilation")
    loss = loss_of(model.train(), criterion, batch_of(dataset))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for name, p in model.named_parameters() if "backbone" in name)
    revealed = DETECTORS[detector].reveal(model.state_dict())
    assert revealed["backbone"] == "swin_t" and "backbone_weights" not in revealed
