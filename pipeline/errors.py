"""The one exception that a person is meant to read."""


class UserError(Exception):
    """A mistake that the user can mend.

    The message is one or two clear sentences: what is wrong, what was expected, what was found, what to do.
    The command line prints it without a traceback and leaves with exit code 2.
    """
