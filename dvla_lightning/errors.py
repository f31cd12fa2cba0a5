"""The one exception that the `dvla` command turns into a sentence and exit code 2; the gist of all others."""


class UserError(ValueError):
    """Something the user gave (configuration, path, checkpoint, data set, shape) cannot be used.

    The message is one sentence that says what is wrong, where, and what to do. The command line prints it without
    a traceback and exits with code 2; in Python code it is an ordinary `ValueError`.
    """


def last_line(error: str | None) -> str:
    """The last line of a traceback or message, which names the exception; empty without one."""
    return error.strip().splitlines()[-1] if error else ""
