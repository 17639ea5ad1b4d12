"""Putting a snapshot, or a part of it, back into a folder: as it was, following nothing, and never half a file for a whole one.

options     what is asked for and what came of it      walk        what to restore, in order
selection   include and exclude patterns               ahead       frames opened before they are needed
folders     open directories, links never followed     filling     content, holes kept
metadata    owners, modes, times, attributes           entries     one entry, new or in place of an old one
small       small new files, many at a time            _making     the same, compiled
engine      all of it put together                     verify      the target read back and compared
"""

from snapfs.repo.restore.engine import restore
from snapfs.repo.restore.options import Overwrite, RestoreOptions, RestoreResult
from snapfs.repo.restore.selection import Selection

__all__ = ["Overwrite", "RestoreOptions", "RestoreResult", "Selection", "restore"]
