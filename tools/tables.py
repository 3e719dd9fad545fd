"""Writes the tables of numbers in the Markdown files from what the benchmarks measured, `benchmarks/results/*.json`.

A table stands between `<!-- table NAME -->` and `<!-- end -->`; `tools/table_rows/` says what NAME holds. `python tools/tables.py`
writes all of them anew, in place. With `--check` it writes nothing, names a table that is stale, and exits with 1.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.errors import UserError
from tools.table_rows import TABLES, Rows

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path("benchmarks/results")
START = re.compile(r"<!-- table (\S+) -->\n")
END = "<!-- end -->"


def pages(root: Path) -> list[Path]:
    """The Markdown files that may hold tables."""
    return sorted([*root.glob("*.md"), *root.glob("docs/*.md"), *root.glob("[!.]*/README.md")])


def markdown(rows: Rows) -> str:
    head, *others = rows
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *others))


def caption(contents: dict[str, dict[str, Any]], root: Path, folder: Path) -> str:
    """Where results are, as seen from the folder of a page, and what they were measured on."""
    links: dict[str, list[str]] = {}
    for name, content in contents.items():
        machine = content["machine"]
        threads = f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}"
        setting = f"{machine['device']}, {threads}, torch {machine['torch'].partition('+')[0]}, {content['date'][:10]}"
        path = Path(os.path.relpath(root / RESULTS / f"{name}.json", folder)).as_posix()
        links.setdefault(setting, []).append(f"[{name}.json]({path})")
    return "; ".join(f"{', '.join(files)}: {setting}" for setting, files in links.items()) + "."


def render(name: str, root: Path, folder: Path) -> str:
    """A table, and a line that says what its numbers are from.

    Raises:
        UserError: there is no such table, or a result is missing or is not what the table is made from.
    """
    if name not in TABLES:
        raise UserError(f"there is no table {name}: choose from {', '.join(TABLES)}")
    table = TABLES[name]
    try:
        contents = {source: json.loads((root / RESULTS / f"{source}.json").read_text(encoding="utf-8")) for source in table.sources}
        return f"{markdown(table.rows(*contents.values()))}\n{caption(contents, root, folder)}\n"
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        files = " and ".join(f"{RESULTS / source}.json" for source in table.sources)
        raise UserError(f"the table {name} cannot be made from {files} ({error!r}): run the benchmarks that write them") from error


def renew(path: Path, root: Path) -> tuple[str, list[str]]:
    """A page with its tables written anew, and the names of those that changed."""
    first, *others = START.split(path.read_text(encoding="utf-8"))
    pieces, changed = [first], []
    for name, text in zip(others[::2], others[1::2]):
        old, end, rest = text.partition(END)
        if not end:
            raise UserError(f"{path.relative_to(root)}: the table {name} has no {END} behind it")
        try:
            new = render(name, root, path.parent)
        except UserError as error:
            raise UserError(f"{path.relative_to(root)}: {error}") from error
        pieces += [f"<!-- table {name} -->\n", new, end, rest]
        changed += [name] * (new != old)
    return "".join(pieces), changed


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Runs the command line on the repository at ``root`` and returns its exit code."""
    parser = argparse.ArgumentParser(prog="tools/tables.py", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a table is stale")
    check = parser.parse_args(arguments).check
    complain = partial(print, "tools/tables.py:", file=sys.stderr)
    try:
        renewed = {path: renew(path, root) for path in pages(root)}
    except UserError as error:
        complain(error)
        return 2
    stale = {path: changed for path, (_, changed) in renewed.items() if changed}
    for path, changed in stale.items():
        name = path.relative_to(root)
        if check:
            complain(f"{name}: the table {changed[0]} is not what {RESULTS} says: run `make tables`")
            return 1
        path.write_text(renewed[path][0], encoding="utf-8")
        print(f"{name}: {', '.join(changed)}")
    print(f"{sum(len(START.findall(text)) for text, _ in renewed.values())} tables hold the numbers of {RESULTS}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
