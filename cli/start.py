"""Where the command begins: a Ctrl-C while Python still loads the rest is no traceback either.

It imports next to nothing, so that there is hardly a moment before.  Once loaded, cli.main has the signals.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def _end(number: int, frame: FrameType | None) -> None:
    as_json = b'{"message_type": "exit_error", "code": 130, "message": "interrupted"}\n'
    try:
        os.write(2, as_json if "--json" in sys.argv else b"snapfs: interrupted\n")
    finally:  # nothing is open yet, and what is half imported must not run on
        os._exit(130)


def main() -> None:
    """The entry point."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup's choice stays
            signal.signal(number, _end)
    from snapfs.cli.main import main as load_and_run

    load_and_run()
