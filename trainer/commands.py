"""What every verb's command line has in common: an error of ours is one sentence and an exit status, no traceback."""

import sys
from collections.abc import Callable

from data_pipeline.errors import DataError
from trainer.errors import TrainerError


def run_command(main: Callable[[list[str]], int]) -> int:
    """Call `main` with the command line; print the user's errors as sentences on stderr and return the exit status."""
    try:
        return main(sys.argv[1:])
    except TrainerError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_status
    except DataError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    except BrokenPipeError:  # the reader of our output is gone, as with `| head`
        sys.stderr.close()
        return 0
