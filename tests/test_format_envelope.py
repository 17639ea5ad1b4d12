"""Everything sealed: any flip, cut or exchange is an error of ours, and never other bytes."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapfs.repo.errors import Damaged, UnsupportedFormat, WrongPassword
from snapfs.repo.format import keyslot
from snapfs.repo.format import labels as L
from snapfs.repo.format.crypto import keyed_hash
from snapfs.repo.format.envelope import Opener, Sealer, derive, parse_header
from snapfs.repo.format.keyslot import Cost, open_slot, seal_slot
from snapfs.repo.format.sealed import open_record, seal_record
from support.parts import BUNDLE, KEYS, REPOSITORY, SALT

KEY = KEYS.sealing(L.EVENT)
RECORD = b"the record"
CHEAP = Cost(64, 1, 1)


def sealed(record: bytes = RECORD) -> bytes:
    return seal_record(Sealer(KEY, L.EVENT, REPOSITORY, SALT), record)


def opened(data: bytes) -> bytes:
    return open_record(Opener(KEY, data, "it", L.EVENT, REPOSITORY), data)


def flips(data: bytes) -> list[tuple[int, bytes]]:
    changed = bytearray(data)
    found = []
    for bit in range(8 * len(data)):
        changed[bit // 8] ^= 1 << bit % 8
        found.append((bit, bytes(changed)))
        changed[bit // 8] ^= 1 << bit % 8
    return found


def test_every_flipped_bit_is_noticed() -> None:
    data = sealed()
    for bit, bad in flips(data):
        with pytest.raises((Damaged, UnsupportedFormat)):
            assert opened(bad) == RECORD, f"bit {bit} was not noticed"


def test_every_cut_is_noticed() -> None:
    data = sealed()
    for length in range(len(data)):
        with pytest.raises(Damaged):
            opened(data[:length])


@given(st.binary(max_size=3000))
def test_records_come_back_and_lengths_hide(record: bytes) -> None:
    data = sealed(record)
    assert opened(data) == record
    assert len(data) % L.RECORD_STEP == 0
    assert len(data) < L.HEADER_SIZE + 96 + len(record) + L.RECORD_STEP + 48


def test_what_stands_in_another_place_is_refused() -> None:
    data = sealed()
    for kind, repository, key in (
        (L.CONFIG, REPOSITORY, KEY),
        (L.EVENT, bytes(16), KEY),
        (L.EVENT, REPOSITORY, KEYS.sealing(L.CONFIG)),
    ):
        with pytest.raises(Damaged):
            Opener(key, data, "it", kind, repository)


@pytest.mark.parametrize("change", ["kind", "repository", "salt", "commitment"])
def test_a_changed_header_with_a_key_that_fits_is_noticed(change: str) -> None:
    """Not only the commitment protects the header: all of it is associated data."""
    header = parse_header(sealed(), "it")
    salt = bytes(32) if change == "salt" else SALT
    kind = L.CONFIG if change == "kind" else L.EVENT
    _, commitment = derive(KEY, salt, kind)
    if change == "commitment":
        commitment = bytes(32)
    repository = bytes(16) if change == "repository" else REPOSITORY
    forged = header._replace(kind=kind, salt=salt, repository=repository, commitment=commitment).encode()
    data = forged + sealed()[L.HEADER_SIZE :]
    with pytest.raises(Damaged):
        open_record(Opener(KEY, data, "it", kind, repository), data)


def test_frames_cannot_change_places() -> None:
    sealer = Sealer(KEY, L.EVENT, REPOSITORY, SALT)
    frames = [sealer.frame(sealer.number(), L.FRAME_BLOBS, L.STORED, 1, 3, body) for body in (b"one", b"two")]
    opener = Opener(KEY, sealer.header, "it", L.EVENT)
    for number, (head, body) in enumerate(frames):
        assert opener.frame_header(number, head) == (L.FRAME_BLOBS, L.STORED, 1, 3, 19)
        assert opener.body(number, body) == (b"one", b"two")[number]
        for swap in (
            lambda n=number, h=head: opener.frame_header(1 - n, h),
            lambda n=number, b=body: opener.body(1 - n, b),
        ):
            with pytest.raises(Damaged):
                swap()
        with pytest.raises(Damaged):
            opener.body(number, head)
        with pytest.raises(Damaged):
            opener.frame_header(number, body)


@pytest.mark.parametrize(
    ("plain", "body"),
    [(L.FRAME_PLAIN_LIMIT + 1, 16), (2**32 - 1, 16), (0, 15), (0, L.FRAME_PLAIN_LIMIT + 17), (0, 2**32 - 1)],
)
def test_frame_headers_with_sizes_over_the_limits(plain: int, body: int) -> None:
    """Sealed by somebody who has the key: refused before anything is allocated."""
    sealer = Sealer(KEY, L.EVENT, REPOSITORY, SALT)
    head = sealer._aead.encrypt(bytes(12), struct.pack("<BBHIII", 1, 0, 0, 1, plain, body), sealer.header)
    with pytest.raises(Damaged, match="bad header of frame 0"):
        Opener(KEY, sealer.header, "it", L.EVENT).frame_header(0, head)


def test_frame_header_with_reserved_bits() -> None:
    sealer = Sealer(KEY, L.EVENT, REPOSITORY, SALT)
    head = sealer._aead.encrypt(bytes(12), struct.pack("<BBHIII", 1, 0, 1, 1, 3, 19), sealer.header)
    with pytest.raises(Damaged):
        Opener(KEY, sealer.header, "it", L.EVENT).frame_header(0, head)


@pytest.mark.parametrize(
    "frames",
    [
        [(L.FRAME_PADDING, L.STORED)],
        [(L.FRAME_PADDING, L.STORED), (L.FRAME_RECORD, L.STORED)],
        [(L.FRAME_RECORD, L.STORED), (L.FRAME_RECORD, L.STORED)],
        [(L.FRAME_RECORD, L.ZSTD)],
        [(L.FRAME_BLOBS, L.STORED)],
        [],
    ],
)
def test_an_object_that_is_not_one_record(frames: list[tuple[int, int]]) -> None:
    sealer = Sealer(KEY, L.EVENT, REPOSITORY, SALT)
    data = sealer.header
    for kind, codec in frames:
        data += b"".join(sealer.frame(sealer.number(), kind, codec, 1, 3, b"abc"))
    with pytest.raises(Damaged):
        opened(data)


# ---- key slots -------------------------------------------------------------------------------------------------------


def quick(password: bytes, salt: bytes, *cost: int) -> bytes:
    """In the place of Argon2id, where a flipped bit would ask for a gigabyte."""
    return keyed_hash(salt, password + repr(cost).encode())


@pytest.fixture
def argon2_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    calls: list[tuple[int, ...]] = []

    def recording(password: bytes, salt: bytes, *cost: int) -> bytes:
        calls.append(cost)
        return quick(password, salt, *cost)

    monkeypatch.setattr(keyslot, "argon2id", recording)
    return calls


def test_every_flipped_bit_of_a_key_slot_is_noticed(argon2_calls: list[tuple[int, ...]]) -> None:
    data = seal_slot(BUNDLE, b"password", CHEAP, REPOSITORY, SALT)
    assert open_slot(data, b"password", "slot")[1] == BUNDLE
    for bit, bad in flips(data):
        with pytest.raises((Damaged, UnsupportedFormat, WrongPassword)):
            assert not open_slot(bad, b"password", "slot"), f"bit {bit} was not noticed"
    assert all(
        memory <= L.ARGON2_CAP_KIB and iterations <= L.ARGON2_CAP_ITERATIONS and lanes <= L.ARGON2_CAP_LANES
        for memory, iterations, lanes in argon2_calls
    )


@given(st.lists(st.integers(0, 2**32 - 1), min_size=3, max_size=3))
def test_costs_are_capped_before_they_are_used(cost: list[int]) -> None:
    data = seal_slot_planted(cost)
    with pytest.MonkeyPatch.context() as patch:
        calls: list[tuple[int, ...]] = []
        patch.setattr(keyslot, "argon2id", lambda _, __, *cost: (calls.append(cost), bytes(32))[1])
        with pytest.raises((Damaged, WrongPassword)):
            open_slot(data, b"password", "slot")
        assert all(
            m <= L.ARGON2_CAP_KIB and 1 <= t <= 64 and 1 <= p <= 64 and m >= 8 * p for m, t, p in calls
        )


def seal_slot_planted(cost: list[int]) -> bytes:
    extra = struct.pack("<III", *cost)
    return Sealer(bytes(range(32)), L.KEY_SLOT, REPOSITORY, SALT, wrap=L.WRAP_PASSWORD, extra=extra).header


@pytest.mark.parametrize("password", [b"", b"Password", b"password ", b"pass\0word", bytes(1000)])
def test_wrong_passwords(password: bytes) -> None:
    data = seal_slot(BUNDLE, b"password", CHEAP, REPOSITORY, SALT)
    with pytest.raises(WrongPassword):
        open_slot(data, password, "slot")


def test_a_slot_hides_the_number_of_its_keys() -> None:
    assert len(seal_slot(BUNDLE, b"password", CHEAP, REPOSITORY, SALT)) % L.RECORD_STEP == 0


@pytest.mark.parametrize("make", [lambda: sealed(), lambda: b"", lambda: bytes(200)])
def test_what_is_no_key_slot(make: Callable[[], bytes]) -> None:
    with pytest.raises(Damaged):
        open_slot(make(), b"password", "slot")
