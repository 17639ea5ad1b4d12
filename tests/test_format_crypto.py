"""The primitives against published vectors, and the promise that no key and no nonce is ever used twice."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from snapfs.repo import system as system_module
from snapfs.repo.errors import Damaged
from snapfs.repo.format import envelope
from snapfs.repo.format import labels as L
from snapfs.repo.format.crypto import AESGCM, InvalidTag, argon2id, equal, hkdf, keyed_hash
from snapfs.repo.format.keyslot import open_slot, seal_slot
from snapfs.repo.format.records import Bundle
from snapfs.repo.keys import Keys
from snapfs.repo.model import KiB, Kind, MiB
from snapfs.repo.repository import Repository
from snapfs.repo.system import System
from support.parts import BUNDLE, KEYS
from support.repositories import CHEAP, PASSWORD, open_


def test_hkdf_rfc_5869() -> None:
    key = b"\x0b" * 22
    assert hkdf(key, bytes(range(13)), bytes(range(0xF0, 0xFA)), 42).hex() == (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )
    assert hkdf(key, None, b"", 42).hex() == (
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    )


@pytest.mark.parametrize(
    ("length", "digest"),
    [
        (0, "92b2b75604ed3c761f9d6f62392c8a9227ad0ea3f09573e783f1498a4ed60d26"),
        (1, "6d7878dfff2f485635d39013278ae14f1454b8c0a3a2d34bc1ab38228a80c95b"),
        (1024, "75c46f6f3d9eb4f55ecaaee480db732e6c2105546f1e675003687c31719c7ba4"),
    ],
)
def test_keyed_blake3_official(length: int, digest: str) -> None:
    data = bytes(i % 251 for i in range(length))
    key = b"whats the Elvish word for friend"
    assert {keyed_hash(key, kind(data)).hex() for kind in (bytes, bytearray, memoryview)} == {digest}


@pytest.mark.parametrize(
    ("memory", "lanes", "tag"),
    [
        (256, 1, "9dfeb910e80bad0311fee20f9c0e2b12c17987b4cac90c2ef54d5b3021c68bfe"),
        (256, 2, "6d093c501fd5999645e0ea3bf620d7b8be7fd2db59c20d9fff9539da2bf57037"),
    ],
)
def test_argon2id_reference(memory: int, lanes: int, tag: str) -> None:
    """From the reference implementation's tests: RFC 9106 has only a vector with a secret, which snapfs does not use."""
    assert argon2id(b"password", b"somesalt", memory, 2, lanes).hex() == tag


@pytest.mark.parametrize(
    ("key", "nonce", "plain", "associated", "sealed"),
    [
        ("00" * 32, "00" * 12, "", "", "530f8afbc74536b9a963b4f1c4cb738b"),
        (
            "00" * 32,
            "00" * 12,
            "00" * 16,
            "",
            "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919",
        ),
        (
            "feffe9928665731c6d6a8f9467308308" * 2,
            "cafebabefacedbaddecaf888",
            "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
            "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
            "feedfacedeadbeeffeedfacedeadbeefabaddad2",
            "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
            "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f66276fc6ece0f4e1768cddf8853bb2d551b",
        ),
    ],
)
def test_aes_256_gcm_nist(key: str, nonce: str, plain: str, associated: str, sealed: str) -> None:
    aead = AESGCM(bytes.fromhex(key))
    aad = bytes.fromhex(associated)
    assert aead.encrypt(bytes.fromhex(nonce), bytes.fromhex(plain), aad).hex() == sealed
    assert aead.decrypt(bytes.fromhex(nonce), bytes.fromhex(sealed), aad).hex() == plain
    with pytest.raises(InvalidTag):
        aead.decrypt(bytes.fromhex(nonce), bytes.fromhex(sealed), aad + b"!")


def test_equal() -> None:
    assert equal(b"abc", b"abc")
    assert not equal(b"abc", b"abd")
    assert not equal(b"abc", b"ab")


def test_equal_bytes_of_two_kinds_are_two_blobs() -> None:
    assert len({KEYS.blob_id(kind, b"same") for kind in Kind} | {KEYS.snapshot_id(b"same")}) == len(Kind) + 1


