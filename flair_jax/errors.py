"""The error that a user can mend: shown by the commands as one message, without a traceback."""


class UserError(ValueError):
    """A wrong file, flag or setting; the message says what was expected, found, and the remedy."""
