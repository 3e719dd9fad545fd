"""The ResNets: strides, what is trained, torchvision's names and values, and weights that do not fit."""

from argparse import Namespace
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from common.errors import UserError
from common.models.backbone import Backbone, build_backbone
from common.models.sizes import BLOCKS


def on_meta(*args, **kwargs):
    """A backbone without memory: its names and shapes."""
    with torch.device("meta"):
        return Backbone(*args, **kwargs)


def randomised(module, seed=0):
    """Random values in every weight and buffer, as trained networks have them, so that none is 0 or 1 by default."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if value.is_floating_point() and value.dim() == 1:
            value.copy_(torch.rand(value.shape, generator=generator) * 0.2 + (0.9 if "var" in name or "weight" in name else -0.1))
    return module.eval()


def is_frozen(module):
    return isinstance(module, FrozenBatchNorm2d)


def options(backbone, weights):
    return Namespace(backbone=backbone, backbone_weights=str(weights), dilation=False, last_stage=4)


@pytest.fixture(scope="module")
def resnet10():
    return randomised(Backbone("resnet10", frozen=False))


@pytest.mark.parametrize("dilation", [False, True])
@pytest.mark.parametrize("name", BLOCKS)
def test_strides_and_channels(name, dilation):
    """Protects the encoder's size: stride 32, or 16 with DC5, also where the size is not a multiple of it."""
    backbone = on_meta(name, dilation, layers=("layer3", "layer4"))
    assert backbone.num_channels == ([256, 512] if name in ("resnet10", "resnet18", "resnet34") else [1024, 2048])
    images, mask = torch.empty(2, 3, 130, 64, device="meta"), torch.empty(2, 130, 64, dtype=torch.bool, device="meta")
    stages = backbone(images, mask)
    sizes = [(9, 4), (9, 4) if dilation else (5, 2)]
    assert [tuple(features.shape) for features, _ in stages] == [(2, c, *s) for c, s in zip(backbone.num_channels, sizes)]
    assert [tuple(padding.shape) for _, padding in stages] == [(2, *s) for s in sizes]


def test_dilation_is_torchvisions():
    """Protects published DC5 weights: the same convolutions and outputs as torchvision's, which has them for ResNet-50 and up."""
    replaced = {"replace_stride_with_dilation": [False, False, True]}
    reference = randomised(torchvision.models.resnet50(norm_layer=FrozenBatchNorm2d, **replaced))
    backbone = Backbone("resnet50", dilation=True).double()
    backbone.body.load_state_dict({k: v for k, v in reference.state_dict().items() if not k.startswith("fc.")})

    def convolutions(module):
        found = {name: m for name, m in module.named_modules() if isinstance(m, nn.Conv2d)}
        return {name: (m.kernel_size, m.stride, m.padding, m.dilation, m.bias) for name, m in found.items()}

    assert convolutions(backbone.body) == convolutions(reference)
    images = torch.rand(1, 3, 64, 80, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        [(features, _)] = backbone(images, torch.zeros(1, 64, 80, dtype=torch.bool))
        expected = images
        for name, module in reference.double().named_children():
            if name not in ("avgpool", "fc"):
                expected = module(expected)
    assert expected.std() > 0
    torch.testing.assert_close(features, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["resnet10", "resnet18"])
def test_dilation_only_adds_pixels_between(name):
    """Protects DC5 of the small ResNets, which torchvision does not dilate: every other pixel is that of the plain network."""
    plain, dilated = randomised(Backbone(name)), Backbone(name, dilation=True).eval()
    dilated.load_state_dict(plain.state_dict())
    images, mask = torch.rand(1, 3, 112, 96, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 112, 96, dtype=torch.bool)
    with torch.no_grad():
        [(few, _)], [(many, _)] = plain(images, mask), dilated(images, mask)
    torch.testing.assert_close(many[..., ::2, ::2], few, rtol=1e-4, atol=1e-5)


def test_mask_follows_the_features(resnet10):
    """Protects attention from padding: a pixel of the feature map is padding where the image's pixel at its corner is."""
    mask = torch.zeros(2, 64, 96, dtype=torch.bool)
    mask[0, 33:] = True
    mask[1, :, 64:] = True
    [(_, padding)] = resnet10(torch.zeros(2, 3, 64, 96), mask)
    assert padding.tolist() == [[[False] * 3] * 2, [[False, False, True]] * 2]
    mask[0, 32:] = True
    assert resnet10(torch.zeros(2, 3, 64, 96), mask)[0][1][0].tolist() == [[False] * 3, [True] * 3]


@pytest.mark.parametrize("name", ["resnet10", "resnet50"])
def test_pretrained_backbones_are_frozen_by_detrs_rule(name):
    """Protects fine-tuning from ImageNet: batch norm is constant, the stem and layer1 stay, all else is trained."""
    backbone = on_meta(name, frozen=True)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in backbone.modules())
    assert any(map(is_frozen, backbone.modules()))
    parameters = dict(backbone.named_parameters())
    assert {k.split(".")[1] for k, p in parameters.items() if p.requires_grad} == {"layer2", "layer3", "layer4"}
    assert {k.split(".")[1] for k, p in parameters.items() if not p.requires_grad} == {"conv1", "layer1"}


