"""What is particular to DAC-DETR: two decoders on the same layers, and their losses."""

import json

import cv2
import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from common.cli.restore import restore
from common.evaluation.postprocess import PostProcess, sigmoid_detections
from common.losses.criterion import Criterion
from common.models.backbone import Backbone
from common.models.levels import flatten_levels
from common.models.sizes import SWINS
from common.training.state import group_parameters
from dac_detr.denoising import Noise
from dac_detr.postprocess import unsuppressed
from dac_detr.recipe import DETECTOR
from tests.detector_runs import run_here, tiny
from tests.tiny_checkpoints import tiny_checkpoint
from tests.tiny_models import NUM_CLASSES, build
from tools.detectors import options

NAME = "DAC-DETR"
WIDTH = 64
PLAIN = ("--no-dac", "--no-cdn", "--no-ice", "--no-look_forward_twice")


def features(batch: int = 2, height: int = 7, width: int = 9, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Projected features on four levels that halve; the second image has padding."""
    generator = torch.Generator().manual_seed(seed)
    levels = []
    for level in range(4):
        h, w = -(-height // 2**level), -(-width // 2**level)
        mask = torch.zeros(batch, h, w, dtype=torch.bool)
        mask[1:, :, -(-w * 2 // 3) :] = w > 2
        levels.append((torch.randn(batch, WIDTH, h, w, generator=generator), mask))
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


def shaken(*argv: str, still: bool = True):
    """A model without noise and its losses, with weights that are nowhere zero."""
    model, criterion = build(NAME, *argv)
    for parameter in model.parameters():
        parameter.data += 0.03 * torch.randn(parameter.shape)
    if still and model.noise:
        model.noise = Noise(20, 0.0, 0.0)
    return model.train(), criterion


def test_the_decoders_are_one_in_the_first_layer_and_differ_behind_it():
    """Of matching and of denoising queries alike; with the same losses for the latter."""
    model, criterion = shaken()
    objects = targets(3, 1)
    outputs = model.detect(features(), objects)
    for ours, theirs in (("denoising", "cross_denoising"), (None, "cross")):
        o, c = outputs[ours] if ours else outputs, outputs[theirs]
        for name in ("pred_logits", "pred_boxes"):
            assert torch.equal(o[name][0], c[name][0]) and not torch.allclose(o[name][1], c[name][1], atol=1e-3)
    _, log = criterion(outputs, objects, criterion.count(objects))
    assert log["loss_ce_dn_0"] == log["loss_ce_dn_0_one2one"] and log["loss_ce_dn"] != log["loss_ce_dn_one2one"]


@torch.no_grad()
def test_queries_of_the_c_decoder_do_not_see_each_other():
    """What a layer does for them exchanges its outputs where its queries are exchanged."""
    model, _ = shaken()
    layer = model.transformer.decoder.layers[1]
    levels = flatten_levels(features(1), model.backbone[1], model.transformer.level_embed)
    tgt, pos, order = torch.randn(1, 6, WIDTH), torch.randn(1, 6, WIDTH), torch.randperm(6)
    reference = levels.in_maps(0.2 + 0.5 * torch.rand(1, 6, 4))
    straight, _ = layer.attend_memory(tgt, pos, reference, levels.src, levels)
    mixed, _ = layer.attend_memory(tgt[:, order], pos[:, order], reference[:, order], levels.src, levels)
    torch.testing.assert_close(mixed, straight[:, order], rtol=0, atol=1e-5)


@torch.no_grad()
def test_evaluation_runs_the_o_decoder_alone_and_costs_no_more():
    """With and without DAC and denoising: the same operations, the same results bit for bit; a look at C's queries changes none."""
    model, _ = shaken()
    plain, _ = shaken(*PLAIN)
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if name in plain.state_dict()})
    counts, found = [], []
    for each in (model.eval(), plain.eval()):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            found.append(each.detect(features()))
        counts.append({e.key: e.count for e in profiler.key_averages() if e.key in ("aten::addmm", "aten::_embedding_bag")})
    assert counts[0] == counts[1] and sum(counts[0].values()) > 0
    model.gather = True
    found.append(model.detect(features()))
    for name in ("pred_logits", "pred_boxes"):
        assert torch.equal(found[0][name], found[1][name])
        torch.testing.assert_close(found[2][name], found[0][name], rtol=0, atol=1e-5)
    assert "cross" not in found[0] and "cross" in found[2]


