"""Which of several values of an option counts, and which options contradict each other."""

from pathlib import Path

import pytest

from common.cli.inherited import follow_checkpoint
from common.cli.options import CHANGEABLE, PAIRS, PER_CALL, check, check_data, check_given, parse
from common.detector import ARCHITECTURE
from common.errors import UserError
from tests.example_detector import DETECTOR

RECORDED = {"hidden_dim": 64, "num_queries": 30, "image_size": 96, "clustering": "window", "dilation": True, "lr": 9.0}
RESUME, FINETUNE = ("--resume", "x.pth"), ("--finetune", "x.pth")
# Of this repository; without the detector's name, a file may be anybody's.
OWN = {"args": RECORDED, "detector": "X-ENACT"}


def options(*argv, checkpoint=None, revealed=None):
    return options_and_lines(*argv, checkpoint=checkpoint, revealed=revealed)[0]


def options_and_lines(*argv, checkpoint=None, revealed=None):
    """The options of a call, and what is said of a checkpoint's; ``revealed`` is what its weights tell."""
    args, explicit = parse(DETECTOR, list(argv))
    lines = follow_checkpoint(DETECTOR, args, explicit, (checkpoint or {}) | {"model": revealed or {}}, "x.pth")
    return args, lines


@pytest.mark.parametrize(
    "argv, recorded, expected",
    [
        ([], None, {"hidden_dim": 256, "lr": 5e-5, "num_queries": 100, "image_size": 800, "clustering": "region"}),
        (["--demo"], None, {"hidden_dim": 128, "lr": 5e-4, "num_queries": 20, "image_size": 128, "epochs": 300}),
        (["--demo"], RECORDED, {"hidden_dim": 64, "num_queries": 30, "image_size": 96, "lr": 5e-4}),
        ([], RECORDED, {"hidden_dim": 64, "dilation": True, "clustering": "window", "lr": 5e-5, "enc_layers": 6}),
        (["--demo", "--lr", "5e-5", "--num_queries", "100"], None, {"lr": 5e-5, "num_queries": 100, "hidden_dim": 128}),
        (["--clustering", "region", "--image_size", "800"], RECORDED, {"clustering": "region", "image_size": 800}),
        (["--hidden_dim", "64", "--dilation"], RECORDED, {"hidden_dim": 64, "dilation": True, "num_queries": 30}),
    ],
    ids=["recipe", "demo", "demo and checkpoint", "checkpoint", "explicit over demo", "explicit over checkpoint", "the same"],
)
def test_precedence(argv, recorded, expected):
    """Protects recipe < demo < checkpoint < command line, also where the user asks for just the recipe's value."""
    args = options(*argv, checkpoint=recorded and {"args": recorded})
    assert {name: getattr(args, name) for name in expected} == expected


def test_a_resumed_run_goes_on_as_it_was():
    """Protects "continue with --resume" from training on with another recipe because its options were not given again."""
    own = OWN | {"args": RECORDED | {"epochs": 7, "coco_path": "elsewhere", "weight_decay": 0.5, "amp": "bf16"}}
    resumed = options(*RESUME, "--lr_drop", "3", checkpoint=own)
    assert (resumed.lr, resumed.epochs, resumed.lr_drop, resumed.coco_path) == (9.0, 7, 3, Path("elsewhere"))
    assert options(*RESUME, "--demo", checkpoint=own).coco_path is None
    assert options(*RESUME, "--coco_path", "here", checkpoint=own).coco_path == Path("here")
    assert options(*FINETUNE, checkpoint=own).coco_path is None
    assert (resumed.weight_decay, resumed.amp) == (0.5, "bf16")
    given = options(*RESUME, "--weight_decay", "0", "--amp", "no", checkpoint=own)
    assert (given.weight_decay, given.amp) == (0, "no")
    tuned = options(*FINETUNE, checkpoint=own)
    assert (tuned.lr, tuned.epochs, tuned.hidden_dim, tuned.amp) == (5e-5, 300, 64, "no")


@pytest.mark.parametrize("use", [["--eval"], ["--predict", "a.jpg"], ["--export", "y.pth"]], ids=lambda argv: argv[0])
def test_what_is_no_training_has_the_precision_of_its_call(use):
    """Protects reported numbers from the rounding of bfloat16 that nobody asked for, because the model was trained with it."""
    own = OWN | {"args": RECORDED | {"amp": "bf16"}}
    assert options(*RESUME, *use, checkpoint=own).amp == "no"
    assert options(*RESUME, *use, "--amp", "bf16", checkpoint=own).amp == "bf16"


