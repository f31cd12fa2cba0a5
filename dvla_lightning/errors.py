"""The one exception that the `dvla` command turns into a sentence and exit code 2."""


class UserError(ValueError):
    """Something the user gave (configuration, path, checkpoint, data set, shape) cannot be used.

    The message is one sentence that says what is wrong, where, and what to do. The command line prints it without
    a traceback and exits with code 2; in Python code it is an ordinary `ValueError`.
    """
