"""Drawing: what is coloured where, and that everything fits."""

import cv2
import numpy as np
import pytest

from common.errors import UserError
from common.output import drawing
from common.output.drawing import PALETTE, TAGGED, draw_detections, save_image
from common.output.panels import SMALL, contact_sheet, detection_panel, information_map, panel

GREY = 77
NO_NAMES = {label: "" for label in range(100)}


def blank(height, width):
    return np.full((height, width, 3), GREY, dtype=np.uint8)


def changed(image):
    return (image != GREY).any(axis=2)


def test_frame_covers_exactly_the_outermost_pixels_of_its_box():
    """Box (10, 20, 30, 50) spans columns 10..29 and rows 20..49: the frame neither grows nor fills, input is kept."""
    image = blank(100, 100)
    drawn = draw_detections(image, [[10, 20, 30, 50]], [3], names=NO_NAMES)
    expected = np.zeros((100, 100), dtype=bool)
    expected[20:50, 10:30] = True
    expected[21:49, 11:29] = False
    np.testing.assert_array_equal(changed(drawn), expected)
    assert (drawn[expected] == PALETTE[3]).all()
    assert (image == GREY).all()


def test_boxes_are_cut_at_the_border_and_senseless_ones_skipped():
    """Regressed boxes leave the image, and may be NaN in a broken model: the picture is drawn anyway."""
    drawn = draw_detections(blank(50, 60), [[-7.5, -3, 70, 55]], [0], names=NO_NAMES)
    assert changed(drawn)[[0, -1]].all() and changed(drawn)[:, [0, -1]].all()
    assert changed(drawn).sum() == 2 * 60 + 2 * 48
    senseless = [[60, 0, 70, 9], [-9, 0, 0, 9], [5, 5, np.nan, 9], [9, 9, 3, 3]]
    np.testing.assert_array_equal(draw_detections(blank(50, 60), senseless, [0, 1, 2, 3], [0.9] * 4), blank(50, 60))
    point = draw_detections(blank(50, 60), [[59.9, 49.9, 59.9, 49.9]], [0], names=NO_NAMES)
    assert np.argwhere(changed(point)).tolist() == [[49, 59]]


def test_surest_box_is_on_top():
    """A crowd of weak boxes must not hide a strong one, whatever the order of the detections."""
    box = [50, 50, 150, 150]
    drawn = draw_detections(blank(200, 200), [box, box, box], [1, 2, 3], [0.2, 0.9, 0.5])
    assert (drawn[80:120, 50] == PALETTE[2]).all()


def test_colours_cycle_and_differ():
    """Any category id has a colour, and the same one for every kind of integer."""
    assert len({tuple(colour) for colour in PALETTE.tolist()}) == len(PALETTE)
    box = [[5, 5, 40, 40]]
    first = draw_detections(blank(50, 50), box, [2], names=NO_NAMES)
    cycled = draw_detections(blank(50, 50), box, np.array([2 + len(PALETTE)]), names=NO_NAMES)
    np.testing.assert_array_equal(first, cycled)


@pytest.mark.parametrize("corner", [(0, 0), (260, 0), (0, 190), (260, 190), (130, 100), (290, 30)])
def test_tag_stays_whole_inside_the_image(corner):
    """Wherever the box lies, every letter of its tag is in the picture: the ink is that of a tag with free space."""

    def ink(x, y):
        drawn = draw_detections(blank(200, 300), [[x, y, x + 30, y + 9]], [0], [0.93], {0: "traffic light"})
        return (changed(drawn) & (drawn != PALETTE[0]).any(axis=2)).sum()

    assert ink(*corner) == ink(60, 120) > 50


def test_tags_of_neighbours_do_not_cover_each_other():
    """Two detections of one object, such as of confused classes, can both be read."""
    one, two = [[60, 60, 160, 120]], [[62, 61, 161, 122]]

    def ink(boxes, labels):
        drawn = draw_detections(blank(200, 300), boxes, labels, [0.9] * len(boxes), {0: "cat", 1: "dog"})
        return (drawn.astype(int).sum(axis=2) < 60).sum()

    assert ink(one + two, [0, 1]) == ink(one, [0]) + ink(two, [1])


