"""The one exception of this package: a sentence that begins with the setting or the file, and ends with what to do."""


class DataError(ValueError):
    """The data, or a setting about it, is not as it has to be; the message is written for the user."""
