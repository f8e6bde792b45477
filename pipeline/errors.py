"""The exception for errors that users can fix, and errors in words."""


class UserError(Exception):
    """An error that the user can fix.

    The message is one or two clear sentences: what is wrong, what was expected, what was found, what to do.
    The command line prints it without a traceback and exits with code 2.
    """


class DivergedError(UserError):
    """Numbers of a model are not finite."""

    def __init__(self, fact: str, advice: str = "") -> None:
        """The fact and the advice are sentences; a caller that knows better replaces the advice.

        Workers send errors by pickle, which calls this with the whole message and then sets `fact`.
        """
        super().__init__(f"{fact} {advice}".strip())
        self.fact = fact


def one_line(error: Exception) -> str:
    """The first line of an error's text, without a period at its end."""
    return str(error).strip().split("\n")[0].rstrip(".")
