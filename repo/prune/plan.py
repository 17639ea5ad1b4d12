"""Which volumes go, and which are rewritten: arithmetic on sums, without I/O."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from snapfs.repo.errors import UsageError
from snapfs.repo.model import VolumeKind
from snapfs.repo.usage import VolumeUse

_SMALL = 4
"""A volume is small below a quarter of the volume size."""
_MANY = 10
"""So many small volumes of a kind are merged."""
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) *([kmgt]?)(?:i?b)?", re.IGNORECASE)


@dataclass(frozen=True)
class Unused:
    """How much unused room may stay: a share of the repository, bytes, or any (both None)."""

    share: float | None = None
    bytes: int | None = None

    def limit(self, used: int) -> int | None:
        """Bytes, beside so many that are used; None: any."""
        if self.share is None:
            return self.bytes
        return int(used * self.share / (1 - self.share))


def parse_unused(text: str) -> Unused:
    """ "5%", "200M" or "unlimited", as in restic.  Raises UsageError."""
    word = text.strip().lower()
    if word == "unlimited":
        return Unused()
    if word.endswith("%"):
        try:
            share = float(word[:-1]) / 100
        except ValueError:
            share = -1.0
        if not 0 <= share < 1:
            raise UsageError(f"{text!r}: give a share from 0% to below 100%")
        return Unused(share=share)
    match = _SIZE.fullmatch(word)
    if match is None:
        raise UsageError(f"{text!r}: give a share (5%), a size (200M), or unlimited")
    return Unused(bytes=int(float(match[1]) * 1024 ** " kmgt".index(match[2] or " ")))


@dataclass
class Plan:
    """Sizes in bytes, as the volumes lie in the storage; those of volumes to be written are estimates."""

    volumes: int = 0
    size: int = 0
    unused: int = 0
    damaged: int = 0
    """Volumes that were found damaged: they stay as they are."""
    remove: list[VolumeUse] = field(default_factory=list)
    """Nothing in them is needed."""
    rewrite: list[VolumeUse] = field(default_factory=list)
    """What is needed of them goes into new volumes."""

    @property
    def removed(self) -> int:
        return sum(use.volume.size for use in self.remove)

    @property
    def read(self) -> int:
        return sum(use.volume.size for use in self.rewrite)

    @property
    def written(self) -> int:
        return sum(use.used for use in self.rewrite)

    @property
    def freed(self) -> int:
        return self.removed + self.read - self.written

    @property
    def left(self) -> int:
        """Unused afterwards."""
        return self.unused - self.freed


def plan(uses: Iterable[VolumeUse], unused: Unused, most: int | None, volume_size: int) -> Plan:
    """`most`: bytes of volumes to be rewritten at most.  Those with the least in use come first."""
    made = Plan()
    partly: list[VolumeUse] = []
    small: dict[VolumeKind, list[VolumeUse]] = defaultdict(list)
    for use in uses:
        made.volumes += 1
        made.size += use.volume.size
        made.unused += use.unused
        if not use.volume.usable:
            made.damaged += 1
        elif not use.live_blobs:
            made.remove.append(use)
        else:
            if use.live_blobs < use.blobs:
                partly.append(use)
            if use.volume.size < volume_size // _SMALL:
                small[use.volume.kind].append(use)
    made.remove.sort(key=lambda use: use.volume.name)
    chosen: dict[int, VolumeUse] = {}
    room = made.size if most is None else most

    def take(use: VolumeUse) -> None:
        nonlocal room
        if use.volume.number not in chosen and use.volume.size <= room:
            room -= use.volume.size
            chosen[use.volume.number] = use

    limit = unused.limit(made.size - made.unused)
    left = made.unused - made.removed
    for use in sorted(partly, key=lambda use: (use.live / max(use.plain, 1), use.volume.name)):
        if limit is None or left <= limit:
            break
        take(use)
        left -= use.unused if use.volume.number in chosen else 0
    for group in small.values():
        if len(group) >= _MANY:
            for use in sorted(group, key=lambda use: (use.volume.size, use.volume.name)):
                take(use)
    made.rewrite = sorted(chosen.values(), key=lambda use: (use.live, use.volume.name))
    return made
