"""Published checkpoints: every one loads, is recognised from its keys, and gives its own results."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn

from tests.detector_runs import run_here, tiny
from tools.detectors import load, options

DATA = Path(__file__).parent / "data" / "published"
KINDS = {
    "detr_r50": ("DETR-ENACT", {"backbone": "resnet50", "num_queries": 100, "clustering": "none"}),
    "detr_r50_dc5": ("DETR-ENACT", {"backbone": "resnet50", "dim_feedforward": 2048, "clustering": "none"}),
    "enact_detr_r50": ("DETR-ENACT", {"backbone": "resnet50", "enc_layers": 6, "clustering": "window"}),
    "conditional_r50": ("Conditional-DETR-ENACT", {"backbone": "resnet50", "num_queries": 300, "clustering": "none"}),
    "enact_conditional_r101": ("Conditional-DETR-ENACT", {"backbone": "resnet101", "dec_layers": 6, "clustering": "window"}),
    "anchor_r50_dc5": ("Anchor-DETR-ENACT", {"backbone": "resnet50", "num_query_position": 300, "clustering": "none"}),
    "enact_anchor_r50_dc5": ("Anchor-DETR-ENACT", {"backbone": "resnet50", "num_query_pattern": 3, "clustering": "window"}),
}


def follow(detector: str, args: Namespace, weights: dict[str, Tensor], explicit: set[str]) -> dict[str, Any]:
    """Sets the options as the command line does for a bare state dict; returns what the weights tell."""
    about = load(detector).DETECTOR
    revealed = about.reveal(weights)
    arguments = load(detector, "vendor.common.arguments")
    arguments.follow_checkpoint(args, explicit, {"model": weights}, revealed, "x.pth", about.architecture)
    return revealed


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_of_every_published_file_is_consumed(kind):
    """Options come from the keys alone; adapted, names and shapes are the model's: none is missing, none is left over."""
    detector, expected = KINDS[kind]
    shapes = json.loads((DATA / f"{kind}.json").read_text())
    about, args = load(detector).DETECTOR, options(detector, ["--backbone", "resnet18", "--enc_layers", "1", "--hidden_dim", "64"])
    with torch.device("meta"):
        weights = {name: torch.empty(shape) for name, shape in shapes.items()}
        revealed = follow(detector, args, weights, set())
        model = about.build_model(args, revealed["num_classes"], False)
    assert {name: getattr(args, name) for name in expected} == expected
    assert revealed["num_classes"] == 91 and args.hidden_dim == 256
    adapted = {name: value.shape for name, value in about.adapt(weights, args.nheads).items()}
    assert adapted == {name: value.shape for name, value in model.state_dict().items()}
    exported = about.export(about.adapt(weights, args.nheads), args.nheads)
    assert {name: list(value.shape) for name, value in exported.items()} == shapes


@pytest.fixture(scope="module")
def trained(detector: str, dataset: Path, tmp_path_factory: pytest.TempPathFactory):
    """Checkpoints of one step with each clustering, made when asked for: ``trained("region")``."""
    made = {}

    def make(clustering: str) -> Path:
        if clustering not in made:
            out = tmp_path_factory.mktemp(clustering)
            argv = ("--coco_path", dataset, "--output_dir", out, "--epochs", 1, "--batch_size", 24, "--clustering", clustering)
            assert run_here(detector, *tiny(detector), *argv) == 0
            made[clustering] = out / "checkpoint.pth"
        return made[clustering]

    return make


def evaluate(detector: str, dataset: Path, out: Path, checkpoint: Path | str, *argv: str) -> list[dict]:
    """The predictions of ``--eval``, with no option of the model given."""
    argv = (
        "--coco_path",
        dataset,
        "--output_dir",
        out,
        "--eval",
        "--resume",
        checkpoint,
        "--nheads",
        "4",
        "--batch_size",
        "2",
        *argv,
    )
    assert run_here(detector, *argv, "--image_size", "64", "--num_workers", "0", "--device", "cpu") == 0
    return json.loads((out / "predictions.json").read_text())


def published(detector: str, checkpoint: Path, path: Path) -> Path:
    """A checkpoint as the authors' code writes it: their names, and their options as a Namespace."""
    own = torch.load(checkpoint, weights_only=True)
    args = Namespace(lr=1e-4, device="cuda", dilation=own["args"]["dilation"])
    content = {"model": load(detector).DETECTOR.export(own["model"], 4), "args": args}
    torch.save(content | {"epoch": 49}, path)
    return path