def test_derived_keys_are_all_different() -> None:
    keys = [*KEYS.blob_keys.values(), KEYS.page, KEYS.index_tag, KEYS.chunker, *(k.key for k in BUNDLE.keys)]
    assert len(set(keys)) == len(keys) - 1, "the chunker's key stands in the bundle as it is, no other does"
    assert len(set(L.OBJECT_LABELS.values()) | set(L.ID_LABELS.values())) == len(L.OBJECT_LABELS) + len(
        L.ID_LABELS
    )


def test_a_missing_key_is_damage() -> None:
    with pytest.raises(Damaged):
        Keys(Bundle(1, 1, BUNDLE.keys[1:], b""), "slot")
    with pytest.raises(Damaged, match="epoch 2"):
        KEYS.sealing(L.EVENT, 2)


def stuck(boot_id: bytes = b"boot") -> System:
    return System(entropy=lambda n: bytes(n), boot_id=boot_id)


def test_salts_differ_with_stuck_entropy() -> None:
    system = stuck()
    assert len({system.salt() for _ in range(2000)}) == 2000


def test_salts_differ_with_stuck_entropy_and_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seams in one process: one counter."""
    monkeypatch.setattr(system_module.time, "time_ns", lambda: 1)
    monkeypatch.setattr(system_module.time, "monotonic_ns", lambda: 1)
    one, two = stuck(), stuck()
    assert len({system.salt() for _ in range(100) for system in (one, two)}) == 200


def test_salts_differ_after_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system_module.time, "time_ns", lambda: 1)
    monkeypatch.setattr(system_module.time, "monotonic_ns", lambda: 1)
    monkeypatch.setattr(system_module, "_counter", itertools.repeat(7))
    system = stuck()
    parent = system.salt()
    assert system.salt() == parent
    monkeypatch.setattr(system_module.os, "getpid", lambda: 99)
    assert system.salt() != parent


def test_salts_differ_on_cloned_machines() -> None:
    """The same process number, counter and time, but other clients or another boot."""
    parts = [stuck(b"a").salt(b"x"), stuck(b"b").salt(b"x"), stuck(b"a").salt(b"y")]
    assert len(set(parts)) == 3
    assert {len(salt) for salt in parts} == {L.SALT_SIZE}


def test_two_slots_of_one_password_differ() -> None:
    one, two = (seal_slot(BUNDLE, PASSWORD, CHEAP, bytes(16), System().salt()) for _ in range(2))
    assert one[L.HEADER_SIZE + 12 :] != two[L.HEADER_SIZE + 12 :]
    assert open_slot(one, PASSWORD, "one")[1] == open_slot(two, PASSWORD, "two")[1]


def test_no_nonce_is_used_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that a repository seals from init to the last event, random source stuck all the while."""
    used: list[tuple[bytes, bytes]] = []

    class Recording:
        def __init__(self, key: bytes) -> None:
            self.key = bytes(bytearray(key))  # a copy: the key is wiped with its object
            self.aead = AESGCM(key)
            self.decrypt = self.aead.decrypt

        def encrypt(self, nonce: bytes, data: bytes, associated: bytes) -> bytes:
            used.append((self.key, nonce))
            return self.aead.encrypt(nonce, data, associated)

    monkeypatch.setattr(envelope, "AESGCM", Recording)
    place = str(tmp_path / "repository")
    Repository.create(
        place, PASSWORD, cost=CHEAP, volume_size=1280 * KiB, chunks=(64 * KiB, 256 * KiB, MiB), system=stuck()
    )
    with open_(tmp_path, system=stuck()) as repository:
        with repository.writer(compression="off") as writer:
            for i in range(60):
                writer.put(Kind.CONTENT, keyed_hash(bytes(32), bytes((i,))) * 2048)
                writer.put(Kind.DIRECTORY, b"page %d" % i)
            writer.flush()
        repository.events.forget([bytes(32)])
        repository.events.forget([bytes(32)])
    assert len(used) > 60
    assert len({key for key, _ in used}) > 6, "config, slot, events and several volumes"
    assert len(set(used)) == len(used)
