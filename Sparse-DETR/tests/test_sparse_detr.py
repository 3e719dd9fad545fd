"""What is particular to Deformable DETR and Sparse DETR."""

import json
import math

import cv2
import pytest
import torch
from torch import Tensor

from common.cli.restore import restore
from common.errors import UserError
from common.models.checkpoint import load_model
from common.models.positions import PositionEmbeddingSine
from common.training.state import group_parameters
from sparse_detr.checkpoint import adapt, export
from sparse_detr.recipe import DETECTOR
from tests.detector_runs import EFFICIENT, TWO_STAGE, run_here, tiny
from tests.tiny_checkpoints import tiny_checkpoint
from tests.tiny_models import NUM_CLASSES, build
from tools.detectors import options

NAME = "Sparse-DETR"
SPARSE = (*EFFICIENT, "--rho", "0.3", "--use_enc_aux_loss")
WIDTH = 64


def features(sizes: list[tuple[int, int]], seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Projected features of images whose first level has these sizes, padded to the largest, on four levels that halve."""
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    levels = []
    for level in range(4):
        halved = [(-(-h // 2**level), -(-w // 2**level)) for h, w in [*sizes, (height, width)]]
        src, mask = torch.full((len(sizes), WIDTH, *halved[-1]), 30.0), torch.ones(len(sizes), *halved[-1], dtype=torch.bool)
        for image, (h, w) in enumerate(halved[:-1]):
            generator = torch.Generator().manual_seed(100 * seed + 10 * level + h * w)
            src[image, :, :h, :w], mask[image, :h, :w] = torch.randn(WIDTH, h, w, generator=generator), False
        levels.append((src, mask))
    return levels


def targets(*numbers: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        {
            "labels": torch.randint(NUM_CLASSES, (n,), generator=generator),
            "boxes": 0.2 + 0.3 * torch.rand(n, 4, generator=generator),
        }
        for n in numbers
    ]


def shaken(*argv: str):
    """A model and its losses, with weights that are nowhere zero."""
    model, criterion = build(NAME, *argv)
    for parameter in model.parameters():
        parameter.data += 0.03 * torch.randn(parameter.shape)
    return model, criterion


def test_the_first_boxes_are_small_ones_at_the_reference_points():
    """One-stage: width and height are sigmoid(-2), the centres what the queries' positions say."""
    model, _ = build(NAME)
    outputs = model.train().detect(features([(6, 8)]))
    centres = model.transformer.reference_points(model.query_embed.weight[:, :WIDTH]).sigmoid()
    boxes = torch.cat((centres, torch.full_like(centres, torch.tensor(-2.0).sigmoid().item())), dim=1)
    torch.testing.assert_close(outputs["pred_boxes"], boxes.expand_as(outputs["pred_boxes"]), rtol=0, atol=1e-5)
    probability = outputs["pred_logits"].sigmoid()
    assert 0.002 < probability.mean() < 0.05, "each class starts near 0.01"


@pytest.mark.parametrize("argv", [TWO_STAGE, SPARSE], ids=["two stages", "sparse"])
def test_the_first_boxes_of_two_stages_are_the_proposals(argv):
    """Every layer's boxes, since the heads add nothing yet; and a proposal is a valid token's."""
    model, _ = build(NAME, *argv)
    outputs = model.train().detect(features([(6, 8)]))
    boxes, proposals = outputs["pred_boxes"], outputs["proposals"]["pred_boxes"][0, 0]
    assert all(torch.cdist(box, proposals, p=1).min() < 1e-4 for box in boxes[:, 0].flatten(0, 1)[:, None])
    torch.testing.assert_close(boxes[0], boxes[1], rtol=0, atol=1e-5)


def test_refinement_passes_no_gradient_from_layer_to_layer():
    """The loss of a layer's boxes trains its own box head alone; and every decoder layer refines another one's boxes."""
    model, _ = shaken("--with_box_refine")
    outputs = model.train().detect(features([(6, 8)]))
    outputs["pred_boxes"][1].sum().backward()
    trained = [any(p.grad is not None and p.grad.any() for p in head.parameters()) for head in model.bbox_embed]
    assert trained == [False, True]
    assert (outputs["pred_boxes"][0] - outputs["pred_boxes"][1]).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("argv", "heads", "separate", "sizes"),
    [
        ((), 2, False, [-2.0, -2.0]),
        (("--with_box_refine",), 2, True, [-2.0, 0.0]),
        (TWO_STAGE, 3, True, [0.0] * 3),
        (SPARSE, 4, True, [0.0] * 4),
        (("--use_enc_aux_loss",), 3, True, [-2.0, 0.0, 0.0]),
    ],
)
def test_heads(argv, heads, separate, sizes):
    """How many there are, whether they share their weights, and how they start."""
    model, _ = build(NAME, *argv)
    assert len(model.class_embed) == len(model.bbox_embed) == heads
    assert len({id(head) for head in model.bbox_embed}) == (heads if separate else 1)
    assert [head.layers[-1].bias[2].item() for head in model.bbox_embed] == sizes
    for head in model.class_embed:
        torch.testing.assert_close(head.bias, torch.full_like(head.bias, -math.log(99)))


