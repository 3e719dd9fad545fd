"""The command line of every detector: types, defaults, and that every wrong value ends as one sentence."""

from pathlib import Path

import pytest

from common.cli.options import build_parser, parse
from common.errors import UserError
from tests.example_detector import DETECTOR


def options(*argv):
    return parse(DETECTOR, list(argv))[0]


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--clustering", "regions"], "--clustering"),
        (["--backbone", "vgg16"], "--backbone"),
        (["--device", "tpu"], "--device"),
        (["--amp", "fp8"], "--amp"),
        (["--position_embedding", "none"], "--position_embedding"),
        (["--epochs", "0"], "--epochs: '0' is not a whole number of at least 1"),
        (["--epochs", "1.5"], "--epochs: '1.5' is not a whole number of at least 1"),
        (["--batch_size", "many"], "--batch_size"),
        (["--num_workers", "-1"], "--num_workers"),
        (["--lr", "-1"], "--lr: '-1' is not a number of at least 0"),
        (["--lr", "nan"], "--lr"),
        (["--smoothing_sigma", "0.5"], "--smoothing_sigma: '0.5' is not a number of at least 1"),
        (["--image_size", "16"], "--image_size"),
        (["--val_share", "0"], "--val_share: '0' is not a number above 0 and at most 0.9"),
        (["--score_threshold", "high"], "--score_threshold"),
        (["--band", "100000000000000000000"], "is not a whole number of at least 1 and at most 10000"),
        (["--predict", "a.jpg", ""], "--predict: it is empty"),
        (["--coco_path", ""], "--coco_path: it is empty"),
        (["--val_images="], "--val_images: it is empty"),
        (["--resume", ""], "--resume: it is empty"),
        (["--eval_every", "0"], "--eval_every: '0' is not a whole number of at least 1"),
        (["--lr"], "--lr"),
        (["--learning_rate", "1"], "--learning_rate"),
        (["--lr_back", "1"], "--lr_back"),
        (["train"], "train"),
    ],
)
def test_wrong_values_are_told_in_one_sentence(argv, said):
    """Protects users from argparse's page of usage, and from options that are guessed from their beginning."""
    with pytest.raises(UserError) as raised:
        options(*argv)
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_values_arrive_with_their_types():
    """Protects modules from texts where they expect numbers and paths."""
    args = options("--coco_path", "coco", "--predict", "a.jpg", "b", "--smoothing_sigma", "2", "--information")
    assert args.coco_path == Path("coco") and args.predict == ["a.jpg", "b"]
    assert args.output_dir == Path("runs/X-ENACT") and args.information is True and args.eval is False
    assert args.smoothing_sigma == 2.0 and args.no_aux_loss is False and args.dilation is False


def test_help_lists_every_option():
    """Protects --help, which one stray percent sign in a description would break."""
    parser = build_parser(DETECTOR.name, DETECTOR.add_arguments)
    text = parser.format_help()
    assert all(f"--{name}" in text for name in vars(parser.parse_args([])))


def test_as_many_processes_load_images_as_there_are_cores(monkeypatch):
    """Protects a GPU from waiting for one process, and shared machines from more processes than the run may use."""
    for cores, expected in ((1, 1), (3, 3), (64, 8)):
        monkeypatch.setattr("common.cli.arguments.cores", lambda cores=cores: cores)
        assert options().num_workers == expected
    assert options("--num_workers", "0").num_workers == 0
