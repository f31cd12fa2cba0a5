"""The threads in which loggers write."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def faults_said_once() -> Iterator[None]:
    """Silences the traceback of TensorBoard's thread when the disk refuses: the training thread gets the same error.

    It does so at the next number that is logged, and ends the run with a sentence.
    """
    before = threading.excepthook

    def say(args: threading.ExceptHookArgs) -> None:
        is_logger = type(args.thread).__module__.startswith("tensorboard.")
        if not (is_logger and isinstance(args.exc_value, OSError)):
            before(args)

    threading.excepthook = say
    try:
        yield
    finally:
        threading.excepthook = before