@pytest.mark.parametrize("number", [1, 3, 4, 5])
def test_levels(number, dataset):
    """One level, the backbone's three, and more behind them, each half of the one before."""
    model, _ = build(NAME, *TWO_STAGE, "--num_feature_levels", str(number))
    outputs = model(torch.randn(1, 3, 128, 96), torch.zeros(1, 128, 96, dtype=torch.bool))
    sizes = [(16, 12), (8, 6), (4, 3), (2, 2), (1, 1)]
    assert outputs["shapes"] == (((4, 3),) if number == 1 else tuple(sizes[:number]))


@pytest.mark.parametrize("argv", [TWO_STAGE, SPARSE], ids=["two stages", "sparse"])
@torch.no_grad()
def test_an_image_with_fewer_tokens_than_queries(argv):
    """Queries that stand for padding find nothing, and no other query sees them: alone there are none, and nothing changes."""
    model, _ = shaken(*argv, "--num_queries", "60")
    model.eval()
    alone, together = model.detect(features([(3, 5)])), model.detect(features([(3, 5), (9, 8)]))
    tokens = 15 + 6 + 2 + 1
    assert alone["pred_logits"].shape[2] == tokens and together["pred_logits"].shape[2] == 60
    torch.testing.assert_close(sort(together["pred_boxes"][0, 0, :tokens]), sort(alone["pred_boxes"][0, 0]), rtol=0, atol=1e-4)
    assert together["pred_logits"][0, 0, tokens:].sigmoid().max() < 1e-8


def sort(boxes: Tensor) -> Tensor:
    return boxes[boxes[:, 0].argsort()]