@pytest.mark.parametrize("name", ["resnet10", "resnet50"])
def test_backbones_without_weights_are_trained_wholly(name):
    """Protects training from scratch, where constant batch norm and a random frozen stem would cripple the network."""
    backbone = on_meta(name, frozen=False)
    assert all(p.requires_grad for p in backbone.parameters())
    assert not any(map(is_frozen, backbone.modules()))
    assert sum(isinstance(m, nn.BatchNorm2d) for m in backbone.modules()) == sum(map(is_frozen, on_meta(name).modules())) > 0


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet101"])
def test_names_are_those_of_published_checkpoints(name):
    """Protects the loading of published weights: torchvision's names behind ``body.``, without the classifier."""
    with torch.device("meta"):
        reference = getattr(torchvision.models, name)(norm_layer=FrozenBatchNorm2d).state_dict()
    ours = on_meta(name).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {f"body.{k}": v.shape for k, v in reference.items() if not k.startswith("fc.")}


@pytest.mark.parametrize("layers", [("layer4",), ("layer3",)])
@pytest.mark.parametrize("frozen", [True, False])
def test_weights_come_from_a_file_in_torchvisions_format(tmp_path, frozen, layers):
    """Protects --backbone_weights PATH: classifier, batch counters and unused stages are left aside, every value arrives."""
    published = randomised(torchvision.models.resnet18()).state_dict()
    assert "fc.weight" in published and "bn1.num_batches_tracked" in published
    torch.save(published, tmp_path / "weights.pth")
    if frozen:
        backbone = build_backbone(options("resnet18", tmp_path / "weights.pth"), load_weights=True, layers=layers)
    else:
        backbone = Backbone("resnet18", frozen=False, layers=layers)
        backbone.load_pretrained(str(tmp_path / "weights.pth"), "resnet18")
    loaded = {k.removeprefix("body."): v for k, v in backbone.state_dict().items()}
    assert "layer3.1.bn2.running_var" in loaded and ("layer4.0.conv1.weight" in loaded) == (layers == ("layer4",))
    assert all(torch.equal(value, published[key]) for key, value in loaded.items())


def test_weights_are_not_read_where_a_checkpoint_brings_its_own():
    """Protects evaluation and resuming from a download, and keeps the rule of freezing that the weights imply."""
    assert any(map(is_frozen, build_backbone(options("resnet10", "/no/such/file"), load_weights=False).modules()))
    assert not any(map(is_frozen, build_backbone(options("resnet10", "none"), load_weights=True).modules()))


@pytest.mark.parametrize(
    "content, said",
    [
        (None, "is not a PyTorch state dict: pass default, none or a file"),
        (b"text", "is not a PyTorch state dict"),
        ([1, 2], "is not a PyTorch state dict"),
        ({"model": {}}, "does not hold the weights of a resnet10"),
        ("resnet18 at another width", "does not hold the weights of a resnet10"),
        ("too few", "does not hold the weights of a resnet10"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, resnet10, content, said):
    """Protects from training on weights that were silently not loaded; nothing is loaded in part."""
    path = tmp_path / "weights.pth"
    before = {k: v.clone() for k, v in resnet10.state_dict().items()}
    fitting = {k: torch.zeros_like(v) for k, v in resnet10.body.state_dict().items()}
    if content == "too few":
        content = {k: v for k, v in fitting.items() if k != "layer4.0.conv2.weight"}
    elif content == "resnet18 at another width":
        content = fitting | {"layer4.0.conv2.weight": torch.zeros(8, 8, 3, 3)}
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError) as raised:
        resnet10.load_pretrained(str(path), "resnet10")
    assert str(raised.value).startswith(f"--backbone_weights {path} ") and said in str(raised.value)
    assert all(torch.equal(value, before[key]) for key, value in resnet10.state_dict().items())


@pytest.mark.parametrize("error", [URLError("no route to host"), TimeoutError("timed out"), RuntimeError("invalid hash value")])
def test_a_failed_download_says_what_else_to_do(tmp_path, monkeypatch, error):
    """Protects users behind a firewall: the sentence names the network, the cause and the option."""

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", fail)
    with pytest.raises(UserError) as raised:
        on_meta("resnet50").load_pretrained("default", "resnet50")
    for part in ("resnet50 could not be downloaded", str(error), "--backbone_weights"):
        assert part in str(raised.value)


def test_there_are_no_default_weights_of_resnet10(resnet10):
    """Protects the small network's users from a look-up in torchvision, which does not know it."""
    with pytest.raises(UserError, match="no ImageNet weights for resnet10: pass --backbone_weights none or a file"):
        resnet10.load_pretrained("default", "resnet10")
