"""Drawing a detector's answers on images and videos."""

import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pycocotools.coco import COCO
from torchvision.ops import box_convert
from tqdm import tqdm

from ..boundary.outputs import make_folder
from ..data.sources import Source, picture_names, titles
from ..data.videos import Video
from ..errors import UserError, printable
from ..predictor import Predictor
from ..training import interrupts
from .drawing import draw_detections, draw_panoptic, save_image
from .panels import detection_panel
from .results import CocoResults
from .videos import SUFFIX, VideoFile


def folders_of(folder: Path) -> tuple[Path, Path]:
    """Where the pictures are written, and the panoptic maps that stand alone."""
    return folder, folder.with_name(f"{folder.name}_panoptic")


class Drawing:
    """Draws detections on images, and keeps them where asked. Beside them stand, where asked, the true boxes and what decided. The
    map of a panoptic model is drawn, too, beside them or alone in a second picture; stuff, which would cover everything else, is
    drawn there alone.

    Args:
        score_threshold: least score of a box that is drawn or kept.
        information: draw the detector's own pictures beside it, such as the self-information of the last encoder layer.
        truth: the :func:`true_boxes` of the images by their titles, to be drawn beside what is found.
        results: where the detections are kept.

    Attributes:
        maps_alone: whether panoptic maps stand alone.
    """

    def __init__(
        self,
        predictor: Predictor,
        score_threshold: float,
        *,
        information: bool,
        truth: Mapping[str, tuple[np.ndarray, list[int]]] | None = None,
        results: CocoResults | None = None,
    ):
        self.predictor, self.score_threshold, self.information = predictor, score_threshold, information
        self.truth, self.results = truth, results
        self.maps_alone = predictor.stuff is not None and not (information or truth)

    def __call__(self, image: Image.Image, file_name: str) -> list[np.ndarray]:
        """The picture of an image, and its panoptic map where that stands alone: (H, W, 3) uint8 RGB each."""
        found = self.predictor(image, self.score_threshold, information=self.information)
        if self.results is not None:
            self.results.add(file_name, image.size, found)
        names, stuff = self.predictor.category_names, self.predictor.stuff or ()
        pixels, panoptic = np.asarray(image), None
        things = [k for k, label in enumerate(found["labels"].tolist()) if label not in stuff]
        drawn = (*(found[name][things].numpy() for name in ("boxes", "labels", "scores")), names)
        masks = found["masks"][things].numpy() if "masks" in found else None
        if "panoptic" in found:
            panoptic = found["panoptic"] | {"ids": found["panoptic"]["ids"].numpy(), "stuff": stuff}
        if self.information or self.truth:
            maps = {caption: values.numpy() for caption, values in found.get("information", {}).items()}
            ground_truth = self.truth[file_name] if self.truth else None
            return [detection_panel(pixels, *drawn, maps, ground_truth, masks=masks, panoptic=panoptic)]
        pictures = [draw_detections(pixels, *drawn, masks)]
        return [*pictures, draw_panoptic(pixels, names=names, **panoptic)] if panoptic else pictures


@dataclass
class Written:
    """What a run of predictions has written, and what it could not read.

    Attributes:
        folder: of the pictures.
        sources: how many there were.
    """

    folder: Path
    sources: int
    pictures: int = 0
    videos: int = 0
    frames: int = 0
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [_counted(self.pictures, "picture")] if self.pictures or not self.videos else []
        parts += [f"{_counted(self.videos, 'video')} of {_counted(self.frames, 'frame')}"] if self.videos else []
        return f"{' and '.join(parts)} in {self.folder}"

    def add_problem(self, problem: str) -> None:
        """Says at once what is wrong with one of several sources."""
        self.problems.append(problem)
        if self.sources > 1:
            tqdm.write(printable(problem), file=sys.stderr)

    def raise_problems(self) -> None:
        """UserError where there was any: the only one, or a sentence that points to those that were said."""
        if self.problems and self.sources == 1:
            raise UserError(self.problems[0])
        if self.problems:
            raise UserError(f"{len(self.problems)} of {self.sources} could not be read whole, see above: repair or leave them out")


def draw_predictions(drawing: Drawing, sources: Sequence[Source], folder: Path) -> Written:
    """Writes a picture per image and a video per video to ``folder``, and panoptic maps that stand alone under the same names to
    ``<folder>_panoptic``. What cannot be read is said and left out.

    Raises:
        UserError: something cannot be written, or would take the place of a source.
        KeyboardInterrupt: the run is stopped; it says what was written until then, with the videos up to the frame they were at.
    """
    folders = folders_of(folder)
    names = picture_names(sources)
    _keep(sources, [folder / f"{name}{suffix}" for name in names for suffix in (".png", SUFFIX)])
    for parent in {(place / name).parent for place in folders[: 1 + drawing.maps_alone] for name in names}:
        make_folder(parent)
    written = Written(folder, len(sources))
    try:
        for source, name, title in zip(tqdm(sources, desc="predictions", leave=False), names, titles(sources)):
            try:
                read = source.read()
            except UserError as error:
                written.add_problem(str(error))
                continue
            targets = [str(place / name) for place in folders]
            if isinstance(read, Video):
                _draw_video(drawing, read, title, targets, written)
                continue
            for target, picture in zip(targets, drawing(read, title)):
                save_image(f"{target}.png", picture)
            written.pictures += 1
    except KeyboardInterrupt:
        if not interrupts.received():
            raise
        raise KeyboardInterrupt(f"{interrupts.received()}; {written}") from None
    finally:
        if drawing.results is not None and drawing.results.count:
            drawing.results.write()
    return written


def _draw_video(drawing: Drawing, video: Video, title: str, targets: Sequence[str], written: Written) -> None:
    """Frame by frame; however it ends, the videos hold the frames that were drawn until then."""
    with ExitStack() as stack:
        stack.enter_context(closing(video))
        files = [stack.enter_context(closing(VideoFile(Path(f"{target}{SUFFIX}"), video.fps))) for target in targets]
        for number, frame in tqdm(video, total=video.count, desc=title, unit="frame", leave=False):
            interrupts.stop_if_received()
            for file, picture in zip(files, drawing(frame, f"{title}#{number:06d}")):
                file.write(picture, number)
            written.videos += number == 0
            written.frames += 1
    if video.problem:
        written.add_problem(video.problem)


def _keep(sources: Sequence[Source], pictures: Sequence[Path]) -> None:
    """UserError where a picture would take the place of a source."""
    for lost in {source.path.resolve() for source in sources} & {picture.resolve() for picture in pictures}:
        raise UserError(f"{lost} would be overwritten by its own picture: choose another --output_dir")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def true_boxes(truth: COCO, image_id: int, stuff: Collection[int]) -> tuple[np.ndarray, list[int]]:
    """Boxes (n, 4) xyxy in pixels and category ids of the things in an image."""
    annotations = [a for a in truth.imgToAnns[image_id] if not a["iscrowd"] and a["category_id"] not in stuff]
    xywh = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float64).reshape(-1, 4)
    return box_convert(xywh, "xywh", "xyxy").numpy(), [a["category_id"] for a in annotations]
