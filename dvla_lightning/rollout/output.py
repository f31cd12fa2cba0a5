"""The output of a worker process: its last lines explain a death, the rest is dropped."""

from __future__ import annotations

import os
import select
import threading
import time

KEPT_BYTES = 16_384
BLOCK_BYTES = 65_536
# A pause after so much: a worker that prints without end waits for its pipe instead of taking the cores of the others.
# A simulator that prints a few hundred MB in one step is not held up for longer than a second.
BURST_BYTES, PAUSE_SECONDS = 2**24, 0.01


class LastOutput:
    """Reads a pipe until its end, or until `close`, and keeps the last `KEPT_BYTES`. No file, so nothing stays behind.

    Args:
        descriptor: end of a pipe that is read from; closed at the end.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._tail = b""
        self._closing = False
        self._thread = threading.Thread(target=self._read, name="output of a worker", daemon=True)
        self._thread.start()

    def last_lines(self, count: int = 3) -> str:
        """The last lines of a worker that is dead, for an error message; empty if it printed nothing."""
        self._thread.join(1.0)  # a grandchild may hold the pipe open
        lines = [line for line in self._tail.decode(errors="replace").splitlines() if line.strip()]
        return "; its last output: " + " | ".join(lines[-count:]) if lines else ""

    def close(self) -> None:
        """Stops reading."""
        self._closing = True
        self._thread.join()

    def _read(self) -> None:
        since_pause = 0
        while not self._closing:
            if not select.select([self._descriptor], [], [], 0.2)[0]:
                continue
            block = os.read(self._descriptor, BLOCK_BYTES)
            if not block:
                break
            self._tail = (self._tail + block)[-KEPT_BYTES:]
            since_pause += len(block)
            if since_pause >= BURST_BYTES:
                since_pause = 0
                time.sleep(PAUSE_SECONDS)
        os.close(self._descriptor)
