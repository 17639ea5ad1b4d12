"""The header of a damaged volume: what it may have been, told from what is left of it and from the keys."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from snapfs.repo.errors import Damaged
from snapfs.repo.format import labels as L
from snapfs.repo.format import recipient
from snapfs.repo.format.envelope import Header, derive
from snapfs.repo.keys import Keys


def likely_headers(keys: Keys, repository: bytes, object_kind: int, damaged: bytes) -> Iterator[bytes]:
    """What the header of a volume may have been: all but the salt is known or follows from it, and the ephemeral key where a
    machine wrote it that can only back up.  Of these one bit may be wrong, if the commitment is right."""
    if len(damaged) < L.HEADER_SIZE:
        return
    end = L.HEADER_SIZE
    salt, commitment = damaged[end - 64 : end - 32], damaged[end - 32 : end]
    extra = damaged[end : L.BACKUP_ONLY_HEADER_SIZE]

    def made(salt: bytes, key: bytes, epoch: int, extra: bytes | None, sure: bool) -> Iterator[bytes]:
        wrap = L.WRAP_REPOSITORY if extra is None else L.WRAP_BACKUP_ONLY
        right = derive(key, salt, object_kind, wrap)[1]
        if not sure or right == commitment:
            yield Header(object_kind, repository, salt, right, epoch, wrap, extra=extra or b"").encode()

    for epoch in keys.epochs():
        named = keys.sealing(object_kind, epoch)
        for tried, bit in _one_bit_off(salt):
            yield from made(tried, named, epoch, None, bit)
        if len(extra) < L.PUBLIC_KEY_SIZE:
            continue
        private = recipient.private_key(named, object_kind)
        for other, other_bit in _one_bit_off(extra):
            header = Header(object_kind, repository, salt, commitment, extra=other)
            with contextlib.suppress(Damaged):  # a key that is none
                key = recipient.sealing_key(private, header, "")
                for tried, bit in [(salt, other_bit)] if other_bit else _one_bit_off(salt):
                    yield from made(tried, key, epoch, other, bit)


def _one_bit_off(value: bytes) -> Iterator[tuple[bytes, bool]]:
    """These bytes as they are, and with each of their bits flipped: (the bytes, whether one is)."""
    number = int.from_bytes(value, "big")
    yield value, False
    for bit in range(8 * len(value)):
        yield (number ^ 1 << bit).to_bytes(len(value), "big"), True
