"""The detectors of this repository as modules, side by side in one process.

Every detector's folder has modules of the same names (`main`, `vendor`, ...), of which Python keeps one each. Here a folder's
modules are imported for themselves and then taken out of `sys.modules` again.
"""

import importlib
import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
DETECTORS = tuple(path.parent.name for path in sorted(ROOT.glob("*-ENACT/main.py")))


def load(folder: str | Path, module: str = "main") -> ModuleType:
    """A module of a detector's folder, isolated from those of every other folder.

    Args:
        folder: one of :data:`DETECTORS`, or the path of a copy.
        module: its name inside the folder, such as "vendor.common.arguments"; it must be one that `main` imports.
    """
    return _modules((ROOT / folder).resolve())[module]


def options(folder: str | Path, argv: Sequence[str] = ()) -> Namespace:
    """A detector's options as its command line reads them."""
    detector, arguments = load(folder).DETECTOR, load(folder, "vendor.common.arguments")
    parser = arguments.common_parser(detector.name)
    detector.add_arguments(parser)
    return arguments.parse(parser, detector.demo, list(argv))[0]


@cache
def _modules(folder: Path) -> dict[str, ModuleType]:
    """The folder's modules that `main` imports, by name."""
    tops = {path.stem for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()}

    def take_out() -> dict[str, ModuleType]:
        return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in tops}

    others = take_out()
    sys.path.insert(0, str(folder))
    try:
        importlib.import_module("main")
    finally:
        sys.path.remove(str(folder))
        own = take_out()
        sys.modules.update(others)
    return own