@torch.no_grad()
def test_predictions_do_not_depend_on_the_targets():
    """Matching queries do not see denoising queries: those of both decoders find the same with any objects, and with none."""
    model, _ = shaken()
    found = [model.detect(features(), objects) for objects in (targets(3, 1), targets(1, 6), targets(0, 0), None)]
    for other in found[1:]:
        for ours, theirs in ((found[0], other), (found[0]["cross"], other["cross"])):
            for name in ("pred_logits", "pred_boxes"):
                torch.testing.assert_close(theirs[name], ours[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("twice", [True, False])
def test_how_far_the_gradient_of_a_box_reaches(twice):
    """Looking forward twice, into the head of the layer before, and no further; else into its own alone. Values are the same."""
    argv = ("--dec_layers", "3", *(() if twice else ("--no-look_forward_twice",)))
    model, _ = shaken(*argv)
    boxes = model.detect(features())["pred_boxes"]
    boxes[2].sum().backward()
    trained = [any(p.grad is not None and p.grad.any() for p in head.parameters()) for head in model.bbox_embed]
    assert trained == ([False, True, True, False] if twice else [False, False, True, False])
    other, _ = shaken("--dec_layers", "3", *(("--no-look_forward_twice",) if twice else ()))
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other.detect(features())["pred_boxes"], boxes, rtol=0, atol=1e-5)


def divided_by(criterion: Criterion, outputs: dict, objects: list, count: Tensor) -> dict[str, float]:
    log = criterion(outputs, objects, count)[1]
    return {name: value.item() for name, value in log.items() if name.startswith("loss") and name.endswith("_unscaled")}


def test_divisors():
    """Objects of the step: once for the O-decoder and the proposals, three times for C, and by the groups for denoising."""
    model, criterion = shaken()
    objects = targets(3, 1)
    outputs = model.detect(features(), objects)
    count = criterion.count(objects)
    alone, of_two = (divided_by(criterion, outputs, objects, n * count) for n in (1, 2))
    assert len(alone) == 3 * (4 * 2 + 1) and outputs["groups"] == 6
    for name, value in alone.items():
        assert of_two[name] == pytest.approx(value / 2, rel=1e-4), name


@pytest.mark.parametrize("numbers", [(0, 0), (0, 2), (1, 0), (60, 300)])
def test_any_number_of_objects(numbers):
    """None at all, in one image, more than queries: losses and gradients are finite, and every parameter has a gradient."""
    model, criterion = shaken(still=False)
    objects = targets(*numbers)
    total, log = criterion(model.detect(features(), objects), objects, criterion.count(objects))
    total.backward()
    assert total.isfinite() and all(value.isfinite() for value in log.values())
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad and not n.startswith(("backbone", "input_proj"))}
    assert [name for name, p in trained.items() if p.grad is None or not p.grad.isfinite().all()] == []


def test_a_step_without_noise_is_deterministic():
    """Nothing is drawn: two passes give the same losses, whatever the random state is."""
    results = []
    for seed in (0, 1):
        model, criterion = shaken()
        objects = targets(3, 1)
        torch.manual_seed(seed)
        total, _ = criterion(model.detect(features(), objects), objects, criterion.count(objects))
        results.append(total)
    assert torch.equal(*results)


def test_learning_rates_and_swin_backbones():
    """The rates are as given, whatever the batch; of a Swin transformer, which is recomputed, nothing is frozen."""
    model, _ = build(NAME)
    args = options(NAME, ["--lr", "1e-3", "--lr_backbone", "1e-4"])
    rates = {id(p): g["lr"] for g in group_parameters(model, DETECTOR.parameter_groups(args, 4)) for p in g["params"]}
    for name, parameter in model.named_parameters():
        expected = 1e-4 if "sampling_offsets" in name or name.startswith("backbone.0") else 1e-3
        assert rates[id(parameter)] == pytest.approx(expected), name
    assert options(NAME, ["--backbone", "swin_large_window12"]).backbone == "swin_l_w12" and SWINS["swin_l_w12"].window == 12


def test_a_recomputed_swin_has_the_same_gradients():
    """Keeping the inputs of the blocks alone changes memory and time, not numbers; stochastic depth draws the same again."""
    grads = []
    for recompute in (False, True):
        torch.manual_seed(0)
        backbone = Backbone("swin_t", layers=("layer2",), frozen=False, recompute=recompute, drop_path_rate=0.5).train()
        torch.manual_seed(1)
        [(out, _)] = backbone(torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.bool))
        out.square().sum().backward()
        grads.append([p.grad for p in backbone.parameters()])
    torch.testing.assert_close(*grads)


