"""Objects that their writer cannot open again: sealed to the holders of the whole bundle (wrap kind 2).

The key of such an object is agreed on by X25519 between an ephemeral key pair, whose public half stands in the header, and the
recipient's, whose private half is derived from the named key of that kind and epoch.  So who holds the whole bundle opens them
without any other secret, and who writes them needs public keys only.  Events among them are signed.
"""

from __future__ import annotations

from snapfs.repo.errors import Damaged
from snapfs.repo.format import labels as L
from snapfs.repo.format.crypto import hkdf, sign, verifies, wipe, x25519, x25519_public
from snapfs.repo.format.envelope import Header, Sealer
from snapfs.repo.format.records import Signed


def private_key(named: bytes, kind: int) -> bytes:
    """The recipient's private key for objects of this kind, from the named key that seals them for others."""
    return hkdf(named, None, L.RECIPIENT_LABELS[kind])


def public_key(named: bytes, kind: int) -> bytes:
    return x25519_public(private_key(named, kind))


def ephemeral_key(secret: bytes, salt: bytes) -> bytes:
    """A private key for one object: of a salt that is never repeated, and of a secret that nobody else has, so that it cannot be
    guessed where the source of randomness is stuck."""
    return hkdf(secret, salt, L.EPHEMERAL_LABEL)


def sealer_to(
    public: bytes, ephemeral: bytes, kind: int, repository: bytes, salt: bytes, epoch: int
) -> Sealer:
    """Seals one object to the holder of the private key.  `ephemeral`: a private key that is used for nothing else."""
    own = x25519_public(ephemeral)
    key = _key(ephemeral, public, own, public)
    if _key(ephemeral, public, x25519_public(ephemeral), public) != key:
        raise Damaged("two derivations of one key differ: is the memory of this machine sound?", "a new key")
    return Sealer(key, kind, repository, salt, epoch=epoch, wrap=L.WRAP_BACKUP_ONLY, extra=own)


def sealing_key(private: bytes, header: Header, where: str) -> bytes:
    """What the object of this header is sealed with, for the holder of the private key.  Raises Damaged."""
    return _key(private, header.extra, header.extra, x25519_public(private), where)


def _key(private: bytes, other: bytes, ephemeral: bytes, recipient: bytes, where: str = "") -> bytes:
    """Both public keys are part of it, as in HPKE (RFC 9180): one secret belongs to one pair."""
    try:
        shared = x25519(private, other)
    except ValueError as error:
        raise Damaged("its ephemeral key is none", where) from error
    key = shared + ephemeral + recipient
    wipe(shared)
    return key


def signed_message(header: bytes, record: bytes) -> bytes:
    """What the signature of an event is over: the header makes it that of this object and no other."""
    return L.SIGNATURE_LABEL + header + record


def signed(seed: bytes, header: bytes, record: bytes) -> Signed:
    return Signed(1, record, sign(seed, signed_message(header, record)))


def verified(public: bytes, header: bytes, signed: Signed) -> bool:
    return verifies(public, signed_message(header, signed.record), signed.signature)
