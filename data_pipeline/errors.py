"""The exceptions of this package: a sentence that begins with the setting or the file, and ends with what to do."""


class DataError(ValueError):
    """The data, or a setting about it, is not as it has to be; the message is written for the user."""


class FileError(DataError):
    """One file cannot be read, whatever is tried; others may. `reason`: why, in a few words without its path."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        return FileError, (str(self), self.reason)
