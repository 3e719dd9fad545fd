"""Batch norm inside the convolutions before it: the numbers of torchvision's ResNet, whatever happens to the weights."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops import FrozenBatchNorm2d

from common.models import folding
from common.models.backbone import Backbone

STAGES = ("layer1", "layer2", "layer3", "layer4")
BOTH = pytest.mark.parametrize("frozen", [True, False], ids=["frozen norm", "trained norm"])


def randomised(module):
    """In double precision, with random values in every norm, so that none is 0 or 1 by default."""
    generator = torch.Generator().manual_seed(0)
    for name, value in module.state_dict().items():
        if value.is_floating_point() and value.dim() == 1:
            value.copy_(torch.rand(value.shape, generator=generator) * 0.2 + (0.9 if "var" in name or "weight" in name else -0.1))
    return module.double()


def pair(frozen):
    """A folded backbone, and torchvision's network with the same weights and norms of its own."""
    folded = randomised(Backbone("resnet10", frozen=frozen, layers=STAGES))
    plain = ResNet(BasicBlock, [1, 1, 1, 1], norm_layer=FrozenBatchNorm2d if frozen else nn.BatchNorm2d).double()
    follow(plain, folded)
    return folded, plain


def follow(plain, folded):
    plain.load_state_dict(folded.body.state_dict(), strict=False)


def images(*, grad=False):
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_(grad)


def features(backbone, x):
    return [feature for feature, _ in backbone(x, torch.zeros(len(x), *x.shape[2:], dtype=torch.bool))]


def expected_features(plain, x):
    x = plain.maxpool(plain.relu(plain.bn1(plain.conv1(x))))
    found = []
    for stage in STAGES:
        x = getattr(plain, stage)(x)
        found.append(x)
    return found


def assert_same(folded, plain):
    with torch.no_grad():
        found, expected = features(folded, images()), expected_features(plain, images())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert min(x.std() for x in expected) > 1e-3
    return found


@pytest.mark.parametrize("channels_last", [False, True])
@BOTH
def test_outputs_and_gradients_are_those_of_separate_norms(frozen, channels_last):
    """Protects training and published weights: features, and what reaches the input and every trained weight, are the same.

    In training and in evaluation, with the channels innermost or not; a trained norm is folded in evaluation alone.
    """
    folded, plain = pair(frozen)
    if channels_last:
        folded.use_channels_last()
    for mode in (True, False):
        folded.train(mode), plain.train(mode)
        x, y = images(grad=True), images(grad=True)
        found, expected = features(folded, x), expected_features(plain, y)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12, check_stride=False)
        assert all(z.is_contiguous(memory_format=torch.channels_last) for z in found) or not channels_last
        for outputs in (found, expected):
            sum(z.square().mean() for z in outputs).backward()
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-7, atol=1e-12)
        theirs = dict(plain.named_parameters())
        for name, parameter in folded.body.named_parameters():
            if parameter.requires_grad:
                torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-7, atol=1e-12, check_stride=False)
            assert parameter.requires_grad or parameter.grad is None
        # The statistics that training collects.
        own = {k: v for k, v in plain.state_dict().items() if not k.startswith("fc.")}
        torch.testing.assert_close(dict(folded.body.state_dict()), own, rtol=1e-9, atol=1e-12, check_stride=False)


@BOTH
def test_names_and_contents_of_the_state_dict_stay(frozen):
    """Protects checkpoints: folding adds no name, loses none, and saves the weights as they are trained."""
    folded, plain = pair(frozen)
    assert list(folded.body.state_dict()) == [k for k in plain.state_dict() if not k.startswith("fc.")]
    assert_same(folded.eval(), plain.eval())
    assert all(torch.equal(v, plain.state_dict()[k]) for k, v in folded.body.state_dict().items())


def take_a_step(folded):
    optimizer = torch.optim.AdamW([p for p in folded.parameters() if p.requires_grad], lr=1e-2, fused=True)
    sum(x.square().mean() for x in features(folded, images())).backward()
    optimizer.step()


def load_other_weights(folded):
    folded.load_state_dict({k: v + 0.01 if v.is_floating_point() else v for k, v in folded.state_dict().items()})


@torch.no_grad()
def change_a_statistic(folded):
    for name in ("layer1.0.bn1", "layer3.0.downsample.1"):
        folded.body.get_submodule(name).running_mean += 0.5


def put_in_another_tensor(folded):
    folded.body.layer2[0].bn2.running_var = folded.body.layer2[0].bn2.running_var * 2


@pytest.mark.parametrize("change", [take_a_step, load_other_weights, change_a_statistic, put_in_another_tensor])
@BOTH
def test_the_product_follows_every_change(frozen, change):
    """Protects evaluation from weights of before: what is kept of a convolution is renewed, also if it never left evaluation."""
    folded, plain = pair(frozen)
    folded.eval(), plain.eval()
    before = assert_same(folded, plain)
    change(folded)
    follow(plain, folded)
    after = assert_same(folded, plain)
    assert (before[-1] - after[-1]).abs().max() > 1e-6


def test_the_product_is_computed_once(monkeypatch):
    """Protects the speed of an evaluation: batch after batch, no weight is multiplied again; nor in a training step, twice."""
    folded, _ = pair(frozen=True)
    calls = []
    fold = folding.FoldedConv2d._fold
    monkeypatch.setattr(folding.FoldedConv2d, "_fold", lambda conv: calls.append(conv) or fold(conv))
    convolutions = sum(isinstance(m, nn.Conv2d) for m in folded.modules())
    folded.eval()
    for context in (torch.no_grad, torch.no_grad, torch.inference_mode):
        with context():
            features(folded, images())
    assert len(calls) == convolutions == len(set(calls))
    folded.train()
    features(folded, images())
    assert len(calls) == 2 * convolutions


def test_a_trained_norm_is_folded_in_evaluation_alone():
    """Protects training from scratch: between training and evaluation and back, statistics are collected and then used."""
    folded, plain = pair(frozen=False)
    for mode in (False, True, False, True, False):
        folded.train(mode), plain.train(mode)
        assert_same(folded, plain)
    assert folded.body.bn1.num_batches_tracked == 2


@BOTH
def test_a_copy_follows_its_own_norms(frozen):
    """Protects averaged and compared models: neither the copy nor the original applies the other's norm."""
    folded, plain = pair(frozen)
    folded.eval(), plain.eval()
    before = assert_same(folded, plain)
    other = copy.deepcopy(folded)
    torch.testing.assert_close(assert_same(other, plain), before, rtol=0, atol=0)
    change_a_statistic(other)
    torch.testing.assert_close(assert_same(folded, plain), before, rtol=0, atol=0)
    follow(plain, other)
    assert_same(other, plain)


def test_norms_that_processes_share_are_applied_once():
    """Protects several GPUs, where torch replaces the norms: in evaluation they are applied once, neither twice nor never."""
    folded, plain = pair(frozen=False)
    folded = nn.SyncBatchNorm.convert_sync_batchnorm(folded.train())
    assert any(isinstance(m, nn.SyncBatchNorm) for m in folded.modules())
    assert_same(folded.eval(), plain.eval())


def test_synchronised_norms_are_applied_once():
    """Protects a run of several processes whose model was in evaluation before: the replaced norm must not be folded in as well."""
    folded, plain = pair(frozen=False)
    other = folding.synchronise_batch_norms(folded.eval())
    assert any(isinstance(module, nn.SyncBatchNorm) for module in other.modules())
    assert_same(other.eval(), plain.eval())