def test_a_resumed_run_is_made_fast_by_its_own_machine():
    """Protects machines without a compiler or enough cores from the options of another one; what a batch holds is the recipe's."""
    of_the_machine = {"compile": True, "channels_last": False, "tf32": True, "num_workers": 99, "device": "cuda"}
    own = OWN | {"args": RECORDED | of_the_machine | {"bucket": True}}
    resumed, alone = options(*RESUME, checkpoint=own), options()
    assert {name: getattr(resumed, name) for name in of_the_machine} == {name: getattr(alone, name) for name in of_the_machine}
    assert alone.channels_last and not alone.compile and alone.num_workers < 99
    assert resumed.bucket and not options(*RESUME, "--no-bucket", checkpoint=own).bucket
    older = options(*RESUME, checkpoint=OWN)  # of a version that does not know the options
    assert older.channels_last and not older.compile and not older.bucket


def test_a_resumed_run_finds_named_files_again():
    """Those of its own, unless the call says which data."""
    pairs = {name: f"elsewhere/{name}" for name in PAIRS}
    own = OWN | {"args": RECORDED | pairs | {"coco_path": None, "val_share": 0.3, "seed": 7}}
    resumed, lines = options_and_lines(*RESUME, checkpoint=own)
    assert [getattr(resumed, name) for name in PAIRS] == [Path(value) for value in pairs.values()]
    assert any("elsewhere/val_annotations" in line for line in lines) and (resumed.val_share, resumed.seed) == (0.3, 7)
    check_data(resumed)
    assert options(*RESUME, "--coco_path", "here", checkpoint=own).train_images is None


def test_what_the_weights_tell_counts_more_than_what_the_file_says():
    """Protects files whose options are of another repository; only what may be changed is what the file says."""
    published = {"args": {"hidden_dim": 512, "clustering": "region", "lr": 9.0}}
    args = options(checkpoint=published, revealed={"hidden_dim": 64, "clustering": "window"})
    assert (args.hidden_dim, args.clustering, args.lr) == (64, "region", 5e-5)
    assert options(revealed={"clustering": "window"}).clustering == "window"


def test_what_may_surprise_is_said():
    """Protects users from a file that brings another clustering along than they expect; the plain detector is no surprise."""
    args, lines = options_and_lines(revealed={"clustering": "window"})
    assert lines == ["x.pth was trained with --clustering window, and is used so"] and args.clustering == "window"
    for known in ({"revealed": {"clustering": "none"}}, {"revealed": {"clustering": "window"}, "checkpoint": {"args": RECORDED}}):
        assert options_and_lines(**known)[1] == []
    assert options_and_lines("--clustering", "region", revealed={"clustering": "window"})[1] == []


def test_a_plain_checkpoint_is_a_warm_start_for_the_clustering_of_the_call():
    """Protects --finetune of a published plain detector: what is trained is ENACT unless something else is asked for."""
    plain = {"revealed": {"clustering": "none"}, "checkpoint": {"args": RECORDED | {"clustering": "none", "smoothing_sigma": 5.0}}}
    assert options(*FINETUNE, **plain).clustering == "region"
    assert options(*FINETUNE, "--clustering", "none", **plain).clustering == "none"
    assert options(*RESUME, **plain).clustering == "none"
    assert options(*FINETUNE, checkpoint={"args": RECORDED}, revealed={"clustering": "window"}).clustering == "window"


def test_every_option_of_a_checkpoint_exists():
    """Protects the lists of options that are read from checkpoints from a typing mistake or a renamed option."""
    assert {*ARCHITECTURE, *CHANGEABLE, *DETECTOR.changeable} | PER_CALL <= vars(options()).keys()
    assert not {*ARCHITECTURE} & {*CHANGEABLE, *DETECTOR.changeable}
    for checkpoint in ({}, {"args": None}, {"args": {}}):  # as of other repositories
        assert options(checkpoint=checkpoint) == options()


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--hidden_dim", "256"], ("--hidden_dim 256", "x.pth", "hidden_dim 64")),
        (["--no-dilation"], ("dilation", "x.pth", "True", "False")),
    ],
)
def test_a_contradiction_with_the_checkpoint_names_both_values(argv, said):
    """Protects from weights in a model of another shape, with a message that says which of the two to change."""
    with pytest.raises(UserError) as raised:
        options(*argv, checkpoint={"args": RECORDED})
    assert all(part in str(raised.value) for part in said)


DATA = ["--coco_path", "coco"]
VAL_PAIR = ["--val_images", "b", "--val_annotations", "b.json"]
TRAIN_PAIR = ["--train_images", "a", "--train_annotations", "a.json"]


