"""A process that is told a struct on stdin and replies one on stdout, and does not outlive its parent.

The other side is engine/processes.py. The parent holds stdin open, and its end is the signal. A process that replied
ends with 0, whatever the reply. Does not know what is asked.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

import msgspec

Asked = TypeVar("Asked", bound=msgspec.Struct)


def serve(kind: type[Asked], answer: Callable[[Asked], msgspec.Struct]) -> None:
    """Read a struct of this kind, write the answer. Whatever a library prints goes to stderr."""
    with os.fdopen(os.dup(1), "wb") as channel:
        os.dup2(2, 1)
        asked = msgspec.json.decode(sys.stdin.buffer.readline(), type=kind)
        threading.Thread(target=_end_with_parent, daemon=True).start()
        channel.write(msgspec.json.encode(answer(asked)))


def _end_with_parent() -> None:
    """Reads the descriptor, not sys.stdin: who waits in that holds a lock that the interpreter needs to end."""
    while os.read(0, 1):
        pass
    os._exit(1)
