"""A key slot: the repository's key bundle, sealed with a key that Argon2id (RFC 9106) makes of a password.

The parameters stand in the clear behind the fixed header (memory in KiB, iterations, lanes: u32 LE each) and are bounded
before they are used, so that a planted slot cannot exhaust memory.  The header's salt is the salt of Argon2id too.
The password is its bytes, but for a recovery key, which counts as it is printed (recovery.py).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from snapfs.repo.errors import Damaged, WrongPassword
from snapfs.repo.format import labels as L
from snapfs.repo.format import records, recovery
from snapfs.repo.format.crypto import argon2id, equal, wipe
from snapfs.repo.format.envelope import Header, Opener, Sealer, derive, parse_header
from snapfs.repo.format.records import Bundle
from snapfs.repo.format.sealed import open_record, seal_record

_COST = struct.Struct("<III")


class Cost(NamedTuple):
    """What deriving a key from a password takes."""

    memory_kib: int = L.ARGON2_MEMORY_KIB
    iterations: int = L.ARGON2_ITERATIONS
    lanes: int = L.ARGON2_LANES


def seal_slot(
    bundle: Bundle, password: bytes | bytearray, cost: Cost, repository: bytes, salt: bytes
) -> bytes:
    """The bytes of a key slot's file."""
    key = argon2id(recovery.canonical(password), salt, *cost)
    record = records.encode(bundle)
    try:
        sealer = Sealer(key, L.KEY_SLOT, repository, salt, wrap=L.WRAP_PASSWORD, extra=_COST.pack(*cost))
        return seal_record(sealer, record)
    finally:
        wipe(key)
        wipe(record)


def parse_slot(data: bytes, where: str) -> tuple[Header, Cost]:
    """What a slot says in the clear: all that can be told of it without a password.  Raises Damaged, UnsupportedFormat."""
    header = parse_header(data, where)
    if header.kind != L.KEY_SLOT or header.wrap != L.WRAP_PASSWORD or len(header.extra) != _COST.size:
        raise Damaged("not a key slot", where)
    cost = Cost._make(_COST.unpack(header.extra))
    if not (
        1 <= cost.iterations <= L.ARGON2_CAP_ITERATIONS
        and 1 <= cost.lanes <= L.ARGON2_CAP_LANES
        and 8 * cost.lanes <= cost.memory_kib <= L.ARGON2_CAP_KIB
    ):
        raise Damaged("key derivation parameters out of bounds", where)
    return header, cost


def open_slot(data: bytes, password: bytes | bytearray, where: str) -> tuple[Header, Bundle]:
    """Raises WrongPassword if this slot is not for this password, Damaged if it is not as written."""
    header, cost = parse_slot(data, where)
    key = argon2id(recovery.canonical(password), header.salt, *cost)
    try:
        object_key, commitment = derive(key, header.salt, L.KEY_SLOT)
        wipe(object_key)
        if not equal(commitment, header.commitment):
            raise WrongPassword("wrong password: no key slot of this repository opens with it")
        record = open_record(Opener(key, data, where, L.KEY_SLOT), data)
    finally:
        wipe(key)
    try:
        return header, records.decode(Bundle, record, where)
    finally:
        wipe(record)