@pytest.mark.parametrize("argv", [(), TWO_STAGE, SPARSE], ids=["one stage", "two stages", "sparse"])
def test_losses_of_a_batch_are_those_of_its_images(argv):
    """Padding and surplus tokens have no part in any loss: the losses of two images together are the sums of each alone."""
    model, criterion = shaken(*argv)
    sizes, objects = [(7, 9), (5, 12)], targets(3, 2)
    model.train()
    count = criterion.count(objects)
    _, together = criterion(model.detect(features(sizes)), objects, count)
    parts = [criterion(model.detect(features([size])), [t], count)[1] for size, t in zip(sizes, objects)]
    names = [name for name in together if name.startswith("loss")]
    assert ("loss_ce_enc" in names) == bool(argv) and ("loss_mask_prediction" in names) == (argv == SPARSE)
    assert ("loss_giou_enc_0" in names) == (argv == SPARSE)
    for name in names:
        torch.testing.assert_close(together[name], parts[0][name] + parts[1][name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("specific", [True, False])
def test_proposals_have_classes_or_are_just_objects(specific):
    """Without a class-specific head, all objects are of class 0 to the proposals, and class 0 decides which are best."""
    model, criterion = shaken(*TWO_STAGE, *(("--eff_specific_head",) if specific else ()))
    outputs, objects = model.train().detect(features([(6, 8)])), targets(2)
    outputs["proposals"]["pred_logits"] = outputs["proposals"]["pred_logits"].detach().requires_grad_()
    _, log = criterion(outputs, objects, criterion.count(objects))
    total, _ = criterion(outputs, objects, criterion.count(objects))
    total.backward()
    raised = (outputs["proposals"]["pred_logits"].grad < 0).nonzero()[:, -1]  # the classes that matched proposals shall have
    assert sorted(raised.tolist()) == (sorted(objects[0]["labels"].tolist()) if specific else [0, 0])
    assert log["loss_ce_enc"] > 0


def test_learning_rates():
    """Every trained parameter is in one group: sampling offsets and reference points at a tenth, the backbone at its own; and all
    follow the square root of the images per step."""
    model, _ = build(NAME)
    args = options(NAME, ["--lr", "1e-3", "--lr_backbone", "1e-4"])
    for images, scale in ((16, 1.0), (4, 0.5)):
        groups = group_parameters(model, DETECTOR.parameter_groups(args, images))
        rates = {id(p): group["lr"] for group in groups for p in group["params"]}
        assert len(rates) == sum(len(group["params"]) for group in groups)
        for name, parameter in model.named_parameters():
            slow = "sampling_offsets" in name or "reference_points" in name
            expected = 1e-4 if slow or name.startswith("backbone.0") else 1e-3
            assert rates[id(parameter)] == pytest.approx(scale * expected), name


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--two_stage",), "--with_box_refine"),
        (("--rho", "0.1"), "--two_stage"),
        (("--eff_query_init",), "--two_stage"),
        (("--eff_specific_head", "--with_box_refine"), "--two_stage"),
        (("--with_box_refine", "--no_aux_loss"), "--no_aux_loss"),
        (("--num_feature_levels", "2"), "--num_feature_levels"),
        (("--rho", "1.5"), "from 0 to 1"),
        (("--last_stage", "2"), "--last_stage"),
        (("--hidden_dim", "48"), "32"),
        (("--use_enc_aux_loss", "--enc_layers", "1"), "--enc_layers"),
    ],
)
def test_options_that_contradict_each_other_end_in_a_sentence(argv, said, dataset, tmp_path, capsys):
    """Nothing is written, and the option to change is named."""
    assert run_here(NAME, "--coco_path", dataset, *tiny(NAME), *argv, "--output_dir", tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert said in message and message.count("\n") == 1
    assert not list((tmp_path / "out").glob("*.pth"))


def test_files_hold_the_heads_several_times_or_once(tmp_path):
    """Exported files have every published copy, which agree; one without copies loads as well."""
    path = tiny_checkpoint(tmp_path / "own.pth", NAME, 0, *SPARSE)
    content = torch.load(path, weights_only=True)
    exported = export(content["model"], 4)
    for index in range(4):
        own = exported[f"bbox_embed.{index}.layers.2.bias"]
        assert torch.equal(exported[f"transformer.decoder.bbox_embed.{index}.layers.2.bias"], own)
    assert torch.equal(exported["transformer.encoder.class_embed.0.weight"], exported["class_embed.3.weight"])
    assert "transformer.encoder.class_embed.1.weight" not in exported
    adapted = adapt(exported, 4)
    assert adapted.keys() == content["model"].keys()
    assert all(torch.equal(adapted[name], value) for name, value in content["model"].items())


def test_a_file_of_a_sparse_encoder_has_to_tell_its_rho(tmp_path):
    """It is not in the weights, and the dense encoder would give other results without a word; the user may tell it, too."""
    path = tiny_checkpoint(tmp_path / "own.pth", NAME, 0, *SPARSE)
    content = torch.load(path, weights_only=True)
    bare = {"model": export(content["model"], 4), "args": {"nheads": 4, "eff_specific_head": True}}
    torch.save(bare, tmp_path / "bare.pth")
    with pytest.raises(UserError, match="--rho"):
        restore(DETECTOR, tmp_path / "bare.pth")
    restored = restore(DETECTOR, tmp_path / "bare.pth", ["--rho", "0.3"])
    assert restored.args.rho == 0.3 and restored.args.two_stage and restored.args.use_enc_aux_loss
    dense = restore(DETECTOR, tmp_path / "bare.pth", ["--rho", "0"])
    assert not hasattr(dense.model.transformer, "enc_mask_predictor")


def test_separate_heads_are_not_lost_in_a_shared_one(tmp_path):
    """A one-stage file does not tell --with_box_refine; built without it, its heads would overwrite each other."""
    model, _ = shaken("--with_box_refine")
    shared, _ = build(NAME)
    with pytest.raises(UserError, match="bbox_embed"):
        load_model(shared, model.state_dict(), "x.pth")


def test_a_sparse_detr_starts_from_a_deformable_one(tmp_path, dataset, capsys):
    """Where names fit: only the scoring network and the heads behind the encoder are new, and are reported."""
    source = tiny_checkpoint(tmp_path / "dense.pth", NAME, 0, *EFFICIENT)
    argv = ("--coco_path", dataset, "--output_dir", tmp_path / "out", "--epochs", 1, "--lr", 0, "--lr_backbone", 0)
    options = (*tiny(NAME), *SPARSE, "--weight_decay", 0, "--batch_size", 24)
    assert run_here(NAME, *argv, "--finetune", source, *options) == 0
    said = capsys.readouterr().out
    assert "enc_mask_predictor" in said and "bbox_embed.3" in said
    before, after = (torch.load(path, weights_only=True)["model"] for path in (source, tmp_path / "out" / "checkpoint.pth"))
    kept = [name for name in before if not name.endswith(("mean", "var", "tracked"))]
    assert all(torch.equal(before[name], after[name]) for name in kept)
    log = json.loads((tmp_path / "out" / "log.txt").read_text())
    assert {"train_loss_mask_prediction", "train_corr_mask_attn_map_dec_all", "train_loss_ce_enc_0"} <= log.keys()


def test_information_shows_scores_tokens_and_attention(tmp_path, dataset):
    """``--predict --information``: a picture of each beside the detections; a dense model has the attention alone."""
    shapes = []
    for number, argv in enumerate((SPARSE, ())):
        checkpoint = tiny_checkpoint(tmp_path / f"{number}.pth", NAME, 0, *argv)
        out = tmp_path / str(number)
        image = sorted((dataset / "val2017").iterdir())[0]
        run = ("--predict", image, "--information", "--resume", checkpoint, "--output_dir", out, "--device", "cpu")
        assert run_here(NAME, *run, "--image_size", "64") == 0
        [picture] = (out / "predictions").iterdir()
        shapes.append(cv2.imread(str(picture)).shape)
    assert shapes[0][0] > 1.5 * shapes[1][0] and shapes[0][1] > shapes[1][1]
    outputs = restore(DETECTOR, tmp_path / "0.pth").model.eval().detect(features([(8, 10)]))
    shown = DETECTOR.pictures({}, outputs)
    assert [*shown][:2] == ["Scores", "Decoder attention"] and len(shown) == 6
    selected = [map_ for caption, map_ in shown.items() if caption.startswith("Updated")]
    assert sum(map_.sum() for map_ in selected) == outputs["kept"].sum()
    torch.testing.assert_close(shown["Scores"].max(), outputs["scores"].sigmoid().max())


def test_positions_are_deformable_detrs():
    """Half a pixel before DETR's: published weights know them."""
    model, _ = build(NAME)
    assert isinstance(model.backbone[1], PositionEmbeddingSine) and model.backbone[1].shift == -0.5
