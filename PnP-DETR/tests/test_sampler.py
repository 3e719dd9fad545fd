"""Poll and pool, and the detector behind it, against an image at a time in float64.

Shapes: B images, H x W pixels, N = H * W, S polled pixels, M pooled vectors, d features, Q queries.
"""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.models.positions import PositionEmbeddingSine
from pnp_detr.options import KPROJ_NETS, SCORE_NETS
from pnp_detr.sampler import Sampler, poll
from tests.tiny_models import build

WIDTH, POOLED, HEADS = 32, 3, 4
SIZES = ((7, 9), (4, 9), (7, 3))  # of the images in a padded batch


def batch(sizes: tuple[tuple[int, int], ...] = SIZES, seed: int = 0, filling: float = 1e3) -> tuple[Tensor, Tensor, Tensor]:
    """Maps (B, d, H, W) in float64, masks (B, H, W) and positions (B, N, d); what is padding holds large numbers."""
    generator = torch.Generator().manual_seed(seed)
    height, width = (max(side) for side in zip(*sizes))
    src = torch.full((len(sizes), WIDTH, height, width), filling, dtype=torch.float64)
    mask = torch.ones(len(sizes), height, width, dtype=torch.bool)
    for i, (h, w) in enumerate(sizes):
        src[i, :, :h, :w] = torch.randn(WIDTH, h, w, generator=generator, dtype=torch.float64)
        mask[i, :h, :w] = False
    return src, mask, PositionEmbeddingSine(WIDTH)(mask).flatten(1, 2).double()


