"""Checkpoints of every detector: published or own, each is recognised from its keys, and gives its own results."""

import json
from argparse import Namespace
from pathlib import Path, PosixPath

import pytest
import torch
from torch import nn

from common.cli.inherited import follow_checkpoint
from common.cli.options import parse
from common.cli.restore import restore
from common.errors import UserError
from common.models.checkpoint import load_model
from tests.detector_runs import run_here, tiny
from tests.tiny_checkpoints import NUM_CLASSES, tiny_checkpoint
from tools.detectors import CLUSTERED, DETECTORS, options

PUBLISHED = Path(__file__).parents[1] / "published"
# The names and shapes of DETR-DC5's weights are those of DETR's.
KINDS = {
    "detr_r50": ("DETR-ENACT", {"backbone": "resnet50", "dim_feedforward": 2048, "num_queries": 100, "clustering": "none"}),
    "enact_detr_r50": ("DETR-ENACT", {"backbone": "resnet50", "enc_layers": 6, "clustering": "window"}),
    "conditional_r50": ("Conditional-DETR-ENACT", {"backbone": "resnet50", "num_queries": 300, "clustering": "none"}),
    "enact_conditional_r101": ("Conditional-DETR-ENACT", {"backbone": "resnet101", "dec_layers": 6, "clustering": "window"}),
    "anchor_r50_dc5": ("Anchor-DETR-ENACT", {"backbone": "resnet50", "num_query_position": 300, "clustering": "none"}),
    "enact_anchor_r50_dc5": ("Anchor-DETR-ENACT", {"backbone": "resnet50", "num_query_pattern": 3, "clustering": "window"}),
    "deformable_r50": ("Sparse-DETR", {"backbone": "resnet50", "num_feature_levels": 4, "two_stage": False, "num_queries": 300}),
    "sparse_r50_rho01": ("Sparse-DETR", {"rho": 0.1, "two_stage": True, "eff_query_init": True, "use_enc_aux_loss": True}),
    "dac_r50": ("DAC-DETR", {"backbone": "resnet50", "num_queries": 900, "dim_feedforward": 2048, "cdn": True}),
    "pnp_r50": ("PnP-DETR", {"sampling": "pnp", "unsample_abstract_number": 30, "kproj_net": "1layer-fc", "num_queries": 100}),
}
# What no weights tell.
TOLD = {"sparse_r50_rho01": {"rho": 0.1}}


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_of_every_published_file_is_consumed(kind):
    """Options come from the keys alone; adapted, names and shapes are the model's: none is missing, none is left over."""
    name, expected = KINDS[kind]
    detector, shapes = DETECTORS[name], json.loads((PUBLISHED / f"{kind}.json").read_text())
    args = options(name, ["--backbone", "resnet18", "--enc_layers", "1", "--hidden_dim", "64"])
    with torch.device("meta"):
        weights = {name: torch.empty(shape) for name, shape in shapes.items()}
        follow_checkpoint(detector, args, set(), checkpoint := {"model": weights, "args": TOLD.get(kind, {})}, "x.pth")
        model = detector.build_model(args, checkpoint["num_classes"], False)
    assert {name: getattr(args, name) for name in expected} == expected
    assert checkpoint["num_classes"] == 91 and args.hidden_dim == 256
    adapted = detector.adapt(weights, args.nheads)
    assert {name: value.shape for name, value in adapted.items()} == {k: v.shape for k, v in model.state_dict().items()}
    exported = detector.export(adapted, args.nheads)
    assert {name: list(value.shape) for name, value in exported.items()} == shapes


@pytest.fixture
def own(clustered: str, tmp_path: Path):
    """Checkpoints as training writes them, with each clustering: ``own("region")``."""
    return lambda clustering: tiny_checkpoint(tmp_path / f"{clustering}.pth", clustered, 0, "--clustering", clustering)


@pytest.fixture
def plain(detector: str, tmp_path: Path) -> Path:
    """A checkpoint as training writes it, of the plain detector."""
    return tiny_checkpoint(tmp_path / "plain.pth", detector, 0, *PLAIN.get(detector, ("--clustering", "none")))


