"""The copies of the shared packages in the detectors' folders."""

from pathlib import Path

import pytest

from tools.vendor import differences, main


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A small repository of three detectors whose copies are current; the last one does without `enact`."""
    for name in (
        "enact/__init__.py",
        "common/__init__.py",
        "common/data/boxes.py",
        "common/tests/test_boxes.py",
        "common/__pycache__/cache.py",
        "common/notes.txt",
        "A-ENACT/main.py",
        "B-ENACT/main.py",
        "C-DETR/main.py",
        "benchmarks/table.py",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"name = {name!r}\n")
    for name, text in (("A-ENACT", "import enact\nfrom common import data\n"), ("B-ENACT", "from enact import a\nimport common\n")):
        (tmp_path / name / "main.py").write_text(text)
    (tmp_path / "C-DETR" / "main.py").write_text("# from enact import nothing\nfrom common.data import boxes\n")
    assert main([], tmp_path) == 0
    return tmp_path


def test_the_copies_of_this_repository_are_current(capsys):
    """Nobody edits a copy, or an original without `make vendor`: the detectors would then run different code."""
    code = main(["--check"])
    assert code == 0, capsys.readouterr().out


def test_copies_hold_the_sources_and_nothing_else(repository):
    """Tests, caches and other files stay out, and a folder without a main.py gets no copy."""
    assert {path.relative_to(repository).as_posix() for path in repository.glob("*/vendor/**/*") if path.is_file()} == {
        f"{detector}/vendor/{name}"
        for detector in ("A-ENACT", "B-ENACT", "C-DETR")
        for name in ("README.md", "enact/__init__.py", "common/__init__.py", "common/data/boxes.py")
        if (detector, name) != ("C-DETR", "enact/__init__.py")
    }
    assert (repository / "A-ENACT/vendor/common/data/boxes.py").read_text() == "name = 'common/data/boxes.py'\n"


@pytest.mark.parametrize(
    ("state", "name", "content"),
    [
        ("missing", "__init__.py", None),
        ("changed", "data/boxes.py", "name = 'common/data/boxes.py' "),
        ("stale", "old/gone.py", ""),
    ],
)
def test_check_names_a_difference_and_a_copy_repairs_it(repository, capsys, state, name, content):
    """One byte is enough to fail; the check itself writes nothing, and the next copy leaves no difference."""
    path = repository / "B-ENACT/vendor/common" / name
    if content is None:
        path.unlink()
    else:
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)

    assert main(["--check"], repository) == 1
    printed = capsys.readouterr()
    assert printed.out.split() == [state, path.relative_to(repository).as_posix()]
    assert "make vendor" in printed.err
    assert differences(repository) == {path: state}

    assert main([], repository) == 0
    assert main(["--check"], repository) == 0
    assert path.parent.exists() == (state != "stale")


def test_a_change_of_an_original_reaches_every_detector(repository):
    """`make vendor` after an edit of common/ updates all the folders, not only the first."""
    original = repository / "common/data/boxes.py"
    original.write_text("name = 'edited'\n")
    assert len(differences(repository)) == 3
    assert main([], repository) == 0
    copies = repository.glob("*-ENACT/vendor/common/data/boxes.py")
    assert [path.read_text() for path in copies] == [original.read_text()] * 2
