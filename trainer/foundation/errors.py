"""The trainer's errors. Each is one sentence that begins with the setting or the file, and says what to do."""


class TrainerError(Exception):
    """A failure that the user can act on; the command prints it without a traceback and exits with `exit_status`."""

    exit_status = 1


class SettingError(TrainerError):
    """A setting is unknown, mistyped, out of range or at odds with another one."""

    exit_status = 2


class CheckpointError(TrainerError):
    """Commits exist but none can be trusted, or a commit does not fit this run."""

    exit_status = 3


class NonFinite(TrainerError):
    """A tensor of the state, or a loss, is NaN or infinite."""