PLAIN = {"Sparse-DETR": (), "DAC-DETR": (), "PnP-DETR": ()}


def images() -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of two images, the second one padded."""
    mask = torch.zeros(2, 64, 96, dtype=torch.bool)
    mask[1, 40:] = True
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)), mask


@torch.no_grad()
def outputs(model: nn.Module) -> dict[str, torch.Tensor]:
    found = model.eval()(*images())
    return {name: found[name] for name in ("pred_logits", "pred_boxes")}


def assert_same(ours: nn.Module, theirs: nn.Module) -> None:
    torch.testing.assert_close(outputs(ours), outputs(theirs), rtol=0, atol=1e-4)


def published(detector: str, checkpoint: Path, path: Path) -> Path:
    """A checkpoint as the authors' code writes it: their names, and their options as a Namespace."""
    content = torch.load(checkpoint, weights_only=True)
    args = Namespace(lr=1e-4, device="cuda", nheads=content["args"]["nheads"])
    torch.save({"model": DETECTORS[detector].export(content["model"], args.nheads), "args": args, "epoch": 49}, path)
    return path


@pytest.mark.parametrize("clustering", ["none", "window"])
def test_a_published_checkpoint_gives_its_own_results(clustering, clustered, own, tmp_path):
    """Names, options and clustering are recognised; the released ENACT says that it is used with windows."""
    ours = restore(DETECTORS[clustered], own(clustering))
    path = published(clustered, own(clustering), tmp_path / "anything.pth")
    theirs = restore(DETECTORS[clustered], path, ["--smoothing_sigma", "3"])
    assert theirs.messages == ([f"{path} was trained with --clustering window, and is used so"] if clustering == "window" else [])
    assert theirs.args.clustering == clustering and theirs.num_classes == NUM_CLASSES
    assert_same(theirs.model, ours.model)


def test_what_published_files_hold_beside_their_weights(detector, plain, tmp_path):
    """Protects real files: options that the detector leaves no choice of, a path, and a counter's numbers in every module."""
    content = torch.load(plain, weights_only=True)
    nheads = content["args"]["nheads"]
    weights = DETECTORS[detector].export(content["model"], nheads)
    modules = {name.rsplit(".", depth)[0] + "." for name in weights for depth in range(1, name.count(".") + 1)} | {""}
    counted = {f"{module}{counter}": torch.zeros(1) for module in modules for counter in ("total_ops", "total_params")}
    args = Namespace(nheads=nheads, position_embedding="sine", num_queries=10, output_dir=PosixPath("exps"), world_size=8)
    torch.save({"model": weights | counted, "args": args}, path := tmp_path / "published.pth")
    assert_same(restore(DETECTORS[detector], path).model, restore(DETECTORS[detector], plain).model)


def test_an_exported_checkpoint_gives_the_same_results(variant, tmp_path):
    """``--export`` and back: the published names, the options it was trained with, and equal outputs."""
    detector, argv = variant
    own, path = tiny_checkpoint(tmp_path / "own.pth", detector, 0, *argv), tmp_path / "exported.pth"
    assert run_here(detector, "--export", path, "--resume", own, "--output_dir", tmp_path / "none") == 0
    assert not (tmp_path / "none").exists()
    names = torch.load(path, weights_only=True)["model"].keys()
    assert any("W_o" in name or ".ENACT." in name for name in names) == (detector in CLUSTERED and "none" not in argv)
    ours, theirs = restore(DETECTORS[detector], own), restore(DETECTORS[detector], path)
    options = (*DETECTORS[detector].architecture, *DETECTORS[detector].changeable)
    assert theirs.messages == []
    assert [getattr(theirs.args, name, None) for name in options] == [getattr(ours.args, name, None) for name in options]
    assert_same(theirs.model, ours.model)


def test_the_clusterings_differ(clustered, own):
    """Protects the two tests above from clusterings that give one result."""
    found = [outputs(restore(DETECTORS[clustered], own("region"), argv).model) for argv in ([], ["--clustering", "window"])]
    assert (found[0]["pred_logits"] - found[1]["pred_logits"]).abs().max() > 1e-3


