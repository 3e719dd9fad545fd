"""The mask head against an independent implementation, and for some queries against all."""

import pytest
import torch
from torch import Tensor, nn
from transformers import DetrConfig, DetrForSegmentation, ResNetConfig

from common.models.backbone import build_backbone
from common.models.mask_head import AttentionMaps, MaskHead
from common.models.segmenter import Segmenter
from tests.detector_runs import tiny
from tests.tiny_models import build
from tools.detectors import options

WIDTH, HEADS, QUERIES = 64, 8, 10
CHANNELS = (256, 128, 64)


def transformers_segmentation() -> DetrForSegmentation:
    """The library's model with random weights; its parts are what is compared."""
    resnet = ResNetConfig(
        hidden_sizes=[64, 128, 256, 512],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone_config=resnet,
        d_model=WIDTH,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        num_queries=QUERIES,
    )
    torch.manual_seed(0)
    model = DetrForSegmentation(config).eval()
    for value in [*model.mask_head.parameters(), *model.bbox_attention.parameters()]:
        nn.init.normal_(value, std=0.3 if value.dim() > 1 else 0.5)
    return model


def take_over(ours: nn.Module, theirs: nn.Module) -> None:
    """Copies the weights of another implementation whose layers stand in the same order, its adapters apart."""
    own = sorted(ours.named_parameters(), key=lambda item: item[0].startswith("adapter"))
    other = sorted(theirs.named_parameters(), key=lambda item: "adapter" in item[0])
    for (name, parameter), (_, value) in zip(own, other, strict=True):
        assert parameter.shape == value.shape, name
        parameter.data.copy_(value)


@torch.no_grad()
def test_the_head_agrees_with_an_independent_implementation():
    """Attention with padding, and masks of all queries of two images: with equal weights what transformers gives."""
    theirs = transformers_segmentation()
    attention, head = AttentionMaps(WIDTH, HEADS), MaskHead(WIDTH, HEADS, CHANNELS)
    take_over(attention, theirs.bbox_attention)
    take_over(head, theirs.mask_head)
    generator = torch.Generator().manual_seed(1)
    hs, memory, src = (torch.randn(2, *size, generator=generator) for size in ((QUERIES, WIDTH), (WIDTH, 4, 5), (WIDTH, 4, 5)))
    features = [torch.randn(2, n, 4 * 2**i, 5 * 2**i + 1, generator=generator) for i, n in enumerate(CHANNELS)]
    mask = torch.zeros(2, 4, 5, dtype=torch.bool)
    mask[1, :, 3:] = True
    infinite = torch.zeros(mask.shape).masked_fill(mask, -torch.inf)[:, None, None]
    expected = theirs.bbox_attention(hs, memory, infinite)
    maps = attention(hs, memory.flatten(2).transpose(1, 2), mask)
    torch.testing.assert_close(maps, expected, rtol=0, atol=1e-6)
    assert expected.std() > 1e-3, "the weights must be such that the attention is not uniform"
    masks = theirs.mask_head(src, expected, features)[:, 0]
    image = torch.arange(2).repeat_interleave(QUERIES)
    torch.testing.assert_close(head(src, maps.flatten(0, 1), image, features), masks, rtol=0, atol=1e-4)


def segmenter(detector: str, *argv: str) -> Segmenter:
    """A tiny one with stages at strides 4 and 8."""
    model, _ = build(detector, "--hidden_dim", "64", "--nheads", "8", "--last_stage", "2", *argv)
    body = build_backbone(options(detector, [*tiny(detector), "--last_stage", "2"]), False, ("layer1", "layer2"))
    model.backbone[0] = body
    return Segmenter(model, 8)


def batch() -> tuple[Tensor, Tensor]:
    mask = torch.zeros(2, 64, 96, dtype=torch.bool)
    mask[1, 40:] = True
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)), mask


FORMS = [("DETR-ENACT", "none"), ("DETR-ENACT", "region"), ("PnP-DETR", "none"), ("PnP-DETR", "region")]


@pytest.mark.parametrize(("detector", "clustering"), FORMS)
@torch.no_grad()
def test_some_queries_have_the_masks_that_all_have(detector, clustering):
    """Protects the memory: masks come for the queries that are asked for, in any order and number, at a quarter of the size."""
    outputs = segmenter(detector, "--clustering", clustering).eval()(*batch())
    image, query = torch.arange(2).repeat_interleave(QUERIES), torch.arange(QUERIES).repeat(2)
    whole = outputs["masks"](image, query)
    assert whole.shape == (2 * QUERIES, 16, 24) and whole.std() > 0
    order = torch.randperm(2 * QUERIES, generator=torch.Generator().manual_seed(0))
    parts = torch.cat([outputs["masks"](image[part], query[part]) for part in order.split(7)])
    torch.testing.assert_close(parts, whole[order], rtol=0, atol=1e-4)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("detector", "clustering"), FORMS)
def test_masks_train_what_is_not_frozen(detector, clustering, frozen):
    """The head, and the detector behind it unless it is frozen; queries that are not asked for do not matter."""
    model = segmenter(detector, "--clustering", clustering)
    model = Segmenter(model.detr, 8, frozen=frozen).train()
    masks = model(*batch())["masks"]
    masks(torch.tensor([0, 1, 1]), torch.tensor([2, 5, 2])).square().mean().backward()
    head = [*model.bbox_attention.parameters(), *model.mask_head.parameters()]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head)
    assert sum(p.grad.any() for p in head) >= len(head) - 1  # a bias of all keys of a softmax has no effect
    learned = [name for name, p in model.detr.named_parameters() if p.grad is not None and p.grad.any()]
    assert any("encoder" in name for name in learned) != frozen and any("backbone" in name for name in learned) != frozen
    assert model.training and model.detr.training


def test_a_gain_is_of_the_first_weights_of_the_attention_alone():
    """``attention_gain`` changes where training starts, and nothing else."""
    states = []
    for gain in (1.0, 20.0):
        torch.manual_seed(0)
        states.append(MaskHead(32, 4, (16,), gain).state_dict())
    published, larger = states
    torch.testing.assert_close(larger["lay1.weight"][:, 32:], 20 * published["lay1.weight"][:, 32:])
    published["lay1.weight"][:, 32:] = larger["lay1.weight"][:, 32:]
    assert all(torch.equal(value, larger[name]) for name, value in published.items())


def test_names_and_shapes_are_the_published_ones():
    """What the head of DETR's panoptic checkpoints holds, of a ResNet-50."""
    shapes = {name: tuple(value.shape) for name, value in MaskHead(256, 8, (1024, 512, 256)).state_dict().items()}
    widths = (264, 264, 128, 64, 32, 16)
    wanted = {"out_lay.weight": (1, 16, 3, 3), "out_lay.bias": (1,)}
    for i, (before, after) in enumerate(zip(widths, widths[1:]), start=1):
        wanted |= {f"lay{i}.weight": (after, before, 3, 3)} | dict.fromkeys(
            (f"lay{i}.bias", f"gn{i}.weight", f"gn{i}.bias"), (after,)
        )
    for i, (before, after) in enumerate(zip((1024, 512, 256), (128, 64, 32)), start=1):
        wanted |= {f"adapter{i}.weight": (after, before, 1, 1), f"adapter{i}.bias": (after,)}
    assert shapes == wanted
    assert {*AttentionMaps(256, 8).state_dict()} == {f"{name}_linear.{part}" for name in "qk" for part in ("weight", "bias")}
