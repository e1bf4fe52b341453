"""Where this checkout lies, and how a program of this folder is started so that it imports it."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def program(name: str) -> str:
    """The path of a program of tests/support."""
    return str(ROOT / "tests" / "support" / name)


def environment(**more: str) -> dict[str, str]:
    """This process's environment, with this checkout before whatever else is installed under its packages' names."""
    before = os.environ.get("PYTHONPATH")
    return os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{before}" if before else str(ROOT)} | more
