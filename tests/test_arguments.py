"""The command line: which of several values counts, and that every mistake ends as one sentence."""

from pathlib import Path

import pytest

from common.arguments import ARCHITECTURE, HABITS, OF_A_CALL, add_query_options, check, common_parser, follow_checkpoint, parse
from common.errors import UserError

DEMO = {"hidden_dim": 128, "lr": 5e-4, "num_queries": 20, "image_size": 128}
CHECKPOINT = {"hidden_dim": 64, "num_queries": 30, "image_size": 96, "clustering": "window", "dilation": True, "lr": 9.0}


def parser_of_a_detector():
    """The common options with a recipe, as each detector sets it."""
    parser = common_parser("X-ENACT")
    add_query_options(parser, num_queries=100)
    parser.set_defaults(
        backbone="resnet50",
        dilation=False,
        dim_feedforward=2048,
        dropout=0.1,
        smoothing_sigma=3.0,
        batch_size=8,
        epochs=300,
        lr_drop=200,
        set_cost_class=1.0,
        cls_loss_coef=1.0,
    )
    return parser


def options(*argv, checkpoint=None, revealed=None):
    args, explicit = parse(parser_of_a_detector(), DEMO, list(argv))
    follow_checkpoint(args, explicit, checkpoint or {}, revealed or {}, "x.pth", ARCHITECTURE)
    return args


@pytest.mark.parametrize(
    "argv, checkpoint, expected",
    [
        ([], None, {"hidden_dim": 256, "lr": 5e-5, "num_queries": 100, "image_size": 800, "clustering": "region"}),
        (["--demo"], None, {"hidden_dim": 128, "lr": 5e-4, "num_queries": 20, "image_size": 128, "epochs": 300}),
        (["--demo"], CHECKPOINT, {"hidden_dim": 64, "num_queries": 30, "image_size": 96, "lr": 5e-4}),
        ([], CHECKPOINT, {"hidden_dim": 64, "dilation": True, "clustering": "window", "lr": 5e-5, "enc_layers": 6}),
        (["--demo", "--lr", "5e-5", "--num_queries", "100"], None, {"lr": 5e-5, "num_queries": 100, "hidden_dim": 128}),
        (["--clustering", "region", "--image_size", "800"], CHECKPOINT, {"clustering": "region", "image_size": 800}),
        (["--hidden_dim", "64", "--dilation"], CHECKPOINT, {"hidden_dim": 64, "dilation": True, "num_queries": 30}),
    ],
    ids=["recipe", "demo", "demo and checkpoint", "checkpoint", "explicit over demo", "explicit over checkpoint", "the same"],
)
def test_precedence(argv, checkpoint, expected):
    """Protects recipe < demo < checkpoint < command line, also where the user asks for just the recipe's value."""
    args = options(*argv, checkpoint=checkpoint and {"args": checkpoint})
    assert {name: getattr(args, name) for name in expected} == expected


def test_a_resumed_run_goes_on_as_it_was():
    """Protects "continue with --resume" from training on with another recipe because its options were not given again."""
    own = {"args": {**CHECKPOINT, "epochs": 7, "coco_path": "elsewhere"}, "detector": "X-ENACT"}
    resumed = options("--resume", "x.pth", "--lr_drop", "3", checkpoint=own)
    assert (resumed.lr, resumed.epochs, resumed.lr_drop, resumed.coco_path) == (9.0, 7, 3, None)
    tuned = options("--finetune", "x.pth", checkpoint=own)
    assert (tuned.lr, tuned.epochs, tuned.hidden_dim) == (5e-5, 300, 64)


def test_a_resumed_run_is_made_fast_by_its_own_machine():
    """Protects machines without a compiler or enough memory from the options of another one; what a batch holds is the recipe's."""
    options_of_speed = {"bucket": True, "compile": True, "cache_mode": True, "channels_last": True}
    own = {"args": CHECKPOINT | options_of_speed, "detector": "X-ENACT"}
    resumed = options("--resume", "x.pth", checkpoint=own)
    assert {name: getattr(resumed, name) for name in options_of_speed} == dict.fromkeys(options_of_speed, False) | {"bucket": True}
    assert not options("--resume", "x.pth", "--no-bucket", checkpoint=own).bucket
    older = {"args": CHECKPOINT, "detector": "X-ENACT"}  # which does not know the options
    assert not any(getattr(options("--resume", "x.pth", checkpoint=older), name) for name in options_of_speed)


