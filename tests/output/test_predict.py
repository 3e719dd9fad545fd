"""``--predict``: pictures of what a model finds, on each detector, since each tells its information in its own way."""

import cv2

from tests.detector_runs import run_here
from tests.tiny_checkpoints import tiny_checkpoint


def test_prediction_draws_one_picture_per_image(clustered, dataset, tmp_path):
    """``--predict`` takes folders and files, needs no dataset, and with ``--information`` draws the map beside the image.

    A detector without clustering has no map: its picture stands alone.
    """
    images = [dataset / "val2017", dataset / "train2017" / "000000000009.jpg"]
    widths = {}
    for clustering, option in (("region", ()), ("region", ("--information",)), ("none", ("--information",))):
        checkpoint = tiny_checkpoint(tmp_path / "x.pth", clustered, 0, "--clustering", clustering)
        out = tmp_path / f"{clustering}{len(option)}"
        argv = ("--predict", *images, "--resume", checkpoint, "--score_threshold", 0, "--device", "cpu", *option)
        assert run_here(clustered, *argv, "--output_dir", out) == 0
        shapes = {path.name: cv2.imread(str(path)).shape for path in (out / "predictions").iterdir()}
        assert shapes.keys() == {f"{i:012d}.png" for i in (1, 2, 3, 4, 5, 9)}
        widths[(clustering, *option)] = [width / height for height, width, _ in shapes.values()]
    map_beside, alone = widths["region", "--information"], widths["none", "--information"]
    assert all(both > 1.9 * one for both, one in zip(map_beside, alone, strict=True))
