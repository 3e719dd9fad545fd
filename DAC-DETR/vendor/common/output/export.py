"""A detector as one file that runs without this repository: ONNX, or PyTorch's ``.pt2``.

Shapes: B images, H x W pixels of the padded batch, k detections.
"""

import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..boundary.outputs import whole_file
from ..data.transforms import normalize
from ..errors import UserError, quoted
from ..evaluation.postprocess import PostProcess
from ..models.model import DetectionModel

PROGRAMS = (".onnx", ".pt2")  # what --export takes beside weights
OUTPUTS = ("boxes", "scores", "labels")
# What a program is traced with. A side that is 1 on a level would count as fixed, and so would a number of images that happens to
# be the quotient of two widths of the model.
BATCH, TRACED = 5, (352, 416)


class ExportedDetector(nn.Module):
    """From images to detections.

    Args:
        model: without a mask head.
        postprocess: of its detector, without a choice per image.
    """

    def __init__(self, model: DetectionModel, postprocess: PostProcess):
        super().__init__()
        self.model, self.postprocess = model, postprocess

    def forward(self, images: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """Detects.

        Args:
            images: (B, 3, H, W) uint8 RGB, padded at the right and bottom.
            mask: (B, H, W) bool, True = padding.

        Returns:
            ``boxes`` (B, k, 4) xyxy in pixels of the images as they are given, ``scores`` (B, k), ``labels`` (B, k) category ids.
        """
        sizes = torch.stack(((~mask[:, :, 0]).sum(1), (~mask[:, 0]).sum(1)), dim=1)
        found = self.postprocess.best(self.model(normalize(images, mask), mask), sizes)
        return tuple(found[name] for name in OUTPUTS)


def export_program(
    model: DetectionModel, postprocess: PostProcess, path: Path, size: tuple[int, int], description: Mapping[str, Any]
) -> str:
    """Writes a model in evaluation to an ONNX or ``.pt2`` file.

    Args:
        size: H, W of the images that it will take where they cannot be free.
        description: of the model, for its readers: in ONNX under the metadata "enact", in ``.pt2`` the extra file "enact.json".

    Returns:
        What is free: "any number of images of any size", or of that size.

    Raises:
        UserError: it cannot be exported, a library is missing, or the file cannot be written.
    """
    program, free = _trace(ExportedDetector(model.detector, postprocess).eval(), size)
    if path.suffix == ".pt2":
        with whole_file(path) as file:
            torch.export.save(program, file, extra_files={"enact.json": json.dumps(description)})
    else:
        _write_onnx(program, path, description)
    return free


def _trace(module: ExportedDetector, size: tuple[int, int]) -> tuple[ExportedProgram, str]:
    """Free sizes, or where the model's code does not allow them, a fixed one."""
    free, problem = Dim.DYNAMIC, None
    attempts = [
        ("any number of images of any size", TRACED, {"images": {0: free, 2: free, 3: free}, "mask": {0: free, 1: free, 2: free}})
    ]
    attempts += [(f"any number of images of {size[0]} x {size[1]} pixels", size, {"images": {0: free}, "mask": {0: free}})]
    for what, traced, dynamic_shapes in attempts:
        images, mask = torch.zeros(BATCH, 3, *traced, dtype=torch.uint8), torch.zeros(BATCH, *traced, dtype=torch.bool)
        try:
            with torch.no_grad():
                return torch.export.export(module, (images, mask), dynamic_shapes=dynamic_shapes, strict=False), what
        except Exception as error:  # as many kinds as there are parts of a tracer
            problem = error
    raise UserError(f"this model cannot be exported by PyTorch {torch.__version__} ({quoted(problem)})") from problem


def _write_onnx(program: ExportedProgram, path: Path, description: Mapping[str, Any]) -> None:
    try:
        import onnx  # noqa: F401  optional, as onnxscript
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"--export {path} needs ONNX: pip install onnx onnxscript onnxruntime") from error
    for library in ("torch.onnx", "onnxscript"):  # what they leave undone is no concern of the user
        logging.getLogger(library).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converted = torch.onnx.export(
            program, dynamo=True, input_names=["images", "mask"], output_names=list(OUTPUTS), verbose=False
        )
    converted.model.metadata_props["enact"] = json.dumps(description)
    with whole_file(path) as file:
        file.write(converted.model_proto.SerializeToString())
