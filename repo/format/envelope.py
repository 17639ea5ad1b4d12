"""The one envelope of everything sealed: a clear header, all of it associated data, then sealed frames.

Each object has a key of its own, HKDF(named key, salt, purpose).  Frame n seals its header with nonce 2n and its body with
nonce 2n + 1; the tail of a volume uses the highest nonce.  A nonce is never used twice because an object is written once,
front to back, by one Sealer, and its salt is never repeated (system.salt).  The commitment pins the key: AES-GCM alone
would let one ciphertext open under two keys.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from snapfs.repo.errors import Damaged, UnsupportedFormat
from snapfs.repo.format import labels as L
from snapfs.repo.format.crypto import AESGCM, InvalidTag, equal, hkdf, wipe

_FIXED = struct.Struct("<8sHHIBBBBI16s32s32s")
assert _FIXED.size == L.HEADER_SIZE
_FRAME = struct.Struct("<BBHIII")
_WRAPS = (L.WRAP_REPOSITORY, L.WRAP_PASSWORD, L.WRAP_BACKUP_ONLY)


class Header(NamedTuple):
    """The clear header.  `extra` follows the fixed part: the Argon2id parameters of a key slot, the ephemeral public key of wrap
    kind 2."""

    kind: int
    repository: bytes
    salt: bytes
    commitment: bytes
    epoch: int = 1
    wrap: int = L.WRAP_REPOSITORY
    suite: int = L.SUITE_AES_256_GCM
    features: int = 0
    extra: bytes = b""

    def encode(self) -> bytes:
        fixed = _FIXED.pack(
            L.MAGIC, L.FORMAT_VERSION, L.HEADER_SIZE + len(self.extra), self.features, self.suite, self.wrap,
            self.kind, 0, self.epoch, self.repository, self.salt, self.commitment,
        )  # fmt: skip
        return fixed + self.extra


class FrameHeader(NamedTuple):
    """What stands sealed before each body: its kind, codec, number of blobs, length when open, length as it
    lies here (with its tag)."""

    kind: int
    codec: int
    blobs: int
    plain: int
    sealed: int


def parse_header(data: bytes, where: str) -> Header:
    """Read a header from the first bytes of an object (at least L.HEADER_SIZE, or all of it).

    Raises Damaged if this is no snapfs object, UnsupportedFormat if it is a newer one.
    """
    if len(data) < L.HEADER_SIZE:
        raise Damaged("shorter than a header", where)
    magic, version, length, features, suite, wrap, kind, reserved, epoch, repository, salt, commitment = (
        _FIXED.unpack_from(data)
    )
    if magic != L.MAGIC:
        raise Damaged("not a snapfs object", where)
    if version != L.FORMAT_VERSION:
        raise UnsupportedFormat(
            f"{where}: format version {version}, this snapfs reads {L.FORMAT_VERSION}: install a newer snapfs"
        )
    if features or suite != L.SUITE_AES_256_GCM or wrap not in _WRAPS:
        raise UnsupportedFormat(
            f"{where}: needs features {features:#x}, suite {suite}, wrap kind {wrap}: install a newer snapfs"
        )
    if reserved or not L.HEADER_SIZE <= length <= L.HEADER_LIMIT or len(data) < length:
        raise Damaged("bad header", where)
    if wrap == L.WRAP_BACKUP_ONLY and (
        kind not in L.BACKUP_ONLY_LABELS or length != L.BACKUP_ONLY_HEADER_SIZE
    ):
        raise Damaged("bad header", where)
    return Header(
        kind, repository, salt, commitment, epoch, wrap, suite, features, bytes(data[L.HEADER_SIZE : length])
    )


def as_of_this_format(data: bytes) -> bytes:
    """The bytes of an object, but in its header the version, features, suite and wrap of this format.  If it opens so, it is of
    this format, for the header is sealed with each frame: what its header said was damage, and nothing newer."""
    magic, _, length, _, _, _, *rest = _FIXED.unpack_from(data)
    fixed = _FIXED.pack(magic, L.FORMAT_VERSION, length, 0, L.SUITE_AES_256_GCM, L.WRAP_REPOSITORY, *rest)
    return fixed + data[_FIXED.size :]


def derive(key: bytes, salt: bytes, kind: int, wrap: int = L.WRAP_REPOSITORY) -> tuple[bytes, bytes]:
    """(key, commitment), 32 bytes each, of the object of this kind and salt."""
    labels = L.BACKUP_ONLY_LABELS if wrap == L.WRAP_BACKUP_ONLY else L.OBJECT_LABELS
    both = hkdf(key, salt, labels[kind], 2 * L.KEY_SIZE)
    parts = both[: L.KEY_SIZE], both[L.KEY_SIZE :]
    wipe(both)
    return parts


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")


_TAIL_NONCE = b"\xff" * 12


class _Keyed:
    """Has the key of one object, which is wiped when this is gone: not sooner, since the cipher may have it by reference."""

    _key = b""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._aead = AESGCM(key)

    def __del__(self) -> None:
        if wipe is not None:  # it is, when the interpreter ends
            wipe(self._key)


class Sealer(_Keyed):
    """Seals one object, front to back.  `header` is to be written first; frames are numbered as they are sealed.  Of wrap kind 2
    the key is its own from now on, and wiped with it."""

    _agreed = b""

    def __init__(self, key: bytes, kind: int, repository: bytes, salt: bytes, *, epoch: int = 1,
                 wrap: int = L.WRAP_REPOSITORY, extra: bytes = b"") -> None:  # fmt: skip
        object_key, commitment = derive(key, salt, kind, wrap)
        self._agreed = key if wrap == L.WRAP_BACKUP_ONLY else b""
        """What only this sealer has: nobody here can derive it again."""
        self.header = Header(kind, repository, salt, commitment, epoch, wrap, extra=extra).encode()
        super().__init__(object_key)
        self.frames = 0

    def number(self) -> int:
        """Take the next frame number."""
        self.frames += 1
        return self.frames - 1

    def frame(
        self, number: int, kind: int, codec: int, count: int, plain: int, body: bytes
    ) -> tuple[bytes, bytes]:
        """Seal a frame: (sealed header, sealed body).  Each `number` comes from number() and is used once."""
        head = _FRAME.pack(kind, codec, 0, count, plain, len(body) + L.TAG_SIZE)
        encrypt = self._aead.encrypt
        return encrypt(_nonce(2 * number), head, self.header), encrypt(
            _nonce(2 * number + 1), body, self.header
        )

    def tail(self, plain: bytes) -> bytes:
        return self._aead.encrypt(_TAIL_NONCE, plain, self.header)

    def opener(self, data: bytes, where: str, kind: int, repository: bytes) -> Opener:
        """Of what was just sealed with wrap kind 2, as it was read back.  Raises Damaged."""
        return Opener(self._agreed, data, where, kind, repository)

    def __del__(self) -> None:
        if wipe is not None:
            wipe(self._agreed)
        super().__del__()


class Opener(_Keyed):
    """Opens the frames of one object, in any order.  Safe to use from several threads."""

    def __init__(
        self, key: bytes, header: bytes, where: str, kind: int, repository: bytes | None = None
    ) -> None:
        parsed = parse_header(header, where)
        if parsed.kind != kind or (repository is not None and parsed.repository != repository):
            raise Damaged("belongs to another repository or is of another kind", where)
        object_key, commitment = derive(key, parsed.salt, kind, parsed.wrap)
        super().__init__(object_key)
        if not equal(commitment, parsed.commitment):
            raise Damaged("sealed with another key", where)
        self.header = parsed.encode()
        self.wrap = parsed.wrap
        self.epoch = parsed.epoch
        self.where = where

    def frame_header(self, number: int, sealed: bytes | memoryview) -> FrameHeader:
        """Open the 32 bytes before a body.  Raises Damaged."""
        plain = self._open(_nonce(2 * number), sealed, f"header of frame {number}")
        kind, codec, reserved, count, length, body = _FRAME.unpack(plain)
        if (
            reserved
            or length > L.FRAME_PLAIN_LIMIT
            or not L.TAG_SIZE <= body <= L.FRAME_PLAIN_LIMIT + L.TAG_SIZE
        ):
            raise Damaged(f"bad header of frame {number}", self.where)
        return FrameHeader(kind, codec, count, length, body)

    def opens_header(self, number: int, sealed: bytes | memoryview) -> bool:
        """Whether the header of this frame may stand here: for looking for it, where most places are wrong."""
        try:
            self._aead.decrypt(_nonce(2 * number), sealed, self.header)
        except (InvalidTag, ValueError):  # the latter: shorter than a tag
            return False
        return True

    def body(self, number: int, sealed: bytes | memoryview) -> bytes:
        return self._open(_nonce(2 * number + 1), sealed, f"frame {number}")

    def tail(self, sealed: bytes | memoryview) -> bytes:
        return self._open(_TAIL_NONCE, sealed, "tail")

    def _open(self, nonce: bytes, sealed: bytes | memoryview, what: str) -> bytes:
        try:
            return self._aead.decrypt(nonce, sealed, self.header)
        except (InvalidTag, ValueError) as error:
            raise Damaged(f"{what} is damaged", self.where) from error