def test_tags_of_weak_boxes_leave_the_image_to_be_seen():
    """At a low threshold all boxes are drawn, and only the surest have tags: no tag over another, and few in all."""
    corners = np.random.default_rng(0).uniform(0, 1, (300, 2)) * (540, 380)
    boxes, scores = np.hstack([corners, corners + 100]), np.linspace(1, 0, 300)

    def drawn(count, scores=None):
        return draw_detections(blank(480, 640), boxes[:count], [0] * count, scores, {0: "" if scores is None else "cat"})

    frames, many, surest = drawn(300), drawn(300, scores), drawn(5, scores)
    tagged = (many != frames).any(axis=2)
    assert 0.05 < tagged.mean() < TAGGED
    letters = surest.sum(axis=2, dtype=int) < 60
    assert letters.sum() > 80 and (many[letters] == surest[letters]).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (3, 2), (20, 20)])
def test_tiny_images(size):
    """A picture of any size can be drawn on and shown; a tag too small to be read is left out."""
    box = [[0, 0, size[1], size[0]]]
    assert draw_detections(blank(*size), box, [0], [0.5], {0: "a very long name"}).shape == (*size, 3)
    shown = detection_panel(blank(*size), box, [0], [0.5], maps={"x": np.ones((1, 1))}, ground_truth=([], []))
    assert max(shown.shape) > SMALL and shown.shape[1] <= 3 * 4 * SMALL + 2 * 8


def test_no_detections():
    """An image in which nothing is found is shown as it is."""
    np.testing.assert_array_equal(draw_detections(blank(9, 9), np.zeros((0, 4)), [], []), blank(9, 9))


def test_information_map_has_the_orientation_of_the_image():
    """The cell in row 1, column 4 of a (3, 6) map is the brightest at that place of the image, and only there."""
    information = np.full((3, 6), -2.0)
    information[1, 4] = 5
    picture = information_map(information, (60, 30), cv2.INTER_NEAREST)
    assert picture.shape == (30, 60, 3) and picture.dtype == np.uint8
    bright = picture.astype(int).sum(axis=2) > 300
    assert np.argwhere(bright).min(axis=0).tolist() == [10, 40] and np.argwhere(bright).max(axis=0).tolist() == [19, 49]
    assert bright.sum() == 100
    assert picture[15, 45, 0] > picture[15, 45, 2]  # RGB: the bright end of the colour map is yellow, not blue


def test_information_map_brightens_with_information_alone():
    """Brightness follows the order of the values, and neither their offset nor their scale; a flat map works."""
    ramp = np.linspace(0, 1, 32)[None]
    picture = information_map(ramp, (32, 1))
    assert (np.diff(picture[0] @ (0.2126, 0.7152, 0.0722)) > 0).all()
    np.testing.assert_array_equal(information_map(1e-6 * ramp - 40, (32, 1)), picture)
    assert np.ptp(information_map(np.full((4, 4), 7.5), (8, 8)), axis=(0, 1)).max() == 0


def test_panel_shows_images_as_they_are_with_captions_below():
    """In order, the lower one centred, gaps and captions on white."""
    shown = panel([blank(40, 160), blank(80, 80)], ["one", "other"])
    assert (shown[20:60, :160] == GREY).all() and (shown[:80, -80:] == GREY).all()
    assert (shown[[*range(20), *range(60, 80)], :160] == 255).all()
    gap = shown[:80, 160:-80]
    assert (gap == 255).all() and 2 <= gap.shape[1] <= 8
    left, right = shown[80:, :160], shown[80:, -80:]
    assert left.min() < 100 and right.min() < 100
    assert (shown[[80, -1]] == 255).all()


def test_panel_keeps_captions_whole():
    """A caption longer than its image widens the column."""
    text = "a caption longer than the image"
    ink = (panel([blank(80, 800)], [text])[80:] < 200).sum()
    assert (panel([blank(80, 10)], [text])[80:] < 200).sum() == ink > 0


