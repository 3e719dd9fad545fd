"""Annotation files: what is filled in, and that every broken one is told in one sentence."""

import copy
import json

import pytest

from common.boundary.annotations import read_annotations
from common.data.annotations import category_names
from common.errors import UserError
from tests.small_datasets import content, sentence


def test_what_exports_leave_out_is_filled_in(tmp_path):
    """Protects datasets of other tools: COCO's evaluation needs iscrowd and area, detection can tell them."""
    exported = content([([1, 2, 3, 4], {})])
    del exported["annotations"][0]["iscrowd"], exported["annotations"][0]["area"], exported["categories"][0]["name"]
    (tmp_path / "annotations.json").write_text(json.dumps(exported))
    coco = read_annotations(tmp_path / "annotations.json")
    assert (coco.anns[1]["iscrowd"], coco.anns[1]["area"]) == (0, 12)
    assert category_names(coco) == {3: "3", 7: "dog"}


def changed(part, **entry):
    """The annotation file with another value in the first entry of a part; None leaves the key out."""
    broken = copy.deepcopy(content([([1, 2, 3, 4], {})]))
    broken[part][0] = {key: value for key, value in (broken[part][0] | entry).items() if value is not None}
    return broken


def without(part):
    return {key: value for key, value in content().items() if key != part}


BROKEN = {
    "not JSON": ("{", "JSON"),
    "not text": (b"\xff\xfe\x00", "JSON"),
    "empty": ("", "JSON"),
    "a list": ([], "list"),
    "a number": (3, "int"),
    "no images": (without("images"), "images"),
    "no annotations": (without("annotations"), "annotations"),
    "no categories": (without("categories"), "categories"),
    "images empty": (content(images=0), "images has 0 entries"),
    "categories empty": (content() | {"categories": []}, "categories has 0 entries"),
    "annotations of another kind": (content() | {"annotations": {}}, "annotations should be a valid list"),
    "image without id": (changed("images", id=None), "id"),
    "image without file": (changed("images", file_name=None), "file_name"),
    "category of a name": (changed("categories", id="cat"), "categories[0].id should be a valid integer"),
    "category below 0": (changed("categories", id=-1), "categories[0].id should be greater"),
    "unlisted image": (changed("annotations", image_id=9), "annotation 1 belongs to image 9, which is not listed"),
    "unlisted category": (changed("annotations", category_id=9), "annotation 1 belongs to category 9, which is not listed"),
    "no box": (changed("annotations", bbox=None), "bbox"),
    "box of 3": (changed("annotations", bbox=[1, 2, 3]), "annotations[0].bbox has 3 entries"),
    "box with NaN": (changed("annotations", bbox=[1, 2, 3, float("nan")]), "annotations[0].bbox[3]"),
    "box with null": (changed("annotations", bbox=[1, 2, 3, None]), "annotations[0].bbox[3]"),
    "box of texts": (changed("annotations", bbox=["1", "2", "3", "4"]), "annotations[0].bbox[0] should be a valid number"),
}


@pytest.mark.parametrize("broken, said", BROKEN.values(), ids=list(BROKEN))
def test_broken_annotations_are_told_in_one_sentence(tmp_path, broken, said, capsys):
    """Protects users from a traceback out of pycocotools, and from a run that fails hours later."""
    path = tmp_path / "annotations.json"
    if isinstance(broken, bytes):
        path.write_bytes(broken)
    else:
        path.write_text(broken if isinstance(broken, str) else json.dumps(broken))
    with pytest.raises(UserError) as raised:
        read_annotations(path)
    assert sentence(raised.value).startswith(str(path)) and said in str(raised.value)
    assert capsys.readouterr().out == ""
