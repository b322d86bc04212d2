"""The one exception that reaches a user as one clear line."""


class StageError(Exception):
    """Something the user can mend: the message names the file, row or option and says what to do.

    The command line prints it without a traceback and exits with status 2.
    """
