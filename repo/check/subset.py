"""Which volumes `check` reads when it is to read a part of them."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from snapfs.repo.errors import UsageError
from snapfs.repo.model import KiB, VolumeKind

_PART = re.compile(r"([0-9]{1,9}) */ *([0-9]{1,9})")
_PERCENT = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) *%")
_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?) *([KMGT]?)(?:i?B)?", re.IGNORECASE)

Listing = Mapping[bytes, tuple[VolumeKind, int]]


@dataclass(frozen=True)
class Subset:
    """Exactly one of these is set."""

    part: tuple[int, int] | None = None
    """(n, t): the n-th of t parts, told by the volumes' names: the same ones each time, and t runs read all."""
    percent: float | None = None
    """So many of a hundred volumes, by chance."""
    size: int | None = None
    """Volumes of about so many bytes in all, by chance."""

    def choose(self, listing: Listing, entropy: Callable[[int], bytes]) -> set[bytes]:
        """Names of the volumes to read: at least one by chance, where there are any."""
        if self.part is not None:
            n, t = self.part
            return {name for name in listing if int.from_bytes(name[:8], "big") % t == n - 1}
        names = sorted(listing)
        random.Random(entropy(32)).shuffle(names)
        if self.percent is not None:
            return set(names[: math.ceil(len(names) * self.percent / 100)])
        chosen: set[bytes] = set()
        rest = self.size or 0
        for name in names:
            if rest <= 0:
                break
            chosen.add(name)
            rest -= listing[name][1]
        return chosen


def parse(text: str) -> Subset:
    """n/t, x% or a size ("500M").  Raises UsageError."""
    bare = text.strip()
    if match := _PART.fullmatch(bare):
        n, t = int(match[1]), int(match[2])
        if not 1 <= n <= t:
            raise UsageError(f"--read-data-subset {text}: in n/t, n is between 1 and t")
        return Subset(part=(n, t))
    if match := _PERCENT.fullmatch(bare):
        percent = float(match[1])
        if not 0 < percent <= 100:
            raise UsageError(f"--read-data-subset {text}: give more than 0% and at most 100%")
        return Subset(percent=percent)
    if match := _SIZE.fullmatch(bare):
        size = int(float(match[1]) * KiB ** " KMGT".index(match[2].upper() or " "))
        if size < 1:
            raise UsageError(f"--read-data-subset {text}: give at least one byte")
        return Subset(size=size)
    raise UsageError(f"--read-data-subset {text!r}: give n/t (2/7), a percentage (5%) or a size (500M)")
