"""Where a verb writes: refused before the work if that is impossible."""

import os
from pathlib import Path

from trainer.foundation.errors import SettingError
from trainer.foundation.stores import Store


def check_output(folder: str | Path, setting: str) -> None:
    """Raise `SettingError`, beginning with `setting`, unless files can be written into a local folder, which may not exist yet.

    Of a URL only the kind is looked at.
    """
    store = Store(os.fspath(folder), setting)
    if not store.local:
        return
    place = Path(store.root)
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise SettingError(f"{setting}: {place} is a file, so nothing can be written below it; give another folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise SettingError(f"{setting}: {place} cannot be written to (permissions); give another folder")
