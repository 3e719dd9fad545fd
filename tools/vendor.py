"""Copies `common/`, and `enact/` where it is used, into every detector's `vendor/` folder, so that each folder runs alone.

`python tools/vendor.py` writes the copies and removes what is stale. With `--check` it writes nothing: it lists what
differs and exits with 1 if anything does.
"""

import argparse
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("enact", "common")
SKIPPED = {"__pycache__", "tests"}
README = "Copies: edit `enact/` and `common/` at the top of the repository instead, then run `make vendor`.\n"


def detector_folders(root: Path) -> list[Path]:
    """Every top-level folder that has a `main.py`."""
    return sorted(path.parent for path in root.glob("*/main.py"))


def packages_of(folder: Path) -> list[str]:
    """The packages that a detector's own modules import."""
    own = [path for path in folder.rglob("*.py") if {"vendor", *SKIPPED}.isdisjoint(path.relative_to(folder).parts)]
    text = "\n".join(path.read_text(encoding="utf-8") for path in own)
    return [package for package in PACKAGES if re.search(rf"^(from|import) {package}\b", text, re.MULTILINE)]


def expected_files(root: Path, folder: Path) -> dict[Path, bytes]:
    """What the `vendor/` folder of a detector's folder has to hold: contents by path, relative to it."""
    files = {Path("README.md"): README.encode()}
    for package in packages_of(folder):
        for path in sorted((root / package).rglob("*.py")):
            name = path.relative_to(root)
            if SKIPPED.isdisjoint(name.parts):
                files[name] = path.read_bytes()
    return files


def differences(root: Path = ROOT) -> dict[Path, str]:
    """What is `missing`, `changed` or `stale` in the `vendor/` folders below `root`, by absolute path."""
    found = {}
    for folder in detector_folders(root):
        vendor, expected = folder / "vendor", expected_files(root, folder)
        for name, content in expected.items():
            path = vendor / name
            if not path.is_file():
                found[path] = "missing"
            elif path.read_bytes() != content:
                found[path] = "changed"
        for path in sorted(vendor.rglob("*")):
            name = path.relative_to(vendor)
            if path.is_file() and name not in expected and "__pycache__" not in name.parts:
                found[path] = "stale"
    return found


def update(root: Path = ROOT) -> dict[Path, str]:
    """Makes every `vendor/` folder below `root` hold just what it has to; returns the differences it removed."""
    found = differences(root)
    for path, state in found.items():
        if state == "stale":
            path.unlink()
    for folder in detector_folders(root):
        expected = expected_files(root, folder)
        remove_unused_folders(folder / "vendor", {parent for name in expected for parent in name.parents})
        for name, content in expected.items():
            path = folder / "vendor" / name
            if path in found:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
    return found


def remove_unused_folders(vendor: Path, used: set[Path]) -> None:
    """Removes the folders below `vendor` that are not in `used`: one that only holds a cache can still be imported."""
    for path in sorted(vendor.rglob("*"), reverse=True):
        name = path.relative_to(vendor)
        if path.is_dir() and name not in used and "__pycache__" not in name.parts:
            shutil.rmtree(path)


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Runs the command line on the repository at `root` and returns its exit code."""
    parser = argparse.ArgumentParser(prog="tools/vendor.py", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a copy differs")
    check = parser.parse_args(arguments).check

    found = differences(root) if check else update(root)
    for path, state in found.items():
        print(f"{state:8}{path.relative_to(root)}")
    if check and found:
        print(
            "The copies differ from enact/ and common/: make the change in those folders, then run `make vendor`.",
            file=sys.stderr,
        )
        return 1
    print(f"{len(detector_folders(root))} detectors hold current copies of {' and '.join(PACKAGES)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
