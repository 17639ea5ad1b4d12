"""Recovery keys: 160 random bits as eight groups of five characters, made for paper.

    K7QF2-9ZD0M-...      four characters of each group are random, the fifth is a checksum of them and of the group's number

The characters are Crockford's base 32: no I, L, O, U.  The checksum is computed in the field of 32 elements, each place of a
group with a weight of its own, so that one wrong character, and any two that changed places, are always told, and in which
group.  A key is a password like any other for the key slot; only how it is typed is forgiven.
"""

from __future__ import annotations

import unicodedata

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_VALUES = {letter: value for value, letter in enumerate(_ALPHABET)}
_FOLD = str.maketrans("OIL", "011")
"""Letters that are no part of the alphabet, and what they were taken for."""
GROUPS = 8
GROUP = 5
LENGTH = GROUPS * GROUP
RANDOM_BYTES = GROUPS * (GROUP - 1) * 5 // 8
_FIELD = 0b100101
"""x^5 + x^2 + 1: the powers of x are all the elements but 0."""
_INTENDED = GROUPS // 2
"""So many groups must be right before something is taken for a mistyped key: by chance, each is with 1 in 32."""


def make(random: bytes) -> str:
    """The key of RANDOM_BYTES random bytes, as it is printed."""
    if len(random) != RANDOM_BYTES:
        raise ValueError(f"{len(random)} bytes, not {RANDOM_BYTES}")
    number = int.from_bytes(random, "big")
    letters = [_ALPHABET[number >> 5 * at & 31] for at in reversed(range(GROUPS * (GROUP - 1)))]
    groups = ("".join(letters[at : at + GROUP - 1]) for at in range(0, len(letters), GROUP - 1))
    return "-".join(group + _ALPHABET[_checksum(n, group)] for n, group in enumerate(groups, 1))


def canonical(password: bytes | bytearray) -> bytes | bytearray:
    """A recovery key as it is printed, however it was typed; any other password as it is, and in most cases not copied."""
    if len(password) < LENGTH or (password.isascii() and len(password) - _blanks(password) != LENGTH):
        return password
    letters = "".join(_pieces(password))
    if len(letters) != LENGTH or _wrong(_by_fives(letters)):
        return password
    return "-".join(_by_fives(letters)).encode()


def _blanks(password: bytes | bytearray) -> int:
    """How many characters of ASCII are nothing but space between letters."""
    return sum(chr(byte).isspace() or byte == ord("-") for byte in password)


def mistyped(password: bytes | bytearray) -> str | None:
    """Where the mistakes are, if this was meant as a recovery key and is none; None if it does not look like one."""
    pieces = _pieces(password)
    letters = "".join(pieces)
    if len(pieces) != GROUPS and len(letters) == LENGTH:  # typed without spaces and dashes, or with others
        pieces = _by_fives(letters)
    if len(pieces) == GROUPS:
        wrong = _wrong(pieces)
        if not wrong or len(wrong) > GROUPS - _INTENDED:
            return None
        found = [
            f"group {n}"
            + ("" if len(pieces[n - 1]) == GROUP else f" ({_characters(pieces[n - 1])}, not {GROUP})")
            for n in wrong
        ]
        return f"read as a recovery key, there is a mistake in {' and '.join(found)}"
    front = _right(_by_fives(letters), range(1, GROUPS + 1))
    backwards = _by_fives(letters[::-1])[:GROUPS]
    back = _right([group[::-1] for group in backwards], range(GROUPS, 0, -1))
    if front + back < _INTENDED:
        return None
    at = min(front + 1, GROUPS)
    return f"read as a recovery key, it has {_characters(letters)}, not {LENGTH}: look at group {at} first"


def _characters(text: str) -> str:
    return f"{len(text)} character{'' if len(text) == 1 else 's'}"


def _pieces(password: bytes | bytearray) -> list[str]:
    """What was typed between spaces and dashes, in capitals, with the letters that a key does not have as digits."""
    letters = (
        " "
        if letter.isspace() or unicodedata.category(letter) == "Pd"
        else letter.upper()
        if letter.isascii()
        else letter
        for letter in password.decode("utf-8", "replace")
    )
    return "".join(letters).translate(_FOLD).split()


def _by_fives(letters: str) -> list[str]:
    return [letters[at : at + GROUP] for at in range(0, len(letters), GROUP)]


def _wrong(groups: list[str]) -> list[int]:
    """Numbers of the groups that are not as they were printed, from 1."""
    return [number for number, group in enumerate(groups, 1) if not _is_right(number, group)]


def _right(groups: list[str], numbers: range) -> int:
    """How many of these are right before the first that is not."""
    count = 0
    for number, group in zip(numbers, groups, strict=False):
        if not _is_right(number, group):
            break
        count += 1
    return count


def _is_right(number: int, group: str) -> bool:
    return (
        len(group) == GROUP
        and all(letter in _VALUES for letter in group)
        and _checksum(number, group[:-1]) == _VALUES[group[-1]]
    )


def _checksum(number: int, letters: str) -> int:
    """number + x * letters[0] + x^2 * letters[1] + ... in the field; the checksum itself has the weight 1."""
    total = 0
    for letter in reversed(letters):
        total = _times_x(total ^ _VALUES[letter])
    return total ^ number


def _times_x(value: int) -> int:
    value <<= 1
    return value ^ _FIELD if value & 32 else value