def linear(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """A linear layer or 1 x 1 convolution on x (n, d)."""
    weight = weights[f"{name}.weight"]
    return x @ weight.flatten(1).T + weights[f"{name}.bias"]


def perceptron(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    if f"{name}.weight" in weights:
        return linear(weights, name, x)
    return linear(weights, f"{name}.2", linear(weights, f"{name}.0", x).clamp(min=0))


def slow_sample(weights: dict[str, Tensor], src: Tensor, pos: Tensor, ratio: float, see_positions: bool) -> dict[str, Tensor]:
    """One image of v pixels without padding, src and pos (v, d); pixels in the order of their scores."""
    scores = perceptron(weights, "score_pred_net", src)[:, 0].sigmoid()
    count = int(np.float32(len(src)) * np.float32(ratio))
    ranked = sorted(range(len(src)), key=lambda i: -scores[i].item())
    polled, rest = ranked[:count], ranked[count:]
    normalized = torch.stack([(x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt() for x in src])
    features, positions = [scores[i] * normalized[i] for i in polled], [pos[i] for i in polled]
    shares = torch.zeros(0, len(rest), dtype=src.dtype)
    if rest:
        seen = normalized[rest] + pos[rest] if see_positions else normalized[rest]
        shares = perceptron(weights, "k_proj", seen).T.softmax(-1)
        for share in shares:
            features.append(sum(a * linear(weights, "v_proj", normalized[i]) for a, i in zip(share, rest)))
            positions.append(sum(a * pos[i] for a, i in zip(share, rest)))
    return {
        "src": torch.stack(features),
        "pos": torch.stack(positions),
        "polled": torch.tensor(polled, dtype=torch.long),
        "rest": torch.tensor(rest, dtype=torch.long),
        "shares": shares,
        "scores": scores,
    }


def crops(src: Tensor, mask: Tensor, pos: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of each image the valid pixels' features and positions (v, d), and their indices in the padded map (v,)."""
    found = []
    for x, own, p in zip(src.flatten(2), mask.flatten(1), pos):
        valid = (~own).nonzero()[:, 0]
        found.append((x.T[valid], p[valid], valid))
    return found


def sampler(score_net: str = "2layer-fc-256", kproj: str = "1layer-fc", see_positions: bool = False) -> Sampler:
    torch.manual_seed(1)
    return Sampler(WIDTH, POOLED, score_net, kproj, see_positions).double()


@pytest.mark.parametrize("ratio", [1 / 3, 0.65, 0.97])
@pytest.mark.parametrize("see_positions", [False, True])
@pytest.mark.parametrize("kproj", KPROJ_NETS)
@pytest.mark.parametrize("score_net", SCORE_NETS)
@torch.no_grad()
def test_it_samples_as_the_loop_does(score_net, kproj, see_positions, ratio):
    """Scores, counts, polled pixels, pooled vectors and their positions, of images of different sizes."""
    module = sampler(score_net, kproj, see_positions)
    src, mask, pos = batch()
    found = module(src, mask.flatten(1), pos, ratio)
    for i, (x, p, valid) in enumerate(crops(src, mask, pos)):
        wanted = slow_sample(module.state_dict(), x, p, ratio, see_positions)
        count = len(wanted["polled"])
        torch.testing.assert_close(found.scores[i][valid], wanted["scores"])
        assert found.kept[i].tolist() == [True] * count + [False] * (found.kept.shape[1] - count)
        raster = wanted["polled"].argsort()
        assert found.tokens[i][:count].tolist() == valid[wanted["polled"]][raster].tolist()
        for name in ("src", "pos"):
            own = getattr(found, name)[i]
            torch.testing.assert_close(own[:count], wanted[name][:count][raster])
            torch.testing.assert_close(own[-POOLED:], wanted[name][count:])
        assert found.mask[i].tolist() == [*(~found.kept[i]).tolist(), *[False] * POOLED]
        assert found.pooled[i].nonzero()[:, 0].tolist() == sorted(valid[wanted["rest"]].tolist())
        torch.testing.assert_close(found.log_shares[i].exp()[:, valid[wanted["rest"]]], wanted["shares"])
        assert not found.log_shares[i].exp()[:, ~found.pooled[i]].any()
        torch.testing.assert_close(found.mean_scores()[i], wanted["scores"][wanted["polled"]].mean())


def attend(weights: dict[str, Tensor], name: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of all heads: q (l, d), k, v (n, d)."""
    parts = zip((q, k, v), weights[f"{name}.in_proj_weight"].chunk(3), weights[f"{name}.in_proj_bias"].chunk(3))
    q, k, v = ((x @ w.T + b).unflatten(-1, (HEADS, -1)).transpose(0, 1) for x, w, b in parts)
    out = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1) @ v
    return linear(weights, f"{name}.out_proj", out.transpose(0, 1).flatten(1))


def slow_detect(weights: dict[str, Tensor], src: Tensor, pos: Tensor) -> tuple[Tensor, Tensor]:
    """DETR's transformer and heads on the sampled sequence of one image, src and pos (n, d) -> logits and boxes of all layers."""

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (WIDTH,), weights[f"{name}.weight"], weights[f"{name}.bias"])

    def feed_forward(name: str, x: Tensor) -> Tensor:
        return linear(weights, f"{name}.linear2", linear(weights, f"{name}.linear1", x).clamp(min=0))

    for layer in (f"transformer.encoder.layers.{i}" for i in range(2)):
        src = norm(f"{layer}.norm1", src + attend(weights, f"{layer}.self_attn", src + pos, src + pos, src))
        src = norm(f"{layer}.norm2", src + feed_forward(layer, src))
    query = weights["query_embed.weight"]
    tgt, logits, boxes = torch.zeros_like(query), [], []
    for layer in (f"transformer.decoder.layers.{i}" for i in range(2)):
        tgt = norm(f"{layer}.norm1", tgt + attend(weights, f"{layer}.self_attn", tgt + query, tgt + query, tgt))
        tgt = norm(f"{layer}.norm2", tgt + attend(weights, f"{layer}.multihead_attn", tgt + query, src + pos, src))
        tgt = norm(f"{layer}.norm3", tgt + feed_forward(layer, tgt))
        x = norm("transformer.decoder.norm", tgt)
        logits.append(linear(weights, "class_embed", x))
        for i in range(3):
            x = linear(weights, f"bbox_embed.layers.{i}", x.clamp(min=0) if i else x)
        boxes.append(x.sigmoid())
    return torch.stack(logits), torch.stack(boxes)


@pytest.mark.parametrize("ratio", [1 / 3, 0.8])
@torch.no_grad()
def test_detections_equal_those_of_one_image_at_a_time(ratio):
    """Protects the published computation as a whole; the loop takes pixels in the order of their scores, which changes nothing."""
    model, _ = build("PnP-DETR")
    model = model.double().train()
    model.step_ratio = ratio
    weights = model.state_dict()
    for name, value in weights.items():
        if "transformer" in name or "embed" in name:
            value += 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name)))
    own = {name.removeprefix("transformer.sampler."): value for name, value in weights.items() if "sampler" in name}
    src, mask, pos = batch()
    found = model.detect(src, mask)
    for i, (x, p, _) in enumerate(crops(src, mask, pos)):
        sample = slow_sample(own, x, p, ratio, see_positions=False)
        logits, boxes = slow_detect(weights, sample["src"], sample["pos"])
        torch.testing.assert_close(found["pred_logits"][:, i], logits, rtol=0, atol=1e-5)
        torch.testing.assert_close(found["pred_boxes"][:, i].double(), boxes, rtol=0, atol=1e-5)


def test_counts_are_those_of_float32():
    """The published code multiplies in float32; float64 would give one pixel less or more now and then."""
    scores = torch.rand(1, 8000, generator=torch.Generator().manual_seed(0))
    several = scores.expand(400, -1)
    for ratio in (1 / 3, 0.333, 0.5, 0.65, 0.7, 0.8):
        for first in range(1, 8001, 2000):
            valid = torch.arange(first, first + 2000, 5)
            mask = torch.arange(8000) >= valid[:, None]
            _, kept = poll(several, mask, ratio)
            wanted = (valid.numpy().astype(np.float32) * np.float32(ratio)).astype(int)
            assert kept.sum(1).tolist() == wanted.tolist()
    counts = [
        poll(scores[:, :n], torch.zeros(1, n, dtype=torch.bool), ratio)[1].sum().item() for n, ratio in ((180, 0.65), (90, 0.7))
    ]
    assert counts == [116, 63]  # in float64 117 and 62


@torch.no_grad()
def test_what_cannot_matter_does_not():
    """Neither what padding holds, nor a constant on all shares."""
    module = sampler()
    src, mask, pos = batch()
    first = module(src, mask.flatten(1), pos, 0.4)
    module.k_proj.bias += 5
    second = module(batch(filling=-1e6)[0], mask.flatten(1), pos, 0.4)
    seen = ~first.mask
    for name in ("src", "pos"):
        torch.testing.assert_close(getattr(first, name)[seen], getattr(second, name)[seen])
    sums = first.log_shares.exp().sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums))