@pytest.mark.parametrize("clustering", ["none", "window"])
def test_a_published_checkpoint_gives_its_own_results(clustering, detector, trained, dataset, tmp_path, capsys):
    """Names, options and clustering are recognised; the released ENACT says that it is evaluated with windows."""
    ours = evaluate(detector, dataset, tmp_path / "ours", trained(clustering))
    capsys.readouterr()
    file = published(detector, trained(clustering), tmp_path / "anything.pth")
    theirs = evaluate(detector, dataset, tmp_path / "theirs", file, "--smoothing_sigma", "3")
    assert ("released ENACT checkpoint: --clustering window" in capsys.readouterr().out) == (clustering == "window")
    assert_same_predictions(ours, theirs)


def assert_same_predictions(ours: list[dict], theirs: list[dict]) -> None:
    assert [(p["image_id"], p["category_id"]) for p in ours] == [(p["image_id"], p["category_id"]) for p in theirs]
    for key in ("bbox", "score"):
        a, b = (torch.tensor([p[key] for p in predictions]) for predictions in (ours, theirs))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


@pytest.mark.parametrize("clustering", ["none", "region", "window"])
def test_an_exported_checkpoint_gives_the_same_results(clustering, detector, trained, dataset, tmp_path):
    """``--export`` and back: the published names, the clustering it was trained with, and equal outputs."""
    path = tmp_path / "exported.pth"
    assert run_here(detector, "--export", path, "--resume", trained(clustering), "--output_dir", tmp_path / "none") == 0
    names = torch.load(path, weights_only=True)["model"].keys()
    assert any("W_o" in name or ".ENACT." in name for name in names) == (clustering != "none")
    assert_same_predictions(
        evaluate(detector, dataset, tmp_path / "a", trained(clustering)), evaluate(detector, dataset, tmp_path / "b", path)
    )


def test_clustering_may_be_switched_in_evaluation(detector, trained, dataset, tmp_path, capsys):
    """A plain checkpoint is evaluated with regions, and an ENACT checkpoint without, only where that is asked for."""
    plain, clustered = trained("none"), trained("region")
    assert len(evaluate(detector, dataset, tmp_path / "a", plain, "--clustering", "region")) > 0
    assert "W_prob" in capsys.readouterr().out
    assert len(evaluate(detector, dataset, tmp_path / "b", clustered, "--clustering", "none")) > 0
    resumed = ("--coco_path", dataset, "--output_dir", tmp_path / "c", "--resume", plain, "--clustering", "region", "--epochs", 2)
    assert run_here(detector, *resumed, "--device", "cpu", "--num_workers", "0") == 2
    assert "W_prob" in capsys.readouterr().err


@pytest.mark.parametrize("change, said", [("more", "unknown: extra"), ("less", "missing: ")])
def test_unknown_and_missing_keys_are_an_error(change, said, detector, trained, dataset, tmp_path, capsys):
    """Nothing is left out silently."""
    content = torch.load(trained("none"), weights_only=True)
    if change == "more":
        content["model"]["extra"] = torch.zeros(1)
    else:
        content["model"] = {k: v for k, v in content["model"].items() if not k.endswith("norm1.bias")}
    torch.save(content, tmp_path / "x.pth")
    argv = ("--coco_path", dataset, "--eval", "--resume", tmp_path / "x.pth", "--output_dir", tmp_path / "out", "--device", "cpu")
    assert run_here(detector, *argv) == 2
    assert said in capsys.readouterr().err


def test_a_contradiction_with_the_weights_is_an_error(detector, trained, dataset, tmp_path, capsys):
    """A file without options, too, tells its architecture; an option against it names both values."""
    torch.save(torch.load(trained("none"), weights_only=True)["model"], tmp_path / "bare.pth")
    argv = (
        "--coco_path",
        dataset,
        "--eval",
        "--resume",
        tmp_path / "bare.pth",
        "--output_dir",
        tmp_path / "out",
        "--device",
        "cpu",
    )
    assert run_here(detector, *argv, "--dec_layers", "6") == 2
    assert "--dec_layers 6" in (message := capsys.readouterr().err) and "dec_layers 2" in message


