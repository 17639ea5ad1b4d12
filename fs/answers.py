"""Whatever goes wrong in a request ends in an errno: in pyfuse3 any exception but FUSEError would end the main loop, and with
it the mount.  The log is told more, in words that name no files."""

from __future__ import annotations

import errno
import functools
import logging
import traceback
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from pyfuse3 import FUSEError

from snapfs.fs.entry import Stale
from snapfs.repo.errors import BlobMissing, Damaged, RepositoryError

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


def answering(handler: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Turn every exception into an errno.  Cancellation is none of `Exception` and passes."""

    @functools.wraps(handler)
    async def safe(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await handler(*args, **kwargs)
        except FUSEError:
            raise
        except Stale:
            raise FUSEError(errno.ESTALE) from None
        except NotADirectoryError:
            raise FUSEError(errno.ENOTDIR) from None
        except Exception as error:
            log.error("%s: input/output error: %s", handler.__name__, without_names(error))
            raise FUSEError(errno.EIO) from error

    return safe


def unanswered(handler: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, Coroutine[Any, Any, None]]:
    """For requests that the kernel waits for no answer to: an exception is said to the log, and that is all."""

    @functools.wraps(handler)
    async def safe(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            await handler(*args, **kwargs)
        except Exception as error:  # noqa: BLE001
            log.error("%s: %s", handler.__name__, without_names(error))

    return safe


def without_names(error: Exception) -> str:
    """What went wrong, in words that name blobs and volumes, never files: the log may outlive the mount."""
    if isinstance(error, Damaged) and not isinstance(error, BlobMissing):
        return f"damaged: {error.where or 'tree'}"
    if isinstance(error, RepositoryError):
        return str(error)
    return "".join([type(error).__name__, "\n", *traceback.format_tb(error.__traceback__)]).rstrip()
