"""What every verb's command line has in common: an error of ours is one sentence and an exit status, no traceback."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from data_pipeline.errors import DataError
from trainer.foundation.errors import SettingError, TrainerError
from trainer.foundation.log import console, to_stderr
from trainer.foundation.output import open_streams, settle

REFUSAL_VARIABLE = "MENAGERIE_REFUSAL"
"""Names a file in which a batch script finds the sentence of a refused setting: exit statuses do not survive launchers."""


def run_command(main: Callable[[list[str]], int], *, prints: bool = True) -> int:
    """Call `main` with the command line; print the user's errors as sentences on stderr and return the exit status.

    `prints`: what the command prints is all that it does, so that it is done when its reader leaves, as with `| head`.
    """
    open_streams()
    if "torch" in sys.modules:  # else the verb computes nothing, and torch takes seconds to import
        from trainer.foundation.arithmetic import set_arithmetic

        set_arithmetic()
    try:
        with console():
            return main(sys.argv[1:])
    except TrainerError as error:
        to_stderr(f"error: {error}")
        if isinstance(error, SettingError) and os.environ.get(REFUSAL_VARIABLE):
            with suppress(OSError):
                Path(os.environ[REFUSAL_VARIABLE]).write_text(f"{error}\n")
        return error.exit_status
    except DataError as error:
        to_stderr(f"error: {error}")
        return 1
    except BrokenPipeError:
        if not prints:
            raise
        return 0
    except KeyboardInterrupt:
        to_stderr("error: interrupted")
        return 130
    except OSError as error:  # a file or a store of the user's
        where = f"{error.filename}: " if error.filename else ""
        to_stderr(f"error: {where}{error.strerror or error}")
        return 1
    finally:
        settle()
