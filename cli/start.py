"""Where the command `snapfs` begins and ends: what a signal does is settled before anything that takes time is imported.

SIGINT, SIGTERM and SIGHUP mean the same.  Until a verb is at work there is nothing to be ended cleanly, and a signal ends the
process where it is: an exception amid an import can be swallowed, turned into another, or printed by the interpreter.  From
begin_work() on, they raise KeyboardInterrupt.  When the outcome is known, only the way out is left, and they do nothing.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_EXIT_CODE = 130
_LINE = b"snapfs: interrupted\n"
_JSON = b'{"message_type": "exit_error", "code": 130, "message": "interrupted"}\n'


def main() -> NoReturn:
    """The entry point."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # it asks for progress: too early must not mean death
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup's choice stays
            signal.signal(number, _leave)
    from snapfs.cli.main import main as run

    try:
        code = run()
    except KeyboardInterrupt:  # another one, while the first was being told
        code = _EXIT_CODE
    _ignore()
    sys.exit(code)


def begin_work() -> None:
    """All is imported: from now on a signal raises KeyboardInterrupt.  Where main() did not begin, signals stay as they are."""
    for number in _SIGNALS:
        if signal.getsignal(number) == _leave:
            signal.signal(number, signal.default_int_handler)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    _ignore()
    try:
        os.write(2, _JSON if "--json" in sys.argv else _LINE)
    finally:
        os._exit(_EXIT_CODE)


def _ignore() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
