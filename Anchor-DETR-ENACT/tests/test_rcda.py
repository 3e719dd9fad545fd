"""Row-column decoupled attention, plain and clustered, against direct computations in float64."""

import pytest
import torch

from anchor_detr.rcda import RCDA, ClusteredRCDA, decoupled_attention

D, HEADS = 16, 4
torch.manual_seed(0)


def inputs(height: int, width: int, batch: int = 2) -> list[torch.Tensor]:
    """src, row and column positions, each (B, H, W, d)."""
    generator = torch.Generator().manual_seed(height * 100 + width)
    return [torch.randn(batch, height, width, D, generator=generator, dtype=torch.float64) for _ in range(3)]


def padding(height: int, width: int, batch: int = 2) -> torch.Tensor:
    """The first image fills the map, the others are smaller."""
    mask = torch.zeros(batch, height, width, dtype=torch.bool)
    mask[1:, height - height // 3 :] = True
    mask[1:, :, width - width // 2 :] = True
    return mask


def projections(layer: RCDA, *parts: torch.Tensor) -> list[torch.Tensor]:
    """The five projected inputs, split into heads: (..., h, d_h)."""
    weights, biases = layer.in_proj_weight.chunk(5), layer.in_proj_bias.chunk(5)
    return [(x @ w.T + b).unflatten(-1, (HEADS, -1)) for x, w, b in zip(parts, weights, biases)]


def materialised(layer: RCDA, q_row, q_col, k_row, k_col, v, mask) -> torch.Tensor:
    """Plain RCDA with its (L, H * W) weights written out, one image and one head at a time."""
    q_row, q_col, k_row, k_col, v = projections(layer, q_row, q_col, k_row, k_col, v)
    out = torch.zeros(*q_row.shape, dtype=torch.float64)
    for b in range(len(v)):
        h = int((~mask[b, :, 0]).sum())
        w = int((~mask[b, 0, :]).sum())
        for n in range(HEADS):
            rows = k_row[b, :h, :w, n].mean(0)
            columns = k_col[b, :h, :w, n].mean(1)
            a_row = (q_row[b, :, n] @ rows.T / (D // HEADS) ** 0.5).softmax(-1)
            a_col = (q_col[b, :, n] @ columns.T / (D // HEADS) ** 0.5).softmax(-1)
            weights = (a_col[:, :, None] * a_row[:, None, :]).flatten(1)
            out[b, :, n] = weights @ v[b, :h, :w, n].reshape(h * w, -1)
    return out.flatten(2) @ layer.out_proj.weight.T + layer.out_proj.bias


def randomised(layer: torch.nn.Module) -> torch.nn.Module:
    for p in layer.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return layer.double()


@pytest.mark.parametrize("size", [(5, 7), (7, 5), (1, 6), (6, 1), (1, 1)])
@pytest.mark.parametrize("padded", [False, True])
def test_rcda_equals_its_materialised_form(size, padded):
    """The two contractions, in the order that either aspect ratio chooses, are the attention of the paper, also with padding."""
    src, row, col = inputs(*size)
    mask = padding(*size) if padded and min(size) > 1 else torch.zeros(2, *size, dtype=torch.bool)
    layer = randomised(RCDA(D, HEADS))
    query_row, query_col = torch.randn(2, 2, 9, D, dtype=torch.float64)
    parts = (query_row, query_col, src + row, src + col, src)
    torch.testing.assert_close(layer(*parts, mask), materialised(layer, *parts, mask), rtol=0, atol=1e-12)


def test_both_contraction_orders_agree():
    """Exchanging rows and columns of everything changes the order of contraction and nothing else."""
    q_row, q_col, k_row, k_col = (torch.randn(2, HEADS, n, 4, dtype=torch.float64) for n in (9, 9, 7, 5))
    v = torch.randn(2, HEADS, 5, 7, 4, dtype=torch.float64)
    column_mask, row_mask = torch.zeros(2, 7, dtype=torch.bool), torch.zeros(2, 5, dtype=torch.bool)
    column_mask[1, 4:] = row_mask[1, 3:] = True
    wide = decoupled_attention(q_row, q_col, k_row, k_col, v, column_mask, row_mask)
    tall = decoupled_attention(q_col, q_row, k_col, k_row, v.transpose(2, 3), row_mask, column_mask)
    torch.testing.assert_close(wide, tall, rtol=0, atol=1e-12)


def test_no_tensor_has_the_size_of_the_materialised_weights():
    """Neither the forward nor what it keeps for the backward pass holds (L, H * W) weights."""
    height = width = 24
    src, row, col = (x.float() for x in inputs(height, width, batch=1))
    layer = RCDA(D, HEADS)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        query = (src + row).flatten(1, 2)
        layer(query, query, src + row, src + col, src, torch.zeros(1, height, width, dtype=torch.bool))
    assert max(saved) < HEADS * (height * width) ** 2 / 5


def one_pixel_per_cluster(monkeypatch) -> None:
    monkeypatch.setattr(
        "enact.clustering.at_bends",
        lambda bends, lengths: (torch.arange(bends.shape[1]).expand(bends.shape), lengths.clone()),
    )


@pytest.mark.parametrize("padded", [False, True])
def test_region_with_one_pixel_per_cluster_is_plain_rcda(padded, monkeypatch):
    """A plain checkpoint is an exact warm start, but for the clusters themselves; with padding, too."""
    one_pixel_per_cluster(monkeypatch)
    src, row, col = inputs(5, 6)
    mask = padding(5, 6) if padded else torch.zeros(2, 5, 6, dtype=torch.bool)
    layer, plain = randomised(ClusteredRCDA(D, HEADS, "region", smoothing_sigma=1.0)), RCDA(D, HEADS).double()
    plain.load_state_dict(layer.state_dict(), strict=False)
    parts = ((src + row).flatten(1, 2), (src + col).flatten(1, 2), src + row, src + col, src, mask)
    torch.testing.assert_close(layer(*parts), plain(*parts), rtol=0, atol=1e-12)


def test_region_is_the_joint_softmax_over_the_clusters():
    """``softmax_m(q_row . k_row[m] + q_col . k_col[m])`` of averaged keys, written out cluster by cluster, with padding."""
    src, row, col = inputs(6, 7)
    mask = padding(6, 7)
    layer, found = randomised(ClusteredRCDA(D, HEADS, "region", smoothing_sigma=1.0)), []
    layer.W_prob.register_forward_hook(lambda module, args, clusters: found.append(clusters))
    flat = (src + row).flatten(1, 2), (src + col).flatten(1, 2)
    out = layer(*flat, src + row, src + col, src, mask)
    [clusters] = found
    assert clusters.count.min() > 1
    for b in range(2):
        h, w, m = int((~mask[b, :, 0]).sum()), int((~mask[b, 0, :]).sum()), int(clusters.count[b])
        row_key = (src + row)[b, :h, :w].mean(0).expand(h, -1, -1)
        col_key = (src + col)[b, :h, :w].mean(1)[:, None].expand(-1, w, -1)
        index, weight = (x[b].view(6, 7)[:h, :w] for x in (clusters.index, clusters.weight))
        pooled = [
            torch.stack([(x[index == k] * weight[index == k, None]).sum(0) for k in range(m)])
            for x in (row_key, col_key, src[b, :h, :w])
        ]
        q_row, q_col, k_row, k_col, v = projections(layer, flat[0][b], flat[1][b], *pooled)
        logits = torch.einsum("lhd,mhd->hlm", q_row, k_row) + torch.einsum("lhd,mhd->hlm", q_col, k_col)
        expected = torch.einsum("hlm,mhd->lhd", (logits / (D // HEADS) ** 0.5).softmax(-1), v).flatten(1)
        expected = expected @ layer.out_proj.weight.T + layer.out_proj.bias
        torch.testing.assert_close(out[b], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("clustering", ["region", "window"])
def test_clusters_come_from_the_row_keys_alone(clustering):
    """Paper, 4.2: other column keys change the attention but neither the regions nor the weights."""
    src, row, col = inputs(6, 7)
    layer = randomised(ClusteredRCDA(D, HEADS, clustering, smoothing_sigma=1.0))
    mask = padding(6, 7)
    found = []
    layer.W_prob.register_forward_hook(lambda module, args, clusters: found.append(clusters))
    outs = []
    for column in (col, 3 * col):
        flat = (src + row).flatten(1, 2), (src + column).flatten(1, 2)
        outs.append(layer(*flat, src + row, src + column, src, mask))
    assert torch.equal(found[0].index, found[1].index) and torch.equal(found[0].weight, found[1].weight)
    assert not torch.allclose(*outs)


def test_window_is_the_released_form():
    """``out[y, x] = sum_m A_col[y, m] A_row[x, m] v[m]``, with loops over images, heads and pixels, and with padding."""
    height, width = 6, 7
    src, row, col = inputs(height, width)
    mask = padding(height, width)
    layer = randomised(ClusteredRCDA(D, HEADS, "window", smoothing_sigma=1.0))
    found = []
    layer.W_prob.register_forward_hook(lambda module, args, clusters: found.append(clusters))
    flat = (src + row).flatten(1, 2), (src + col).flatten(1, 2)
    out = layer(*flat, src + row, src + col, src, mask)
    [clusters] = found
    scale = (D // HEADS) ** -0.5
    for b in range(2):
        h, w, m = int((~mask[b, :, 0]).sum()), int((~mask[b, 0, :]).sum()), int(clusters.count[b])
        pooled = [clusters.pool(x.flatten(1, 2))[b, :m] for x in (src + row, src + col, src)]
        q_row, q_col, k_row, k_col, v = projections(layer, (src + row)[b], (src + col)[b], *pooled)
        q_row, q_col = q_row[:h, :w].mean(0), q_col[:h, :w].mean(1)
        a_row = (torch.einsum("whd,mhd->hwm", q_row, k_row) * scale).softmax(-1)
        a_col = (torch.einsum("yhd,mhd->hym", q_col, k_col) * scale).softmax(-1)
        expected = torch.einsum("hym,hwm,mhd->ywhd", a_col, a_row, v).flatten(2)
        expected = expected @ layer.out_proj.weight.T + layer.out_proj.bias
        actual = out[b].view(height, width, D)[:h, :w]
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
