"""The primitives, and nothing but: HKDF-SHA256, AES-256-GCM, keyed BLAKE3, Argon2id.  The only module
importing `cryptography` and `blake3`."""

from __future__ import annotations

import hmac

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from snapfs.repo.format.labels import KEY_SIZE

__all__ = ["AESGCM", "InvalidTag", "argon2id", "equal", "hkdf", "keyed_hash"]


def hkdf(key: bytes, salt: bytes | None, info: bytes, length: int = KEY_SIZE) -> bytes:
    """HKDF-SHA256 (RFC 5869)."""
    return HKDF(algorithm=SHA256(), length=length, salt=salt, info=info).derive(key)


def keyed_hash(key: bytes, data: bytes | bytearray | memoryview) -> bytes:
    """BLAKE3 in keyed mode, 32 bytes."""
    return blake3(data, key=key).digest()


def argon2id(password: bytes, salt: bytes, memory_kib: int, iterations: int, lanes: int) -> bytes:
    """Argon2id (RFC 9106), 32 bytes."""
    kdf = Argon2id(salt=salt, length=KEY_SIZE, iterations=iterations, lanes=lanes, memory_cost=memory_kib)
    return kdf.derive(password)


def equal(a: bytes, b: bytes) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(a, b)