def test_clustering_may_be_switched_in_use(clustered, own, dataset, tmp_path, capsys):
    """A plain checkpoint is used with regions, and an ENACT checkpoint without, only where that is asked for; training goes on
    with the same parameters or not at all."""
    for clustering, other, said in (("none", "region", "W_prob"), ("region", "none", "")):
        restored = restore(DETECTORS[clustered], own(clustering), ["--clustering", other])
        assert said in "".join(restored.messages) and bool(restored.messages)
        assert restored.args.clustering == other
        outputs(restored.model)
    run = {"epoch": 0, "optimizer": {}, "lr_scheduler": {}, "random_states": []}
    torch.save(torch.load(own("none"), weights_only=True) | run, tmp_path / "run.pth")
    argv = ("--coco_path", dataset, "--output_dir", tmp_path / "out", "--clustering", "region", "--device", "cpu")
    assert run_here(clustered, *argv, "--resume", tmp_path / "run.pth", "--epochs", 2, "--num_workers", "0") == 2
    assert "W_prob" in capsys.readouterr().err


@pytest.mark.parametrize("change, said", [("more", "unknown: extra"), ("less", "missing: ")])
def test_unknown_and_missing_keys_are_an_error(change, said, detector, plain, tmp_path):
    """Nothing is left out silently."""
    content = torch.load(plain, weights_only=True)
    if change == "more":
        content["model"]["extra"] = torch.zeros(1)
    else:
        content["model"] = {k: v for k, v in content["model"].items() if not k.endswith("norm1.bias")}
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match=said):
        restore(DETECTORS[detector], tmp_path / "x.pth")


# A value that the tiny model does not have, of every option that the shape of a checkpoint's weights depends on.
OTHER = {
    "backbone": "resnet34",
    "dilation": True,
    "last_stage": 3,
    "position_embedding": "learned",
    "hidden_dim": 96,
    "nheads": 2,
    "dim_feedforward": 96,
    "enc_layers": 5,
    "dec_layers": 6,
    "num_queries": 77,
    "pre_norm": True,
    "attention_type": "nn.MultiheadAttention",
    "spatial_prior": "grid",
    "num_query_position": 81,
    "num_query_pattern": 7,
    "num_feature_levels": 3,
    "enc_n_points": 1,
    "dec_n_points": 2,
    "with_box_refine": True,
    "two_stage": True,
    "eff_query_init": True,
    "eff_specific_head": True,
    "use_enc_aux_loss": True,
    "cdn": False,
    "sampling": "none",
    "masks": True,
    "score_pred_net": "1layer-fc",
    "kproj_net": "2layer-fc",
    "pos_embed_kproj": True,
    "unsample_abstract_number": 99,
}
SILENT = {"nheads", "dilation", "enc_n_points", "dec_n_points", "with_box_refine", "pos_embed_kproj"}  # the weights do not tell


@pytest.mark.parametrize("bare", [False, True], ids=["with options", "weights alone"])
def test_a_contradiction_with_the_checkpoint_is_an_error(bare, detector, plain):
    """Every option that shapes the model is read from the file, one without options, too; another value names both."""
    content = torch.load(plain, weights_only=True)
    recorded = content.pop("args")
    for name in DETECTORS[detector].architecture:
        if name not in recorded or bare and name in SILENT:
            continue
        checkpoint = content | {"args": {} if bare else recorded}
        args = parse(DETECTORS[detector], [])[0]
        follow_checkpoint(DETECTORS[detector], args, set(), dict(checkpoint), "x.pth")
        assert getattr(args, name) == recorded[name], name
        setattr(args, name, OTHER[name])
        with pytest.raises(UserError) as raised:
            follow_checkpoint(DETECTORS[detector], args, {name}, dict(checkpoint), "x.pth")
        assert str(raised.value) == f"--{name} {OTHER[name]} contradicts the checkpoint x.pth, which has {name} {recorded[name]}"


