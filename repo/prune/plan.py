"""Which volumes go, and which are rewritten: arithmetic on sums, without I/O."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from snapfs.repo.errors import UsageError
from snapfs.repo.model import MiB, VolumeKind
from snapfs.repo.usage import VolumeUse

_SMALL = 4
"""A volume is small below a quarter of the volume size."""
_MANY = 10
"""So many small volumes of a kind are merged."""
_WORTH = 0.1
"""A volume is rewritten for the newest snapshots only if reading them opens so much less then, by its size."""
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


@dataclass(frozen=True)
class Scatter:
    """How much more than they need who reads the newest snapshots may open."""

    share: float | None = 0.15
    """Of what they need; None: any."""
    least: int = MiB
    """Bytes that are not worth the work, of volumes of one kind."""


def parse_unused(text: str) -> Unused:
    """ "5%", "200M" or "unlimited", as in restic.  Raises UsageError."""
    word = text.strip().lower()
    if word == "unlimited":
        return Unused()
    if word.endswith("%"):
        share = _share(word)
        if not 0 <= share < 1:
            raise UsageError(f"{text!r}: give a share from 0% to below 100%")
        return Unused(share=share)
    match = _SIZE.fullmatch(word)
    if match is None:
        raise UsageError(f"{text!r}: give a share (5%), a size (200M), or unlimited")
    return Unused(bytes=int(float(match[1]) * 1024 ** " kmgt".index(match[2] or " ")))


def parse_scatter(text: str) -> Scatter:
    """ "15%" or "unlimited"; "0%" is meant literally, for however little.  Raises UsageError."""
    word = text.strip().lower()
    if word == "unlimited":
        return Scatter(None)
    share = _share(word) if word.endswith("%") else -1.0
    if not 0 <= share < math.inf:
        raise UsageError(f"{text!r}: give a share (15%), or unlimited")
    return Scatter(share) if share else Scatter(0, least=0)


def _share(word: str) -> float:
    """Of "5%"; -1 for what is none."""
    try:
        return float(word[:-1]) / 100
    except ValueError:
        return -1.0


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
    scattered: list[VolumeUse] = field(default_factory=list)
    """Those of them that are rewritten only because the newest snapshots lie scattered in them."""
    scatter: float = 1.0
    """What who reads the newest snapshots opens, by what they need."""
    scatter_left: float = 1.0
    """The same afterwards."""

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


def plan(
    uses: Iterable[VolumeUse],
    unused: Unused,
    most: int | None,
    volume_size: int,
    scatter: Scatter = Scatter(None),
    free: int | None = None,
) -> Plan:
    """`most`: bytes of volumes to be rewritten at most.  Those with the least in use come first, the scattered ones last, and
    these only as far as there is room for their copies: `free` bytes on the disk; None: not known."""
    made = Plan()
    uses = list(uses)
    partly: list[VolumeUse] = []
    small: dict[VolumeKind, list[VolumeUse]] = defaultdict(list)
    for use in uses:
        made.volumes += 1
        made.size += use.volume.size
        made.unused += use.unused
        if not use.volume.usable and not (use.must_go and not use.live_blobs):
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

    for use in uses:
        if use.must_go and use.live_blobs and use.volume.usable:
            take(use)
    limit = unused.limit(made.size - made.unused)
    left = made.unused - made.removed - sum(use.unused for use in chosen.values())
    for use in sorted(partly, key=lambda use: (use.used / use.volume.size, use.volume.name)):
        if limit is None or left <= limit:
            break
        if use.volume.number in chosen:
            continue
        take(use)
        left -= use.unused if use.volume.number in chosen else 0
    for group in small.values():
        if len(group) >= _MANY:
            for use in sorted(group, key=lambda use: (use.volume.size, use.volume.name)):
                take(use)
    if free is not None:
        free += made.removed - sum(use.used for use in chosen.values()) - volume_size
        room = min(room, max(free, 0))
    others = set(chosen)
    for kind in VolumeKind:
        for use in _scattered([use for use in uses if use.volume.kind is kind], others, scatter):
            take(use)
    made.rewrite = sorted(chosen.values(), key=lambda use: (use.live, use.volume.name))
    made.scattered = [use for use in made.rewrite if use.volume.number not in others]
    made.scatter, made.scatter_left = _opened(uses, set()), _opened(uses, set(chosen))
    return made


def _scattered(uses: list[VolumeUse], chosen: Collection[int], limit: Scatter) -> Iterator[VolumeUse]:
    """Volumes of one kind, those first whose rewriting gains most for its cost; `chosen`: those that are rewritten anyway."""
    needed = sum(use.newest for use in uses)
    wasted = {use.volume.number: use.opened - use.newest for use in uses if use.volume.number not in chosen}
    left = sum(wasted.values())
    if limit.share is None or left <= max(limit.share * needed, limit.least):
        return
    gains = sorted(
        ((wasted.get(use.volume.number, 0) / use.volume.size, use.volume.name, use) for use in uses if use.volume.usable),
        reverse=True,
    )  # fmt: skip
    for gain, _, use in gains:
        # Not just below the limit: else there would be some to rewrite each day.
        if gain < _WORTH or left <= limit.share / 3 * needed:
            return
        left -= wasted[use.volume.number]
        yield use


def _opened(uses: Iterable[VolumeUse], chosen: Collection[int]) -> float:
    """What is opened by what is needed; in the volumes that are rewritten it is the same."""
    needed = opened = 0
    for use in uses:
        needed += use.newest
        opened += use.newest if use.volume.number in chosen else use.opened
    return opened / needed if needed else 1.0