def test_what_the_weights_tell_counts_more_than_what_the_file_says():
    """Protects files whose options are of another repository; only the clustering is a habit that the file knows better."""
    published = {"args": {"hidden_dim": 512, "clustering": "region", "lr": 9.0}}
    args = options(checkpoint=published, revealed={"hidden_dim": 64, "clustering": "window"})
    assert (args.hidden_dim, args.clustering, args.lr) == (64, "region", 5e-5)
    assert options(revealed={"clustering": "window"}).clustering == "window"


def test_every_option_of_a_checkpoint_exists():
    """Protects the lists of options that are read from checkpoints from a typing mistake or a renamed option."""
    assert set(ARCHITECTURE) | set(HABITS) | OF_A_CALL <= vars(options()).keys() and not set(ARCHITECTURE) & set(HABITS)
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
        options(*argv, checkpoint={"args": CHECKPOINT})
    assert all(part in str(raised.value) for part in said)


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
        (["--score_threshold", "high"], "--score_threshold"),
        (["--lr"], "--lr"),
        (["--learning_rate", "1"], "--learning_rate"),
        (["--lr_back", "1"], "--lr_back"),
        (["train"], "train"),
    ],
)
def test_wrong_values_are_told_in_one_sentence(argv, said):
    """Protects users from argparse's page of usage, and from options that are guessed from their beginning."""
    with pytest.raises(UserError) as raised:
        parse(parser_of_a_detector(), DEMO, argv)
    assert said in str(raised.value) and "\n" not in str(raised.value)


DATA = ["--coco_path", "coco"]


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
        ([*DATA, "--hidden_dim", "100"], ("--hidden_dim 100", "--nheads 8")),
        ([*DATA, "--hidden_dim", "6", "--nheads", "2"], ("--hidden_dim 6", "divisible by 4")),
        ([*DATA, "--dilation", "--last_stage", "3"], ("--dilation", "--last_stage 3")),
        ([*DATA, "--dropout", "1"], ("--dropout 1",)),
    ],
)
def test_contradictions_are_told(argv, said):
    """Protects every rule between options: the sentence names the options to change."""
    args, _ = parse(parser_of_a_detector(), DEMO, argv)
    with pytest.raises(UserError) as raised:
        check(args)
    assert all(part in str(raised.value) for part in said) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "argv",
    [
        DATA,
        ["--demo"],
        ["--demo", "--eval", "--resume", "x.pth"],
        [*DATA, "--finetune", "x.pth"],
        [*DATA, "--resume", "x.pth"],
        ["--predict", "a.jpg", "folder", "--resume", "x.pth"],
        [*DATA, "--hidden_dim", "100", "--nheads", "5", "--dropout", "0.99", "--lr", "0"],
    ],
)
def test_sensible_commands_pass(argv):
    """Protects what users do every day from a rule that is too strict."""
    check(parse(parser_of_a_detector(), DEMO, argv)[0])


def test_values_arrive_with_their_types():
    """Protects modules from texts where they expect numbers and paths."""
    args = options("--coco_path", "coco", "--predict", "a.jpg", "b", "--smoothing_sigma", "2", "--information")
    assert args.coco_path == Path("coco") and args.predict == [Path("a.jpg"), Path("b")]
    assert args.output_dir == Path("runs/X-ENACT") and args.information is True and args.eval is False
    assert args.smoothing_sigma == 2.0 and args.no_aux_loss is False and args.dilation is False


def test_help_lists_every_option():
    """Protects --help, which one stray percent sign in a description would break."""
    parser = parser_of_a_detector()
    text = parser.format_help()
    assert all(f"--{name}" in text for name in vars(parser.parse_args([])))
