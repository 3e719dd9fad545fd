"""What the Markdown files say holds: their Python runs, the command lines take their commands, their links lead somewhere."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.detector_runs import run_here
from tests.tiny_checkpoints import tiny_checkpoint
from tools.detectors import DETECTORS, ROOT, options
from tools.tables import pages

DEMO = re.search(r"^DETECTOR \?= (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in pages(ROOT)}
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^][]*\]\(([^()\s]+)\)")
OF_DETECTOR = re.compile(r"`(python (?:\S+/)?main\.py[^`]*)`")
OF_BENCHMARK = re.compile(r"`python (benchmarks/\S+\.py)([^`]*)`")
FILE = re.compile(r"(?<![\w/.-])((?:benchmarks|common|docs|enact|images|tests|tools)/[\w./-]+\.(?:json|md|png|py|sh))\b")


def blocks(name: str, language: str) -> list[str]:
    return [text for fence, text in FENCED.findall(TEXTS[name]) if fence == language]


def commands(name: str) -> list[str]:
    """The command lines of detectors, as from the top of the repository, without what a shell would do with them."""
    lines = [line for block in blocks(name, "") for line in block.splitlines()]
    lines += OF_DETECTOR.findall(FENCED.sub("", TEXTS[name]).replace("\n", " "))
    variables = {"DEMO": DEMO} | dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', "\n".join(lines), re.MULTILINE))
    for variable, value in variables.items():
        lines = [line.replace(f"${variable}", value) for line in lines]
    folder = name.rpartition("/")[0]
    lines = [line.replace("python main.py", f"python {folder}/main.py") for line in lines]
    return [line for line in lines if re.search(r"\S+/main\.py", line)]


def anchors(text: str) -> set[str]:
    """Those that GitHub gives to the headings."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", text), re.MULTILINE)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


@pytest.fixture(scope="module")
def after_the_demo(tmp_path_factory, dataset) -> Path:
    """A folder where `make demo` seems to have been run, and its model exported; nobody trained it."""
    folder = tmp_path_factory.mktemp("demo")
    shutil.copytree(dataset, folder / "data" / "shapes")
    (folder / "runs" / "demo").mkdir(parents=True)
    checkpoint = tiny_checkpoint(folder / "runs" / "demo" / "checkpoint.pth", DEMO, 0)
    program = ("--resume", checkpoint, "--capacity", "auto", "--export", folder / "runs" / "demo" / "model.onnx")
    assert run_here(DEMO, *program, "--device", "cpu") == 0
    return folder


def python_of(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Runs a page's blocks of Python one after the other, as after `make demo`; returns the names that they leave."""
    monkeypatch.chdir(folder)
    namespace: dict[str, Any] = {}
    torch.manual_seed(0)
    for block in blocks(name, "python"):
        # Untrained weights find something above no threshold.
        exec(block.replace("path/to/this/folder", str(ROOT)).replace("score_threshold=0.3", "score_threshold=0.0"), namespace)
    return namespace


@pytest.mark.parametrize("name", ["README.md", "docs/predicting.md"])
def test_python_finds_objects(name, after_the_demo, monkeypatch):
    assert len(python_of(name, after_the_demo, monkeypatch)["found"]["boxes"]) > 0


def test_python_runs_the_exported_program(after_the_demo, monkeypatch):
    assert python_of("docs/export.md", after_the_demo, monkeypatch)["boxes"].shape[0] == 1


def test_python_plugs_in(after_the_demo, monkeypatch):
    """All layers of the ViT are clustered, and the map that is not square is taken in its shape."""
    found = python_of("docs/plug-in.md", after_the_demo, monkeypatch)
    assert len(found["clusters"]) == 12
    with torch.no_grad():
        found["wide"](torch.rand(1, 3, 192, 320))


def test_no_python_is_left_out():
    """A page that gets its first block of Python gets a test."""
    run = {"README.md", "docs/predicting.md", "docs/export.md", "docs/plug-in.md"}
    assert {name for name in TEXTS if blocks(name, "python")} == run


@pytest.mark.parametrize(("name", "command"), [(name, command) for name in TEXTS for command in commands(name)])
def test_the_commands_parse(name, command):
    """Protects from options that were renamed."""
    words = shlex.split(command, comments=True)
    start = next(i for i, word in enumerate(words) if word.endswith("/main.py"))
    detector = words[start].removesuffix("/main.py")
    assert detector in DETECTORS
    options(detector, words[start + 1 :])


def test_the_commands_after_the_demo_are_of_its_detector():
    """The one place that names it."""
    assert re.findall(r"^DEMO=(\S+)$", TEXTS["README.md"], re.MULTILINE) == [DEMO]
    assert sum("$DEMO/main.py" in text for text in TEXTS.values()) >= 2


def test_the_benchmarks_have_the_options_that_are_named():
    """Of every command that stands in a sentence."""
    shared = "".join(path.read_text() for path in (ROOT / "benchmarks" / "lib").glob("*.py"))
    found = [match for text in TEXTS.values() for match in OF_BENCHMARK.findall(text)]
    assert len(found) > 20
    for script, arguments in found:
        source = (ROOT / script).read_text() + shared
        named = [option.replace("--no-", "--") for option in re.findall(r"--[\w-]+", arguments)]
        unknown = [option for option in named if f'"{option}"' not in source]
        assert not unknown, f"{script} has no {unknown}"


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name):
    """To files that are there, and headings that they have."""
    folder = (ROOT / name).parent
    for target in LINK.findall(FENCED.sub("", TEXTS[name])):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        found = (folder / path).resolve() if path else ROOT / name
        assert found.exists(), f"{name} links to {target}"
        if anchor:
            assert anchor in anchors(found.read_text(encoding="utf-8")), f"{name} links to {target}, which has no such heading"


@pytest.mark.parametrize("name", TEXTS)
def test_files_that_are_named_exist(name):
    for path in FILE.findall(LINK.sub("", TEXTS[name])):
        assert (ROOT / path).exists() or (ROOT / name).parent.joinpath(path).exists(), f"{name} names {path}"


def test_every_page_is_reachable():
    """From the front page, with one click."""
    linked = {target.partition("#")[0] for target in LINK.findall(TEXTS["README.md"])}
    assert TEXTS.keys() - linked == {"README.md"}


def test_the_changelog_begins_with_the_version():
    """Of the package, after what is not released: a version that is raised says what it brings."""
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert re.search(r"^## \[(\d.+?)\]", TEXTS["CHANGELOG.md"], re.MULTILINE)[1] == version
