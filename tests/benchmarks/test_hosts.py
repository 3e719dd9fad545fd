import json
import sys

import cv2
import pytest
import torch

from benchmarks.lib.cli import main
from benchmarks.speed import hosts_models
from benchmarks.speed.hosts import MEASURES, NAME, run
from benchmarks.speed.hosts_models import PLAIN, REGION, TOME, Host, Merging
from tests.hosts import DETR, build_resnet

CPU = torch.device("cpu")


@pytest.fixture
def tiny(monkeypatch):
    """A ViT and a DETR of no size."""
    import timm
    import transformers

    def vit(size, depth):
        return timm.create_model("vit_base_patch16_224", img_size=size, depth=depth, embed_dim=32, num_heads=2, num_classes=0)

    def detr(size, depth):
        return transformers.DetrModel(transformers.DetrConfig(backbone_config=build_resnet(), **DETR))

    monkeypatch.setattr(hosts_models, "MODELS", {"ViT-B/16": vit, "DETR": detr})


def test_the_benchmark_of_hosts(tiny, tmp_path, capsys):
    """The command prints a table per model and size, and its file holds ratios to plain that follow from its numbers."""
    argv = ["--device", "cpu", "--models", "ViT-B/16", "DETR", "--sizes", "96", "160", "--repeats", "2", "--output", str(tmp_path)]
    assert main(NAME, run, argv) == 0
    printed = capsys.readouterr().out
    assert "ViT-B/16, 160 px, N = 100" in printed and "DETR, 96 px, N = 9" in printed
    records = json.loads((tmp_path / "hosts-cpu.json").read_text())["results"]
    vit, detr = [PLAIN, REGION, TOME], [PLAIN, REGION]
    expected = [("ViT-B/16", 96)] * 3 + [("ViT-B/16", 160)] * 3 + [("DETR", 96)] * 2 + [("DETR", 160)] * 2
    assert [(r["model"], r["size"]) for r in records] == expected
    assert [r["method"] for r in records] == vit * 2 + detr * 2
    for record in records:
        assert set(record["ratios"]) == set(MEASURES) and min(record["ratios"].values()) > 0 and len(record["rounds_s"]) == 2
        assert 1 < record["M"] < record["N"] and 0 < record["share"] <= 1
        if record["method"] == PLAIN:
            assert set(record["ratios"].values()) == {1.0}
        part, whole = record["ratios"]["part"], record["ratios"]["whole"]
        assert min(1, part) <= whole <= max(1, part)
    assert cv2.imread(str(tmp_path / "hosts-cpu.png")) is not None


def test_the_methods_differ_in_the_keys_alone(tiny):
    """On one input, each method gives an output of its own; ToMe keeps as many tokens as there are clusters, class token aside."""
    torch.manual_seed(0)
    host = Host("ViT-B/16", 160, 2, 1, CPU)
    seen = []
    for module in host.methods[TOME].modules():
        if isinstance(module, Merging):
            module.register_forward_hook(lambda module, inputs, found: seen.append(found.pool(inputs[0]).shape[1]))
    outputs = {method: host._outputs(method)[0].detach() for method in host.methods}
    assert seen == [found.size for found in host.clusters] and len(seen) == 2
    shapes = {output.shape for output in outputs.values()}
    assert shapes == {(1, 101, 32)}
    assert not any(torch.allclose(outputs[PLAIN], outputs[method]) for method in (REGION, TOME))


def test_memory_is_what_waits_for_the_backward_pass(tiny):
    """Each tensor counts once, and weights not at all: blocks add up, and materialised attention costs its matrix."""
    torch.manual_seed(0)
    one, two = (Host("ViT-B/16", 160, depth, 1, CPU).kept_bytes(PLAIN) for depth in (1, 2))
    assert two == 2 * one
    host = Host("ViT-B/16", 160, 1, 1, CPU)
    host.methods[PLAIN][0].attn.fused_attn = False
    assert host.kept_bytes(PLAIN) > one + 4 * 2 * 101**2
    assert all(p.grad is None for p in host.model.parameters())


def test_random_features_keep_their_scale(tiny):
    """Batch norms fit the images: they give features of mean 0 and variance 1, as those of a trained detector do."""
    torch.manual_seed(0)
    host = Host("DETR", 160, 1, 1, CPU)
    normed = []
    for module in host.model.modules():
        if hasattr(module, "running_var"):
            module.register_forward_hook(lambda module, inputs, found: normed.append(torch.var_mean(found, dim=(0, 2, 3))))
    host.run_whole()
    assert len(normed) > 5
    for variance, mean in normed[:5]:  # later ones have hardly a pixel
        torch.testing.assert_close((variance, mean), (torch.ones_like(mean), torch.zeros_like(mean)), rtol=0, atol=0.05)


@pytest.mark.parametrize("package", ["timm", "tomesd.merge"])
def test_a_package_that_is_missing_is_named(package, monkeypatch, tmp_path, capsys):
    """One sentence says what to install."""
    monkeypatch.setitem(sys.modules, package, None)
    argv = ["--device", "cpu", "--models", "ViT-B/16", "--sizes", "32", "--depth", "1", "--output", str(tmp_path)]
    assert main(NAME, run, argv) == 2
    assert "pip install" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_mistakes_end_with_one_sentence(capsys):
    """A size that a model cannot take is named before anything is measured."""
    assert main(NAME, run, ["--sizes", "450"]) == 2
    printed = capsys.readouterr()
    assert "--sizes 450" in printed.err and printed.err.count("\n") == 1 and not printed.out
