"""The package that ``pip install .`` makes: the plug-in alone, with type information, in an environment that has torch alone."""

import subprocess
import sys
import zipfile

import pytest

from tools.detectors import ROOT

IMPORT = """
import sys
import enact
from enact import hosts
assert enact.__file__.startswith(sys.argv[1]), enact.__file__
assert not {"torchvision", "timm", "transformers", "common"} & sys.modules.keys()
for name in enact.__all__:
    assert getattr(enact, name).__doc__ or name.isupper(), name
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT]
    subprocess.run(build, check=True, capture_output=True)
    [path] = folder.glob("enact-*.whl")
    return path


def test_the_wheel_holds_the_plug_in_alone(wheel):
    """Its modules, the adapters of hosts, and py.typed."""
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "enact").rglob("*.py")} | {"enact/py.typed"}
    assert names == expected


def test_the_wheel_is_imported_without_the_rest(wheel, tmp_path):
    """Nothing that the package imports at first is more than torch, and every public name is documented."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    run = [sys.executable, "-c", IMPORT, str(tmp_path)]
    subprocess.run(run, check=True, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path), "PATH": ""})
