"""snapfs: encrypted, deduplicating backups whose every snapshot can be mounted as an ordinary read-only folder.

`snapfs.repo` is the engine (plain synchronous Python), `snapfs.fs` the mount, `snapfs.cli` the command line.
Imports run one way: cli -> fs -> repo.
"""

__version__ = "0.1.0"
