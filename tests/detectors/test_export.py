"""``--export`` to programs: ONNX Runtime and a loaded ``.pt2`` find what the model finds, for images of any number and size."""

import json

import onnxruntime
import pytest
import torch

from common.cli.restore import restore
from common.evaluation.postprocess import with_category_ids
from common.output.export import ExportedDetector
from tests.detector_runs import EXAMPLE, VARIANTS, run_here
from tests.tiny_checkpoints import tiny_checkpoint
from tools.detectors import DETECTORS

# The form with the most that cannot be traced easily.
FORMS = {
    "DETR-ENACT": ("region", "--clustering", "region+", "--cuts", "steps", "--capacity", "auto"),
    "Conditional-DETR-ENACT": ("window", "--capacity", 20),
    "Anchor-DETR-ENACT": ("region", "--capacity", "auto"),
    "Sparse-DETR": ("sparse",),
    "DAC-DETR": ("all", "--no-nms"),
    "PnP-DETR": ("clustered", "--capacity", "auto"),
}
SMALL = ("--dec_layers", "1")  # tracing takes a second for each layer
SIZES = [(2, 64, 96), (3, 45, 72), (1, 101, 130), (1, 33, 1)]


def exported(path, detector, tmp_path):
    """Writes a program of a tiny checkpoint whose categories have large ids, and returns the model that it is of."""
    form, *argv = FORMS[detector]
    checkpoint = tiny_checkpoint(tmp_path / "x.pth", detector, 0, *VARIANTS[detector][form], *SMALL)
    content = torch.load(checkpoint, weights_only=True)
    content["category_ids"] = [1000 * c for c in range(content["num_classes"])]
    torch.save(content, checkpoint)
    assert run_here(detector, "--export", path, "--resume", checkpoint, *argv) == 0
    loaded = restore(DETECTORS[detector], checkpoint, list(map(str, argv)))
    postprocess = DETECTORS[detector].build_postprocess(loaded.args)
    postprocess = with_category_ids(postprocess, content["category_ids"], torch.device("cpu"))
    return ExportedDetector(loaded.model.eval(), postprocess)


def padded_batch(size):
    """Images of which the second is smaller than the batch."""
    images, mask = torch.randint(0, 256, (size[0], 3, *size[1:]), dtype=torch.uint8), torch.zeros(size, dtype=torch.bool)
    mask[1:2, size[1] // 2 + 3 :] = True
    mask[1:2, :, size[2] - 20 :] = True
    return images, mask


def assert_same(found, expected):
    """Boxes within 0.01 pixels and scores within 1e-4; nearly equal scores may change places, so that the set counts."""
    for b in range(len(expected[0])):
        order = [torch.argsort(scores[b], descending=True, stable=True) for scores in (found[1], expected[1])]
        torch.testing.assert_close(found[1][b][order[0]], expected[1][b][order[1]], atol=1e-4, rtol=0)
        rows = [torch.cat((x[0][b], x[2][b, :, None].float()), dim=1) for x in (found, expected)]
        assert torch.cdist(rows[0], rows[1], p=float("inf")).amin(1).max() < 0.01


def test_onnx_runtime_finds_what_the_model_finds(detector, tmp_path):
    """Protects what is deployed: padding, batches and sizes that were not traced, images of one column, ids of the dataset."""
    torch.manual_seed(0)
    module = exported(tmp_path / "model.onnx", detector, tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for size in SIZES:
        images, mask = padded_batch(size)
        with torch.no_grad():
            expected = module(images, mask)
        found = session.run(["boxes", "scores", "labels"], {"images": images.numpy(), "mask": mask.numpy()})
        assert_same([torch.from_numpy(x) for x in found], expected)
        assert (expected[2] % 1000 == 0).all()
    description = json.loads(session.get_modelmeta().custom_metadata_map["enact"])
    assert description["detector"] == detector and description["image_size"] == 64


def test_a_pt2_finds_what_the_model_finds(tmp_path):
    """The other format, which needs PyTorch alone."""
    torch.manual_seed(0)
    module = exported(tmp_path / "model.pt2", EXAMPLE, tmp_path)
    program = torch.export.load(tmp_path / "model.pt2", extra_files=(extra := {"enact.json": ""})).module()
    for size in SIZES[:2]:
        batch = padded_batch(size)
        with torch.no_grad():
            assert_same(program(*batch), module(*batch))
    assert json.loads(extra["enact.json"])["detector"] == EXAMPLE


@pytest.mark.parametrize(
    "detector, name, argv, said",
    [
        ("DETR-ENACT", "x.onnx", (), "--capacity auto"),
        ("DAC-DETR", "x.onnx", (), "--no-nms"),
        ("DETR-ENACT", "x.engine", (), "name a .pth file"),
    ],
)
def test_what_cannot_be_exported_is_said(detector, name, argv, said, tmp_path, capsys):
    """Protects from a PyTorch file called .onnx, and from a trace that fails after minutes."""
    checkpoint = tiny_checkpoint(tmp_path / "x.pth", detector, 0)
    assert run_here(detector, "--export", tmp_path / name, "--resume", checkpoint, *argv) == 2
    assert said in capsys.readouterr().err and not (tmp_path / name).exists()
