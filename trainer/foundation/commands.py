"""What every verb's command line has in common: an error of ours is one sentence and an exit status, no traceback."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from data_pipeline.errors import DataError
from trainer.foundation.errors import SettingError, TrainerError
from trainer.foundation.log import console

REFUSAL_VARIABLE = "MENAGERIE_REFUSAL"
"""Names a file in which a batch script finds the sentence of a refused setting: exit statuses do not survive launchers."""


def run_command(main: Callable[[list[str]], int]) -> int:
    """Call `main` with the command line; print the user's errors as sentences on stderr and return the exit status."""
    from trainer.foundation.arithmetic import set_arithmetic  # torch takes seconds to import

    try:
        set_arithmetic()
        with console():
            return main(sys.argv[1:])
    except TrainerError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        if isinstance(error, SettingError) and os.environ.get(REFUSAL_VARIABLE):
            with suppress(OSError):
                Path(os.environ[REFUSAL_VARIABLE]).write_text(f"{error}\n")
        return error.exit_status
    except DataError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    except BrokenPipeError:  # the reader of our output is gone, as with `| head`
        sys.stderr.close()
        return 0