RELATED = {("PnP-DETR", "DETR-ENACT")}  # whose checkpoints are a start, and used as they are: without sampling it is that detector


@pytest.mark.parametrize("use", ["--resume", "--finetune"])
def test_another_detectors_checkpoint_is_an_error(use, detector, dataset, tmp_path, capsys):
    """One sentence names the file, whose it is, and keys that are missing or too many: also where names are nearly the same."""
    for other in DETECTORS.keys() - {detector}:
        if (detector, other) in RELATED:
            continue
        path = tiny_checkpoint(tmp_path / f"{other}.pth", other, 0)
        argv = ("--coco_path", dataset, use, path, "--output_dir", tmp_path / "out", "--device", "cpu")
        assert run_here(detector, *argv, *(("--eval",) if use == "--resume" else ())) == 2
        message = capsys.readouterr().err
        assert message.startswith(f"{detector}: {path} is one of {other}, and not a checkpoint of") and message.count("\n") == 1
        assert "missing" in message or "unknown" in message
        assert not list((tmp_path / "out").glob("*.json")) and not list((tmp_path / "out").glob("*.pth"))


def test_no_data(detector, tmp_path, capsys):
    """Without a dataset the sentence names both options that choose one."""
    assert run_here(detector, *tiny(detector), "--output_dir", tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert message.startswith(f"{detector}: ") and message.count("\n") == 1
    assert "--coco_path" in message and "--demo" in message
    assert not (tmp_path / "out").exists()


def test_a_plain_checkpoint_is_a_warm_start_for_other_classes(detector, plain, dataset, tmp_path, capsys):
    """``--finetune``: the probability layers are new, the class head starts anew, though it has the same size; the rest is kept."""
    data = tmp_path / "data"
    (data / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (data / split).symlink_to(dataset / split)
        content = json.loads((dataset / "annotations" / f"instances_{split}.json").read_text())
        content["categories"].append({"id": 12, "name": "another"})
        (data / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    out = tmp_path / "out"
    argv = ("--coco_path", data, "--finetune", plain, "--output_dir", out, "--epochs", 1, "--lr", 0, "--lr_backbone", 0)
    assert run_here(detector, *argv, "--batch_size", 24, "--weight_decay", 0, "--device", "cpu", "--num_workers", "0") == 0
    said = capsys.readouterr().out
    assert "class_embed" in said and ("W_prob" in said) == (detector in CLUSTERED)
    before, after = (torch.load(path, weights_only=True) for path in (plain, out / "checkpoint.pth"))
    assert after["num_classes"] == 7 == before["num_classes"] and after["category_ids"] == [*range(1, 7), 12]
    assert detector not in CLUSTERED or after["args"]["clustering"] == "region"
    changed = (*DETECTORS[detector].classes, *DETECTORS[detector].renewable, "running_", "tracked")
    kept = [k for k in before["model"] if not any(part in k for part in changed)]
    assert all(torch.equal(before["model"][k], after["model"][k]) for k in kept)


ORDINARY = {"Anchor-DETR-ENACT": ("--attention_type", "nn.MultiheadAttention")}


def test_with_one_pixel_per_cluster_a_warm_start_is_the_plain_model(clustered, monkeypatch):
    """Why a warm start works: ENACT without pooling is plain attention (of RCDA, whose plain form averages keys, see its tests)."""

    def build(clustering: str) -> nn.Module:
        args = options(clustered, [*tiny(clustered), *ORDINARY.get(clustered, ()), "--clustering", clustering])
        torch.manual_seed(0)
        return DETECTORS[clustered].build_model(args, 7, False).eval()

    plain, pooled = build("none"), build("region")
    [report] = load_model(pooled, plain.state_dict(), "x.pth", ["W_prob"])
    assert "W_prob" in report
    monkeypatch.setattr(
        "enact.clustering.at_bends",
        lambda bends, lengths: (torch.arange(bends.shape[1]).expand(bends.shape), lengths.clone()),
    )
    torch.testing.assert_close(outputs(pooled), outputs(plain), rtol=0, atol=1e-5)
