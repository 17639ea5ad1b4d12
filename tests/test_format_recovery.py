"""Recovery keys: whatever is mistyped is told, and where; however it is typed, it is the same key."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapfs.repo.format import recovery
from snapfs.repo.format.recovery import GROUP, GROUPS, LENGTH, RANDOM_BYTES

LETTERS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
KEYS = [bytes(RANDOM_BYTES), b"\xff" * RANDOM_BYTES] + [
    random.Random(seed).randbytes(RANDOM_BYTES) for seed in range(4)
]


@pytest.fixture(params=KEYS, ids=range(len(KEYS)))
def key(request: pytest.FixtureRequest) -> str:
    return recovery.make(request.param)


def told(typed: str) -> str:
    """What is said of a key with a mistake, which must be no key."""
    assert recovery.canonical(typed.encode()) == typed.encode(), typed
    said = recovery.mistyped(typed.encode())
    assert said is not None, typed
    assert "read as a recovery key" in said
    return said


def plain(key: str) -> str:
    return key.replace("-", "")


def grouped(letters: str) -> str:
    return "-".join(letters[at : at + GROUP] for at in range(0, len(letters), GROUP))


def test_every_wrong_character_is_told_with_its_group(key: str) -> None:
    letters = plain(key)
    for at, right in enumerate(letters):
        for wrong in (LETTERS + "U?*.é").replace(right, ""):
            for shape in (str, grouped):
                said = told(shape(letters[:at] + wrong + letters[at + 1 :]))
                assert said.endswith(f"a mistake in group {at // GROUP + 1}")


def test_any_two_characters_that_changed_places_are_told_with_their_groups(key: str) -> None:
    letters = plain(key)
    for a in range(LENGTH):
        for b in range(a + 1, LENGTH):
            if letters[a] != letters[b]:
                swapped = list(letters)
                swapped[a], swapped[b] = letters[b], letters[a]
                groups = dict.fromkeys((a // GROUP + 1, b // GROUP + 1))
                said = told("".join(swapped))
                assert said.endswith(" and ".join(f"group {n}" for n in groups))


def test_any_two_groups_that_changed_places_are_told(key: str) -> None:
    for a in range(GROUPS):
        for b in range(a + 1, GROUPS):
            groups = key.split("-")
            groups[a], groups[b] = groups[b], groups[a]
            assert told("-".join(groups)).endswith(f"group {a + 1} and group {b + 1}")


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_characters_left_out_are_told_with_their_group(key: str, count: int) -> None:
    for at in range(LENGTH - count + 1):
        group = at // GROUP + 1
        letters = plain(key)
        left = letters[:at] + letters[at + count :]
        said = told(left)
        assert f"{LENGTH - count} characters, not {LENGTH}" in said
        assert abs(int(said.split("group ")[1].split()[0]) - group) <= 1, (
            "by chance a group may fit at one place more"
        )
        if at % GROUP + count <= GROUP - 1:
            pieces = key.split("-")
            pieces[group - 1] = pieces[group - 1][: at % GROUP] + pieces[group - 1][at % GROUP + count :]
            assert f"mistake in group {group} ({GROUP - count} character" in told("-".join(pieces))


def test_a_character_too_many_is_told_with_its_group(key: str) -> None:
    for at in range(LENGTH):
        for more in (key[0], "7", "é"):
            pieces = key.split("-")
            group = pieces[at // GROUP]
            pieces[at // GROUP] = group[: at % GROUP] + more + group[at % GROUP :]
            assert f"group {at // GROUP + 1} (6 characters, not 5)" in told("-".join(pieces))
            assert f"41 characters, not {LENGTH}" in told("".join(pieces))


@given(
    st.binary(min_size=RANDOM_BYTES, max_size=RANDOM_BYTES),
    st.lists(
        st.sampled_from(["", " ", "-", "  ", " - ", "\t", "\N{NO-BREAK SPACE}", "\N{EN DASH}"]),
        min_size=41,
        max_size=41,
    ),
    st.lists(st.booleans(), min_size=40, max_size=40),
)
def test_capitals_spaces_dashes_and_look_alikes_do_not_matter(
    random_bytes: bytes, between: list[str], changed: list[bool]
) -> None:
    key = recovery.make(random_bytes)
    alike = {"0": "o", "1": "l"}
    letters = [
        alike.get(c, c.lower()) if change else c for c, change in zip(plain(key), changed, strict=True)
    ]
    typed = "".join(gap + c for gap, c in zip(between, [*letters, ""], strict=True))
    assert recovery.canonical(typed.encode()) == key.encode()
    assert recovery.mistyped(typed.encode()) is None


@given(
    st.binary(min_size=RANDOM_BYTES, max_size=RANDOM_BYTES),
    st.binary(min_size=RANDOM_BYTES, max_size=RANDOM_BYTES),
)
def test_other_bytes_are_another_key(one: bytes, other: bytes) -> None:
    assert (recovery.make(one) == recovery.make(other)) == (one == other)


@given(st.one_of(st.binary(max_size=100), st.text(LETTERS + "-", max_size=60).map(str.encode)))
def test_other_passwords_stay_as_they_are_and_are_not_explained(password: bytes) -> None:
    assert recovery.canonical(password) == password
    assert recovery.mistyped(password) is None


@pytest.mark.parametrize(
    "password",
    [
        b"",
        b"correct horse battery staple and four more",
        b"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        b"kR7hgv3q-mwz4n8sx-bq2dyftc-p6jhe5vr-a9uk3gnw-xdz7c4ms-fh8tqb2y-v5rjpe6k",
        b"\xff\xfe" * 20,
        b"x" * 65_000,
    ],
)
def test_ordinary_passwords(password: bytes) -> None:
    assert recovery.canonical(password) == password
    assert recovery.mistyped(password) is None


@pytest.mark.parametrize("count", [0, RANDOM_BYTES - 1, RANDOM_BYTES + 1])
def test_a_key_takes_all_its_random_bytes(count: int) -> None:
    with pytest.raises(ValueError):
        recovery.make(bytes(count))
