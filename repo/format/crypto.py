"""The primitives, and nothing but: HKDF-SHA256, AES-256-GCM, keyed BLAKE3, Argon2id, X25519, Ed25519; and how a secret is wiped.
The only module importing `cryptography` and `blake3`."""

from __future__ import annotations

import ctypes
import hmac
import sys

from blake3 import blake3
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from snapfs.repo.format.labels import KEY_SIZE

__all__ = [
    "AESGCM", "InvalidTag", "argon2id", "equal", "hkdf", "keyed_hash", "sign", "verifies", "verifying_key", "wipe", "x25519",
    "x25519_public",
]  # fmt: skip

_BYTES_HEADER = bytes.__basicsize__ - 1
"""What CPython keeps of a bytes object before its bytes; behind them is a zero."""


def hkdf(key: bytes, salt: bytes | None, info: bytes, length: int = KEY_SIZE) -> bytes:
    """HKDF-SHA256 (RFC 5869)."""
    return HKDF(algorithm=SHA256(), length=length, salt=salt, info=info).derive(key)


def keyed_hash(key: bytes, data: bytes | bytearray | memoryview) -> bytes:
    """BLAKE3 in keyed mode, 32 bytes."""
    return blake3(data, key=key).digest()


def wipe(secret: bytes | bytearray) -> None:
    """Overwrite a secret that nobody needs any more, in place.

    Of bytes, which nothing else in Python can change, only such may be given as the caller alone has: no constants, nothing that
    was handed in.  Elsewhere than in CPython they stay.  Copies that libraries made are theirs.
    """
    if isinstance(secret, bytearray):
        secret[:] = bytes(len(secret))
    elif len(secret) > 1 and sys.implementation.name == "cpython":  # shorter ones are shared by all
        ctypes.memset(id(secret) + _BYTES_HEADER, 0, len(secret))


def argon2id(password: bytes | bytearray, salt: bytes, memory_kib: int, iterations: int, lanes: int) -> bytes:
    """Argon2id (RFC 9106), 32 bytes."""
    kdf = Argon2id(salt=salt, length=KEY_SIZE, iterations=iterations, lanes=lanes, memory_cost=memory_kib)
    try:
        return _derived(kdf, password)
    finally:
        # OpenSSL leaves a copy of the password in memory that it freed; the next one of this length gets that place.
        _derived(
            Argon2id(salt=salt, length=KEY_SIZE, iterations=1, lanes=1, memory_cost=8), bytes(len(password))
        )


def _derived(kdf: Argon2id, password: bytes | bytearray) -> bytes:
    return kdf.derive(password)  # type: ignore[arg-type]  # any buffer will do: so it says, but not in its types


def equal(a: bytes, b: bytes) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(a, b)


def x25519_public(private: bytes) -> bytes:
    """The public key (32 bytes) of any 32 bytes (RFC 7748)."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def x25519(private: bytes, public: bytes) -> bytes:
    """The shared secret, 32 bytes.  Raises ValueError for a public key that makes it zero, whatever the private one is."""
    return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))


def verifying_key(seed: bytes) -> bytes:
    """The public key (32 bytes) of an Ed25519 seed (RFC 8032)."""
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def sign(seed: bytes, message: bytes) -> bytes:
    """Ed25519, 64 bytes."""
    return Ed25519PrivateKey.from_private_bytes(seed).sign(message)


def verifies(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether the holder of the seed signed this; False, too, for a key that is none."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
