"""The exception for errors that users can fix."""


class UserError(Exception):
    """An error that the user can fix.

    The message is one or two clear sentences: what is wrong, what was expected, what was found, what to do.
    The command line prints it without a traceback and exits with code 2.
    """