def test_a_plain_checkpoint_is_a_warm_start_for_other_classes(detector, trained, dataset, tmp_path, capsys):
    """``--finetune``: the probability layers are new, a class head of another size starts anew, the rest is kept."""
    data = tmp_path / "data"
    (data / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (data / split).symlink_to(dataset / split)
        content = json.loads((dataset / "annotations" / f"instances_{split}.json").read_text())
        content["categories"].append({"id": 12, "name": "another"})
        (data / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    out = tmp_path / "out"
    argv = ("--coco_path", data, "--finetune", trained("none"), "--output_dir", out, "--epochs", 1, "--lr", 0, "--lr_backbone", 0)
    assert run_here(detector, *argv, "--batch_size", 24, "--weight_decay", 0, "--device", "cpu", "--num_workers", "0") == 0
    said = capsys.readouterr().out
    assert "class_embed" in said and "W_prob" in said
    before, after = (torch.load(path, weights_only=True) for path in (trained("none"), out / "checkpoint.pth"))
    assert after["num_classes"] == 13 and after["args"]["clustering"] == "region"
    kept = [k for k in before["model"] if "class_embed" not in k and not k.endswith(("mean", "var", "tracked"))]
    assert all(torch.equal(before["model"][k], after["model"][k]) for k in kept)


ORDINARY = {"Anchor-DETR-ENACT": ("--attention_type", "nn.MultiheadAttention")}


def test_with_one_pixel_per_cluster_a_warm_start_is_the_plain_model(detector, monkeypatch):
    """Why a warm start works: ENACT without pooling is plain attention (of RCDA, whose plain form averages keys, see its tests)."""

    def build(clustering: str) -> nn.Module:
        args = options(detector, [*tiny(detector), *ORDINARY.get(detector, ()), "--clustering", clustering])
        torch.manual_seed(0)
        return load(detector).DETECTOR.build_model(args, 7, False).eval()

    plain, clustered = build("none"), build("region")
    report = load(detector, "vendor.common.checkpoint").load_model_that_fits(clustered, plain.state_dict(), "x.pth", ("W_prob",))
    assert "W_prob" in report
    monkeypatch.setattr(
        load(detector, "vendor.enact.clustering"),
        "_regions",
        lambda bends, lengths: (torch.arange(bends.shape[1]).expand(bends.shape), lengths.clone()),
    )
    images, mask = torch.randn(2, 3, 64, 96), torch.zeros(2, 64, 96, dtype=torch.bool)
    mask[1, 40:] = True
    with torch.no_grad():
        ours, theirs = clustered(images, mask), plain(images, mask)
    for name in ("pred_logits", "pred_boxes"):
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-5)


class Response:
    """What urllib hands to torch hub; breaks off after ``whole`` bytes are not all there."""

    def __init__(self, content: bytes, breaks: bool):
        self.content, self.breaks = [content[: len(content) // 2 if breaks else None]], breaks
        self.length = len(content)

    def __enter__(self) -> "Response":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def close(self) -> None:
        pass

    def info(self) -> Any:
        return Namespace(get_all=lambda name: [str(self.length)])

    def read(self, size: int) -> bytes:
        if self.content:
            return self.content.pop()
        if self.breaks:
            raise URLError("connection lost")
        return b""


def test_a_url_is_downloaded_once_and_a_broken_download_is_started_anew(monkeypatch, tmp_path):
    """Protects the cache: nothing half-downloaded stays, a hash in the name is checked, two files of one name are kept apart."""
    from common import checkpoint
    from common.errors import UserError

    torch.save({"weight": torch.ones(3)}, tmp_path / "source.pth")
    content, calls = (tmp_path / "source.pth").read_bytes(), []
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def serve(breaks: bool) -> None:
        monkeypatch.setattr(torch.hub, "urlopen", lambda request: calls.append(request) or Response(content, breaks))

    serve(breaks=True)
    with pytest.raises(UserError, match="https://a.b/x.pth could not be downloaded.*network"):
        checkpoint.load_checkpoint("https://a.b/x.pth")
    assert not [path for path in (tmp_path / "hub").rglob("*") if path.is_file()]
    serve(breaks=False)
    for _ in range(2):
        assert torch.equal(checkpoint.load_checkpoint("https://a.b/x.pth")["model"]["weight"], torch.ones(3))
    assert len(calls) == 2
    checkpoint.load_checkpoint("https://c.d/x.pth")
    assert len(calls) == 3
    with pytest.raises(UserError, match="hash"):
        checkpoint.load_checkpoint("https://a.b/x-01234567.pth")
    with pytest.raises(UserError, match="https"):
        checkpoint.load_checkpoint("http://a.b/x.pth")
