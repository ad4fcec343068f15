"""The errors that a user can mend: commands print one message after `error:`, and no traceback."""


class UserError(ValueError):
    """A wrong file, flag or setting; the message says what was expected, found, and the remedy."""


class UsageError(UserError):
    """A command line that cannot be read: an unknown flag, key or name, a value of a wrong type."""