@pytest.mark.parametrize(
    ("sizes", "ratio"),
    [
        (((1, 1),), 0.3),  # nothing is polled
        (((1, 2), (1, 1)), 0.3),
        (((7, 9), (1, 1)), 0.3),  # nothing of one image
        (((1, 1),), 0.999),
        (((50, 60), (2, 2)), 1 - 1e-7),  # everything, in float32: nothing is left to pool
        (((2, 2),), 1 - 1e-7),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "argv", [(), ("--clustering", "region"), ("--clustering", "window")], ids=lambda argv: "".join(argv[1:]) or "plain"
)
def test_nothing_polled_and_nothing_left(sizes, ratio, argv):
    """Outputs and gradients stay finite, and those of an image do not depend on its batch."""
    model, _ = build("PnP-DETR", *argv)
    model = model.double().train()
    model.step_ratio = ratio
    src, mask, _ = batch(sizes)
    outputs = model.detect(src.requires_grad_(), mask)
    for i, (h, w) in enumerate(sizes):
        alone = model.detect(src[i : i + 1, :, :h, :w], mask[i : i + 1, :h, :w])
        torch.testing.assert_close(outputs["pred_logits"][:, i], alone["pred_logits"][:, 0], rtol=0, atol=1e-6)
    (outputs["pred_logits"].square().mean() + outputs["mean_scores"].mean()).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(x.isfinite().all() for x in (outputs["pred_logits"], outputs["mean_scores"], src.grad, *gradients))


def test_only_the_polled_features_and_the_price_teach_the_scores():
    """Which pixels are polled carries no gradient, nor do pooled vectors."""
    module = sampler()
    src, mask, pos = batch()
    polled = (~mask).sum((1, 2)).max() // 3

    def gradient(loss: Tensor) -> Tensor:
        [found] = torch.autograd.grad(loss, [module.score_pred_net[0].weight], allow_unused=True)
        return torch.zeros(1) if found is None else found

    found = module(src, mask.flatten(1), pos, 1 / 3)
    rest = found.src[:, polled:].square().sum() + found.pos.square().sum()
    assert not gradient(rest).any()
    found = module(src, mask.flatten(1), pos, 1 / 3)
    assert gradient(found.src[:, :polled].square().sum()).any()
    assert gradient(module(src, mask.flatten(1), pos, 1 / 3).mean_scores().sum()).any()


def test_a_memory_becomes_a_map_again():
    """Polled pixels keep their vectors exactly, padding is zero, and a constant stays one; also where shares underflow."""
    module = sampler()
    src, mask, pos = batch((*SIZES, (1, 1)))
    module.k_proj.weight.data *= 1000  # most shares are zero in float64, too
    found = module(src, mask.flatten(1), pos, 0.4)
    assert (found.log_shares.exp() == 0).any()
    memory = torch.randn(len(src), found.src.shape[1], WIDTH, dtype=torch.float64, requires_grad=True)
    back = found.unpool(memory)
    for image, tokens, kept, own in zip(back, found.tokens, found.kept, memory):
        assert torch.equal(image[tokens[kept]], own[: len(tokens)][kept])
    assert not back[mask.flatten(1)].any()
    torch.testing.assert_close(found.unpool(torch.ones_like(memory)), (~mask.flatten(1)).double()[..., None].expand_as(back))
    back.square().sum().backward()
    assert memory.grad.isfinite().all() and module.k_proj.weight.grad.isfinite().all()

    found = sampler()(src, mask.flatten(1), pos, 0.4)
    shares = found.log_shares[0].exp()[:, found.pooled[0]]
    wanted = shares.T @ memory[0, -POOLED:] / shares.sum(0)[:, None]
    torch.testing.assert_close(found.unpool(memory)[0][found.pooled[0]], wanted)


def test_it_starts_as_its_layers_do():
    """The Xavier initialisation of the transformer leaves it out, as published."""
    model, _ = build("PnP-DETR", "--hidden_dim", "256", "--unsample_abstract_number", "0")
    bound = 256**-0.5
    weights = model.transformer.sampler.v_proj.weight.detach()
    std = weights.std().item()
    assert weights.abs().max() <= bound and std == pytest.approx(bound / 3**0.5, rel=0.02)
    assert sum(p.numel() for p in model.transformer.sampler.parameters()) == 139551
    assert isinstance(model.transformer.sampler.score_pred_net[0], nn.Conv2d)
