"""Work in a process of its own, which may die of it."""

from __future__ import annotations

import faulthandler
import os
import sys
import traceback
import warnings
from collections.abc import Callable


def in_child(work: Callable[[], object]) -> int:
    """The exit status; minus the number of the signal that ended it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads of the test runner
        child = os.fork()
    if child == 0:
        status = 1
        faulthandler.disable()  # that of the test runner: what dies here dies as outside of it
        try:
            work()
            status = 0
        except BaseException:  # noqa: BLE001  this is the end of the process
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
