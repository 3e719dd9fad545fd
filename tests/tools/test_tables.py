"""The tables of numbers in the Markdown files."""

import json
import shutil
from pathlib import Path

import pytest

from tools.table_rows import TABLES
from tools.tables import RESULTS, ROOT, main, pages

PAGE = "docs/speed.md"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The pages and the results alone."""
    shutil.copytree(ROOT / RESULTS, tmp_path / RESULTS, ignore=shutil.ignore_patterns("*.png"))
    for path in pages(ROOT):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    return tmp_path


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_the_tables_are_current(capsys):
    """Nobody edits a number by hand, or replaces a result without `make tables`."""
    code = main(["--check"])
    assert code == 0, capsys.readouterr().err


def test_every_table_stands_somewhere_and_has_straight_rows():
    """A row of another length, or with a bar in a cell, would not be a table in Markdown."""
    text = "".join(path.read_text(encoding="utf-8") for path in pages(ROOT))
    for name, table in TABLES.items():
        assert text.count(f"<!-- table {name} -->") == 1, name
        head, *rows = table.rows(*(json.loads((ROOT / RESULTS / f"{source}.json").read_text()) for source in table.sources))
        assert rows and all(len(row) == len(head) and "|" not in "".join(row) for row in rows), name


def test_a_changed_number_is_noticed_and_written(repository, capsys):
    """The check names page and table, and writes nothing; the command writes the number, and nothing outside the tables of it."""
    path = repository / RESULTS / "options-cpu.json"
    content = json.loads(path.read_text())
    [record] = [r for r in content["results"] if r["option"] == "bf16"]
    record["ratios"]["inference"] = 0.1234
    path.write_text(json.dumps(content))
    before = {page: page.read_text(encoding="utf-8") for page in pages(repository)}

    assert main(["--check"], repository) == 1
    error = capsys.readouterr().err
    assert "docs/training.md" in error and "table options " in error and "make tables" in error
    assert {page: page.read_text(encoding="utf-8") for page in before} == before

    assert main([], repository) == 0
    after = {page: page.read_text(encoding="utf-8") for page in before}
    [page] = [page for page in before if after[page] != before[page]]
    lines = [(old, new) for old, new in zip(before[page].splitlines(), after[page].splitlines(), strict=True) if old != new]
    assert page == repository / "docs" / "training.md" and [new for _, new in lines] == ["| `--amp bf16` | 0.95× | 0.12× |"]
    assert main(["--check"], repository) == 0


def test_a_row_of_a_new_variant_appears(repository):
    """Results that are taken anew may hold more rows."""
    path = repository / RESULTS / "fidelity-DETR-ENACT-cpu.json"
    content = json.loads(path.read_text())
    variants = content["results"][0]["variants"]
    variants["brand new"] = variants["region"]
    path.write_text(json.dumps(content))
    assert main([], repository) == 0
    text = (repository / "docs" / "precision.md").read_text(encoding="utf-8")
    [cells] = (line for line in text.splitlines() if line.startswith("| `region` |"))
    assert f"| `brand new` |{'|'.join(cells.split('|')[2:5])}|{' – |' * 6}" in text


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        (PAGE, "<!-- table shares -->", "<!-- table share -->", "there is no table share: choose from gains, "),
        (PAGE, "<!-- end -->", "", "has no <!-- end --> behind it"),
        (f"{RESULTS}/table1-cpu.json", '"memory"', '"bytes"', "gains cannot be made from benchmarks/results/table1-cpu.json and "),
    ],
)
def test_mistakes_are_named(repository, capsys, file, old, new, said):
    """In one sentence with the page, and no page is touched."""
    change(repository / file, old, new)
    before = {page: page.read_text(encoding="utf-8") for page in pages(repository)}
    assert main([], repository) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert {page: page.read_text(encoding="utf-8") for page in before} == before