def test_detection_panel_draws_after_scaling():
    """On a small image the frames are still drawn in the panel's pixels: crisp, at the scaled place, same colours."""
    boxes, information = [[8, 8, 24, 16]], np.eye(4)
    shown = detection_panel(blank(32, 32), boxes, [3], [0.9], {3: ""}, {"x": information}, ([[0, 0, 8, 8]], [1]))
    truth, found, info = shown[:320, :320], shown[:320, 328:648], shown[:320, 656:]
    assert (truth[0, :80] == PALETTE[1]).all()
    for picture in (found, info):
        assert (picture[80:160, 80:82] == PALETTE[3]).all() and (picture[158:160, 80:240] == PALETTE[3]).all()
    assert (found[90:150, 90:230] == GREY).all()
    assert detection_panel(blank(32, 32), boxes, [3], [0.9]).shape[1] == 320


@pytest.mark.parametrize("size", [(1200, 1600), (400, 1800), (1600, 700)])
def test_detection_panel_keeps_the_resolution_of_a_photo(size):
    """Of any shape: every pixel is there, the map beside it is as large, and lines and letters are wider than in small ones."""
    height, width = size
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    box = [[width / 2, height / 2, width - 20, height - 20]]
    shown = detection_panel(image, box, [3], [0.9], {3: ""}, {"x": np.eye(4)})
    untouched = np.s_[: height // 2 - 100, : width // 2]
    np.testing.assert_array_equal(shown[untouched], image[untouched])
    assert shown.shape[1] >= 2 * width and shown.shape[0] > height
    thickness = round((height * width) ** 0.5 / 160)
    for left in (0, shown.shape[1] - width):
        framed = shown[height * 3 // 4, left + width // 2 :][:thickness]
        assert (framed == PALETTE[3]).all() and thickness > 2


@pytest.mark.parametrize("chosen", [1, 2])
def test_chosen_pixels_stand_in_the_row_or_have_their_own(chosen):
    """One map of bools is a picture beside the others; of several, as of several levels, a second row is clearer."""
    maps = {"x": np.eye(4)} | {str(i): np.eye(4, dtype=bool) for i in range(chosen)}
    height, width = detection_panel(blank(SMALL, SMALL), [], [], maps=maps).shape[:2]
    assert (width // SMALL, height // SMALL) == ((3, 1) if chosen == 1 else (2, 2))


def test_contact_sheet_shows_every_panel_once():
    """Panels of different sizes go row by row into a grid, none cut or lost."""
    sheet = contact_sheet([blank(10, 30), blank(20, 10), blank(5, 5)], columns=2)
    rows, columns = np.nonzero(~changed(sheet))
    assert len(rows) == 10 * 30 + 20 * 10 + 5 * 5 and (sheet[changed(sheet)] == 255).all()
    assert columns[rows == rows.max()].max() < sheet.shape[1] / 2
    assert contact_sheet([blank(10, 30)], columns=3).shape[1] < 60


def test_save_image_keeps_the_colours(tmp_path):
    """What is red in the array is red in the file."""
    image = np.zeros((4, 5, 3), dtype=np.uint8)
    image[..., 0] = 200
    save_image(tmp_path / "red.png", image)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "red.png"))[0, 0], [0, 0, 200])


def test_save_image_names_the_path_it_cannot_write(tmp_path, monkeypatch):
    """A missing folder, a folder's name, an unknown extension and a full disk end with the path in one sentence."""
    for path in (tmp_path / "missing" / "a.png", tmp_path, tmp_path / "a.unknown"):
        with pytest.raises(UserError, match=path.name):
            save_image(path, blank(2, 2))
    monkeypatch.setattr(drawing.cv2, "imwrite", lambda *_: False)
    with pytest.raises(UserError, match=r"full\.png"):
        save_image(tmp_path / "full.png", blank(2, 2))
    assert not list(tmp_path.iterdir())
