"""A key slot as text for a file or for paper: numbered lines of 16 bytes, each with a checksum, so that a mistake is told and
its line named.  The slot stays sealed with its password."""

from __future__ import annotations

import hashlib
import re

from snapfs.repo.errors import UsageError

FIRST_LINE = "snapfs key slot 1"
_BYTES = 16
_LINE = re.compile(r"\s*([0-9]{1,4})[ .:]+([0-9a-f ]+)", re.IGNORECASE)
_FACT = re.compile(r"\s*(slot|lines)[ :]+([0-9a-f]+)\s*", re.IGNORECASE)
TEXT_LIMIT = 256 * 1024
"""Longer files are none of these, in bytes."""


def armor(slot: bytes, remarks: tuple[str, ...] = ()) -> str:
    """The text of a slot; `remarks` are lines for people, which must not begin with a digit."""
    rows = [slot[at : at + _BYTES] for at in range(0, len(slot), _BYTES)]
    lines = [FIRST_LINE, f"slot {hashlib.sha256(slot).hexdigest()}", f"lines {len(rows)}", "", *remarks, ""]
    for number, row in enumerate(rows, 1):
        lines.append(f"{number:3}  {row.hex(' ', 4)}  {_checksum(number, row)}")
    return "\n".join(lines) + "\n"


def unarmor(text: bytes) -> bytes:
    """The slot in a text made by armor().  Raises UsageError that names the lines with mistakes; `text`: at most TEXT_LIMIT."""
    lines = text.decode("ascii", "replace").splitlines()
    if not lines or lines[0].split() != FIRST_LINE.split():
        raise UsageError(f'no exported key slot: it does not begin with the line "{FIRST_LINE}"')
    facts = {match[1].lower(): match[2].lower() for line in lines if (match := _FACT.fullmatch(line))}
    rows: dict[int, bytes] = {}
    wrong: set[int] = set()
    for line in lines:
        if match := _LINE.match(line):
            number, row = int(match[1]), _row(int(match[1]), line, match)
            if row is None or rows.setdefault(number, row) != row:
                wrong.add(number)
    count = facts.get("lines", "")
    if not (count.isdigit() and 0 < int(count) < 10_000 and len(facts.get("slot", "")) == 64):
        raise UsageError('the lines "slot" and "lines" at its beginning are missing or damaged')
    wrong |= set(range(1, int(count) + 1)) - rows.keys()
    if wrong:
        named = ", ".join(map(str, sorted(wrong)[:5])) + (" ..." if len(wrong) > 5 else "")
        raise UsageError(
            f"line{'s' * (len(wrong) > 1)} {named} of the key slot: damaged, missing or mistyped"
        )
    slot = b"".join(rows[number] for number in range(1, int(count) + 1))
    if hashlib.sha256(slot).hexdigest() != facts["slot"]:
        raise UsageError("the key slot, or its name in the second line, is damaged or mistyped")
    return slot


def _row(number: int, line: str, match: re.Match[str]) -> bytes | None:
    digits = match[2].replace(" ", "").lower()
    if match.end() != len(line.rstrip()) or len(digits) != 2 * _BYTES + 4:
        return None
    row = bytes.fromhex(digits[:-4])
    return row if _checksum(number, row) == digits[-4:] else None


def _checksum(number: int, row: bytes) -> str:
    return hashlib.sha256(number.to_bytes(2, "little") + row).hexdigest()[:4]