def test_suppression_is_by_class_and_by_overlap():
    """A box at IoU 0.81 with a better one of its class is dropped, at 0.79 kept, and so is one of another class."""

    def row(width: float) -> list[float]:
        return [0.5, 0.5, width, 0.5]  # boxes of one height and centre: their IoU is the ratio of their widths

    boxes = torch.tensor([row(0.5), row(0.5 * 0.81), row(0.5 * 0.79)])[None, None]
    logits = torch.full((1, 1, 3, 4), -9.0)
    logits[0, 0, 0, 1], logits[0, 0, 1, 1], logits[0, 0, 2, 1], logits[0, 0, 1, 2] = 3.0, 2.0, 1.0, 2.5
    postprocess = PostProcess(sigmoid_detections, unsuppressed)
    [found] = postprocess({"pred_logits": logits, "pred_boxes": boxes}, torch.tensor([[100, 100]]))
    sure = [(label, round(score, 3)) for label, score in zip(found["labels"].tolist(), found["scores"].tolist()) if score > 0.5]
    assert sure == [(1, 0.953), (2, 0.924), (1, 0.731)]
    kept = found["boxes"][found["labels"] == 1]
    assert box_iou(kept, kept).triu(1).max() <= 0.8


def test_information_shows_where_both_decoders_gather(tmp_path, dataset):
    """``--predict --information``: a map of each decoder's queries beside the detections, which are those without it."""
    checkpoint = tiny_checkpoint(tmp_path / "x.pth", NAME, 0)
    image = sorted((dataset / "val2017").iterdir())[0]
    widths = []
    for option in ((), ("--information",)):
        out = tmp_path / f"out{len(option)}"
        run = ("--predict", image, *option, "--resume", checkpoint, "--output_dir", out, "--device", "cpu", "--image_size", 64)
        assert run_here(NAME, *run) == 0
        [picture] = (out / "predictions").iterdir()
        height, width, _ = cv2.imread(str(picture)).shape
        widths.append(width / height)
    assert widths[1] > 2.5 * widths[0]
    model = restore(DETECTOR, checkpoint).model.eval()
    with DETECTOR.record(model) as records, torch.no_grad():
        outputs = model.detect(features(1))
    shown = DETECTOR.pictures(records, outputs)
    assert len(shown) == 2 and all(x.square().sum().round() == 10 for x in shown.values()), "all queries are counted"
    assert not model.gather


def test_a_dac_detr_starts_from_a_deformable_detr(tmp_path, dataset, capsys):
    """Backbone, projections, encoder, decoder and heads of a two-stage file fit; the rest is new, and said."""
    source = tiny_checkpoint(tmp_path / "deformable.pth", "Sparse-DETR", 0, "--with_box_refine", "--two_stage")
    argv = ("--coco_path", dataset, "--output_dir", tmp_path / "out", "--epochs", 1, "--lr", 0, "--lr_backbone", 0)
    assert run_here(NAME, *argv, "--finetune", source, *tiny(NAME), "--batch_size", 24, "--weight_decay", 0) == 0
    said = capsys.readouterr().out
    assert "label_enc" in said and "query_embed" in said
    before, after = (torch.load(path, weights_only=True)["model"] for path in (source, tmp_path / "out" / "checkpoint.pth"))
    kept = [n for n in before if n in after and "class_embed" not in n and not n.endswith(("mean", "var", "tracked"))]
    assert all(torch.equal(before[name], after[name]) for name in kept) and len(kept) > 100
    log = json.loads((tmp_path / "out" / "log.txt").read_text())
    assert {"train_loss_ce_dn_0_one2one", "train_loss_giou", "train_loss_bbox_enc", "test_loss_ce_one2one"} <= log.keys()


def test_losses_of_all_layers_are_needed(dataset, tmp_path, capsys):
    """Each layer's box head refines the boxes of the one before: without its loss it would stay as it was drawn."""
    assert run_here(NAME, "--coco_path", dataset, *tiny(NAME), "--no_aux_loss", "--output_dir", tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert "--no_aux_loss" in message and message.count("\n") == 1
