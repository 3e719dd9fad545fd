import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from enact import EntropyClustering
from tools import figures
from tools.detectors import DETECTORS, options
from tools.framework_figure import CONCAVE, borders, busiest_rows, cluster_colours


@pytest.fixture(scope="module", params=["DETR-ENACT", "Anchor-DETR-ENACT"])
def checkpoint(request, tmp_path_factory) -> Path:
    """An untrained demo, with ordinary attention or with row-column decoupled attention."""
    args = options(request.param, ["--demo"])
    torch.manual_seed(0)
    model = DETECTORS[request.param].build_model(args, 7, False)
    path = tmp_path_factory.mktemp("demo") / "checkpoint.pth"
    kept = {"clustering": args.clustering} | {k: v for k, v in vars(args).items() if isinstance(v, (int, float, str))}
    torch.save({"model": model.state_dict(), "args": kept, "num_classes": 7, "detector": request.param}, path)
    (path.parent / "pictures").mkdir()
    cv2.imwrite(str(path.parent / "pictures" / "1.png"), np.zeros((40, 80, 3), np.uint8))
    return path


def test_the_figure_shows_what_the_layer_computes(checkpoint):
    """The matrices are attention weights of one and the same map, and the clusters are those of the recorded layer."""
    image = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    observation = figures.observe(checkpoint, image, 1)
    h, w = observation.index.shape
    n, m = h * w, observation.index.max() + 1
    assert observation.information.shape == observation.smoothed.shape == (h, w) and 4 * h == 3 * w
    assert observation.plain.shape == (n, n) and observation.clustered.shape == (n, m) and 1 < m < n
    for weights in (observation.plain, observation.clustered):
        np.testing.assert_allclose(weights.sum(1), 1, atol=1e-5)
    assert not np.allclose(observation.index, figures.observe(checkpoint, image, 0).index)


def test_pictures_are_written_to_the_output_folder(checkpoint, tmp_path):
    """`make figures` leaves them at the width of a README; a detector's is the demo's own, under the detector's name."""
    assert figures.main(["--checkpoint", str(checkpoint), "--image_size", "96", "--output", str(tmp_path / "new")]) == 0
    detector = torch.load(checkpoint, weights_only=True)["detector"].lower()
    assert {p.name: cv2.imread(str(p)).shape[1] for p in (tmp_path / "new").iterdir()} == {
        f"{detector}.png": 80,
        "enact_framework.png": 1600,
        "scans.png": 1600,
        "demo_detections.png": 1600,
    }


def test_colours_tell_concave_from_convex():
    """Orange is where the smoothed signal is concave, in every cluster of many signals, whichever sign comes first."""
    torch.manual_seed(0)
    clusters = EntropyClustering(8)(torch.randn(20, 200, 8))
    for smoothed, index in zip(clusters.smoothed.detach().numpy(), clusters.index.numpy()):
        concave = 2 * smoothed[1:-1] - smoothed[:-2] - smoothed[2:] > 0
        colours = cluster_colours(smoothed, index)
        assert [colours[i] in CONCAVE for i in index[1:-1]] == concave.tolist()
        assert all(a != b for a, b in zip(colours, colours[1:]))


def test_borders_surround_the_clusters():
    """A line wherever neighbours differ, beside or below each other, and nowhere else."""
    index = np.array([[0, 0, 1], [1, 1, 1]])
    assert set(borders(index)) == {((2, 0), (2, 1)), ((0, 1), (1, 1)), ((1, 1), (2, 1))}


def test_the_stretch_is_where_the_signal_varies_and_fits_the_map():
    """The zoomed rows hold the most eventful part; a map lower than the stretch is shown whole."""
    smoothed = np.zeros((6, 4))
    smoothed[4] = [0, 5, 0, 5]
    assert 4 in busiest_rows(smoothed, 2) and len(busiest_rows(smoothed, 2)) == 2
    assert busiest_rows(smoothed, 9) == range(6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "missing.pth"], "run `make demo` first"),
        (["--checkpoint", "CHECKPOINT", "--layer", "3"], "--layer 3"),
        (["--checkpoint", __file__], "pictures"),
    ],
)
def test_mistakes_end_with_one_sentence(checkpoint, arguments, message, capsys):
    """Code 2, and one line that says what to do."""
    arguments = [str(checkpoint) if a == "CHECKPOINT" else a for a in arguments]
    assert figures.main(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and not printed.out


def test_another_detectors_checkpoint_is_refused(checkpoint, tmp_path, capsys):
    """The figure is of regions; the message says so instead of a stack of unknown keys."""
    saved = torch.load(checkpoint, weights_only=True)
    saved["args"]["clustering"] = "none"
    torch.save(saved, tmp_path / "plain.pth")
    shutil.copytree(checkpoint.parent / "pictures", tmp_path / "pictures")
    assert figures.main(["--checkpoint", str(tmp_path / "plain.pth")]) == 2
    assert "--clustering region" in capsys.readouterr().err
