"""The command before anything runs."""

import subprocess
import sys

import pytest

from tools.detectors import FOLDERS, ROOT

ASK = """
import pathlib, runpy, sys
sys.argv = sys.argv[1:]
sys.path[0] = str(pathlib.Path(sys.argv[0]).parent)
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    print(end.code)
print([name for name in ("torch", "numpy", "pydantic", "cv2") if name in sys.modules])
"""


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize(("option", "code"), [("--help", 0), ("--learning_rate", 2)])
def test_questions_and_mistakes_are_answered_at_once(folder, option, code):
    """Without importing what takes seconds."""
    command = [sys.executable, "-c", ASK, str(ROOT / folder / "main.py"), option]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.splitlines()[-2:] == [str(code), "[]"], done.stderr
    assert (f"usage: {folder}/main.py" in done.stdout) == (code == 0) and ("Traceback" not in done.stderr)
