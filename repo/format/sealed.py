"""A whole object that holds one record: an event, the config, a key slot's bundle.  Header, frame 0, and
padding that hides the length."""

from __future__ import annotations

from snapfs.repo.errors import Damaged
from snapfs.repo.format import labels as L
from snapfs.repo.format.envelope import Opener, Sealer


def seal_record(sealer: Sealer, record: bytes) -> bytes:
    """A whole object that holds one record: header, frame 0, and a padding frame up to a multiple of 1 KiB."""
    head, body = sealer.frame(sealer.number(), L.FRAME_RECORD, L.STORED, 1, len(record), record)
    used = len(sealer.header) + len(head) + len(body)
    gap = -used % L.RECORD_STEP
    while 0 < gap < L.FRAME_HEADER_SIZE + L.TAG_SIZE:
        gap += L.RECORD_STEP
    padding = b""
    if gap:
        zeros = bytes(gap - L.FRAME_HEADER_SIZE - L.TAG_SIZE)
        padding = b"".join(sealer.frame(sealer.number(), L.FRAME_PADDING, L.STORED, 0, len(zeros), zeros))
    return b"".join((sealer.header, head, body, padding))


def open_record(opener: Opener, data: bytes) -> bytes:
    """The record in an object made by seal_record; every byte of the object is checked.  Raises Damaged."""
    if len(data) % L.RECORD_STEP:
        raise Damaged("cut short", opener.where)
    at, number, record = len(opener.header), 0, None
    while at < len(data):
        head = opener.frame_header(number, data[at : at + L.FRAME_HEADER_SIZE])
        at += L.FRAME_HEADER_SIZE
        if head.sealed > len(data) - at:
            raise Damaged("cut short", opener.where)
        body = opener.body(number, data[at : at + head.sealed])
        at += head.sealed
        if number == 0 and head.kind == L.FRAME_RECORD and head.codec == L.STORED:
            record = body
        elif head.kind != L.FRAME_PADDING:
            break
        number += 1
    else:
        if record is not None:
            return record
    raise Damaged("not one record", opener.where)