@pytest.mark.parametrize(
    "argv, said",
    [
        ([], ("--coco_path", "--demo")),
        ([*DATA, "--eval"], ("--eval needs weights", "--resume")),
        (["--predict", "a.jpg"], ("--predict needs weights", "--resume")),
        ([*DATA, "--eval", "--finetune", "x.pth"], ("--eval needs weights", "--resume")),
        ([*DATA, "--eval", "--predict", "a.jpg", "--resume", "x.pth"], ("--eval", "--predict")),
        ([*DATA, "--resume", "x.pth", "--finetune", "y.pth"], ("--resume", "--finetune")),
        (["--eval", "--resume", "x.pth"], ("--coco_path", "--demo")),
        (VAL_PAIR, ("--val_images is not enough", "--train_images, --train_annotations")),
        ([*TRAIN_PAIR, *VAL_PAIR[2:]], ("--train_images is not enough", "--val_images, too")),
        ([*VAL_PAIR[:2], "--eval", "--resume", "x.pth"], ("pass --val_annotations",)),
        ([*DATA, *TRAIN_PAIR], ("--coco_path and --train_images", "choose one")),
        (["--demo", *VAL_PAIR], ("--demo and --val_images", "choose one")),
        ([*DATA, "--hidden_dim", "100"], ("--hidden_dim 100", "--nheads 8")),
        ([*DATA, "--hidden_dim", "6", "--nheads", "2"], ("--hidden_dim 6", "divisible by 4")),
        ([*DATA, "--dilation", "--last_stage", "3"], ("--dilation", "--last_stage 3")),
        ([*DATA, "--clustering", "window", "--cuts", "steps"], ("--clustering window", "--cuts")),
        ([*DATA, "--dropout", "1"], ("--dropout 1",)),
    ],
)
def test_contradictions_are_told(argv, said):
    """Protects every rule between options: the sentence names the options to change."""
    args, _ = parse(DETECTOR, argv)
    with pytest.raises(UserError) as raised:
        check(args)
        check_data(args)
    assert all(part in str(raised.value) for part in said) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--clustering", "none", "--size_bias"], "--size_bias shapes clusters, which --clustering none has not"),
        (["--clustering", "none", "--band", "4"], "--band shapes clusters"),
        (["--band", "4"], "--band 4 sets the rows of --scan band"),
        (["--clustering", "region+", "--scan", "hilbert", "--band", "4"], "--band 4 sets the rows of --scan band"),
        ([*RESUME, "--cuts", "steps"], "--cuts shapes clusters"),
    ],
    ids=" ".join,
)
def test_options_without_effect_are_told(argv, said):
    """Protects from numbers that are taken for those of an option which was ignored; also where the checkpoint makes it idle."""
    plain = OWN | {"args": RECORDED | {"clustering": "none"}}
    args, explicit = parse(DETECTOR, argv)
    if args.resume:
        follow_checkpoint(DETECTOR, args, explicit, plain | {"model": {}}, "x.pth")
    with pytest.raises(UserError) as raised:
        check_given(args, explicit)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    "argv",
    [
        [*RESUME, "--eval", "--clustering", "none"],
        [*RESUME, "--eval"],
        ["--clustering", "none", "--smoothing_sigma", "3", "--no-size_bias", "--capacity", "auto"],
        ["--clustering", "region+", "--band", "4"],
        ["--scan", "band", "--band", "4"],
    ],
    ids=" ".join,
)
def test_options_of_a_checkpoint_may_be_without_effect(argv):
    """Protects evaluations that leave the clusters of a checkpoint out, and commands that are given to every model."""
    own = OWN | {"args": RECORDED | {"clustering": "region+", "cuts": "steps", "band": 4, "size_bias": True}}
    args, explicit = parse(DETECTOR, argv)
    if args.resume:
        follow_checkpoint(DETECTOR, args, explicit, own | {"model": {}}, "x.pth")
    check_given(args, explicit)


@pytest.mark.parametrize(
    "argv",
    [
        DATA,
        ["--demo"],
        ["--demo", "--eval", "--resume", "x.pth"],
        [*DATA, "--finetune", "x.pth"],
        [*TRAIN_PAIR, *VAL_PAIR],
        [*VAL_PAIR, "--eval", "--resume", "x.pth"],
        [*DATA, "--resume", "x.pth"],
        ["--predict", "a.jpg", "folder", "--resume", "x.pth"],
        [*DATA, "--hidden_dim", "100", "--nheads", "5", "--dropout", "0.99", "--lr", "0"],
    ],
)
def test_sensible_commands_pass(argv):
    """Protects what users do every day from a rule that is too strict."""
    args, _ = parse(DETECTOR, argv)
    check(args)
    check_data(args)
