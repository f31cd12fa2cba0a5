"""The output on the terminal: our own log, without the advertisements of libraries."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Lightning advertises its products, torch announces an internal rename; neither concerns the user. And what is logged
# without sync_dist is a sum over ranks already, or rank 0's alone on purpose (time; diagnostics of K that others lack).
WARNINGS = (
    "LeafSpec",
    "JsonargparseDeprecationWarning",
    "was deprecated in v4.49",
    "does not have many workers",
    "in eval mode at the start of training",
    "sync_dist=True",
)
# logger -> beginnings of messages that are dropped: advertisements, hardware that `dvla doctor` says more about, and a
# default of reading checkpoints, which `checkpointing.storage` overrules.
MESSAGES = {
    "lightning.pytorch.utilities.rank_zero": ("💡 Tip: ", "GPU available: ", "TPU available: ", "HPU available: "),
    "lightning.pytorch.trainer.connectors.checkpoint_connector": ("`weights_only` was not set",),
}


def is_of_interest(record: logging.LogRecord) -> bool:
    """Whether the user should see it; warnings always."""
    return record.levelno > logging.INFO or not record.getMessage().startswith(MESSAGES[record.name])


@contextmanager
def without_advertisements() -> Iterator[None]:
    """Silences `WARNINGS`, and `MESSAGES` for as long as the block runs."""
    for text in WARNINGS:
        warnings.filterwarnings("ignore", message=f".*{text}.*")
    for name in MESSAGES:
        logging.getLogger(name).addFilter(is_of_interest)
    try:
        yield
    finally:
        for name in MESSAGES:
            logging.getLogger(name).removeFilter(is_of_interest)


@contextmanager
def own_log_shown() -> Iterator[None]:
    """Prints what this package logs, as Lightning does with its own log: one line each, on stderr."""
    logger, handler = logging.getLogger("dvla_lightning"), logging.StreamHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextmanager
def faults_said_once() -> Iterator[None]:
    """Silences the traceback of TensorBoard's thread when it cannot write.

    The training thread gets the same error at the next number that is logged, and ends the run with a sentence.
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
