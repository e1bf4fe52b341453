"""`requirements.py PYPROJECT EXTRAS`: the dependencies of pyproject.toml, with the named extras (commas), one a line.

For the container's layer of packages, which the project's own source must not be part of.
"""

import sys
import tomllib
from pathlib import Path


def requirements(pyproject: Path, extras: list[str]) -> list[str]:
    """The requirement strings, without duplicates. Raises KeyError for an extra that does not exist."""
    project = tomllib.loads(pyproject.read_text())["project"]
    found = list(project["dependencies"])
    for extra in extras:
        found += project["optional-dependencies"][extra]
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    print("\n".join(requirements(Path(sys.argv[1]), [extra for extra in sys.argv[2].split(",") if extra])))
