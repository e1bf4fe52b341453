"""Where INPUT and OUTPUT are with respect to each other, and what INPUT has below it."""

from data_pipeline.errors import DataError
from data_pipeline.storage.folder import Folder


def below(folder: Folder, output: Folder) -> str:
    """The path of `output` in `folder`; empty where it is not in it. Raises DataError where both are the same."""
    if (folder.local is None) != (output.local is None):
        return ""
    outer, inner = (str(f.root if f.local is None else f.local.resolve()) for f in (folder, output))
    if outer == inner:
        raise DataError(f"OUTPUT: {output} is INPUT itself; give another folder")
    return inner[len(outer) :].strip("/") if inner.startswith(outer.rstrip("/") + "/") else ""


def data_sets(folder: Folder, output: Folder) -> list[str]:
    """The sub-folders. Raises DataError where there are none."""
    own = below(folder, output).split("/")[0]
    found = [name for name in folder.folders() if name != own]
    if not found:
        raise DataError(f"INPUT: {folder} has no sub-folders; give a folder that has some, or leave --each out")
    return found
