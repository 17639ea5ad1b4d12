"""Writes tests/vectors/*.json: the bytes of the format, one scenario a file.  Run by hand, once per format version:

    python tests/make_vectors.py

The files are the reference, not this script: a change of the format shows as a failing test and as a diff of these files, and
is then a new version.  `expect` is "ok" or the class of error that a reader has to give.  All keys are
SHA-256("test key " + name), see support/parts.py; bytes are hexadecimal, and base64 inside records.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import msgspec

from snapfs.repo.content import ContentWriter
from snapfs.repo.format import frame as framing
from snapfs.repo.format import labels as L
from snapfs.repo.format import recipient, records, recovery
from snapfs.repo.format import volume as layout
from snapfs.repo.format.armor import armor
from snapfs.repo.format.crypto import verifying_key, x25519, x25519_public
from snapfs.repo.format.envelope import Header, Sealer, derive
from snapfs.repo.format.keyslot import Cost, seal_slot
from snapfs.repo.format.parity import Builder
from snapfs.repo.format.records import Branch, Bundle, Config, Event, EventBody, Head, KeyEntry
from snapfs.repo.format.sealed import seal_record
from snapfs.repo.model import Below, Holes, Kind, Node, NodeType, Snapshot, Totals, VolumeKind, Xattr
from snapfs.repo.system import System
from snapfs.repo.trees import DirectoryWriter
from support.parts import BUNDLE, KEYS, REPOSITORY, SALT, MemoryBlobs, seal_volume

FOLDER = Path(__file__).parent / "vectors"
PASSWORD = b"p\xc3\xa4ssword"
COST = Cost(64, 1, 1)


def write(name: str, subject: str, what: str, data: bytes, expect: str = "ok", **facts: Any) -> None:
    scenario = {"subject": subject, "what": what, "expect": expect, **facts, "bytes": data.hex()}
    (FOLDER / f"{name}.json").write_text(json.dumps(scenario, indent=1, ensure_ascii=False) + "\n", "utf-8")


def plainly(record: Any) -> Any:
    return json.loads(msgspec.json.encode(record))


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]


def headers() -> None:
    header = Header(L.EVENT, REPOSITORY, SALT, bytes(range(200, 232)), epoch=0x01020304, extra=b"extra")
    data = header.encode()
    write("header", "header", "every field of a header, and what follows the fixed part", data,
          kind=L.EVENT, repository=REPOSITORY.hex(), salt=SALT.hex(), commitment=header.commitment.hex(),
          epoch=header.epoch, extra=b"extra".hex())  # fmt: skip
    for name, at, value, expect, what in (
        ("magic", 0, b"zzz", "Damaged", "no snapfs object"),
        (
            "line_ends",
            6,
            b"\n\n",
            "Damaged",
            "a transfer in text mode changed the line end in the magic number",
        ),
        ("version", 8, b"\x02\0", "UnsupportedFormat", "written in a newer format"),
        (
            "features",
            12,
            b"\x01\0\0\0",
            "UnsupportedFormat",
            "an incompatible feature this version does not know",
        ),
        ("suite", 16, b"\x02", "UnsupportedFormat", "sealed with another cipher"),
        ("wrap", 17, b"\x03", "UnsupportedFormat", "a key wrapped in an unknown way"),
        (
            "wrap_length",
            17,
            b"\x02",
            "Damaged",
            "wrapped for whoever has the whole bundle, with another length than that has",
        ),
        ("reserved", 19, b"\x01", "Damaged", "a reserved byte that is not zero"),
        ("length", 10, b"\x67\0", "Damaged", "a header shorter than its fixed part"),
        ("length_long", 10, b"\x69\x01", "Damaged", "a header longer than a header may be"),
    ):
        bad = data[:at] + value + data[at + len(value) :] + bytes(300)
        write(f"header_bad_{name}", "header", what, bad, expect)
    write("header_bad_short", "header", "one byte less than a header", data[: L.HEADER_SIZE - 1], "Damaged")
    write("header_bad_cut", "header", "the extra part is cut short", data[:-1], "Damaged")


def keys() -> None:
    write("keys", "keys", "what is derived from the named keys; blob ids are those of the bytes", b"abc",
          blob_ids={str(int(k)): KEYS.blob_id(k, b"abc").hex() for k in Kind},
          snapshot_id=KEYS.snapshot_id(b"abc").hex(), page=KEYS.page.hex(), index_tag=KEYS.index_tag.hex(),
          objects={str(k): [part.hex() for part in derive(KEYS.sealing(k), SALT, k)] for k in L.OBJECT_KEYS})  # fmt: skip


def sealed_records() -> None:
    record = b"a record of some bytes"
    data = seal_record(Sealer(KEYS.sealing(L.EVENT), L.EVENT, REPOSITORY, SALT), record)
    facts = {"kind": L.EVENT, "repository": REPOSITORY.hex(), "salt": SALT.hex(), "record": record.hex()}
    write("sealed", "sealed", "one record, padded to 1 KiB", data, **facts)
    write(
        "sealed_bad_kind",
        "sealed",
        "an event shown as a config",
        data,
        "Damaged",
        **facts | {"kind": L.CONFIG},
    )
    write(
        "sealed_bad_repository",
        "sealed",
        "of another repository",
        data,
        "Damaged",
        **facts | {"repository": bytes(16).hex()},
    )
    write(
        "sealed_bad_salt",
        "sealed",
        "another salt: the commitment does not fit",
        flipped(data, 45),
        "Damaged",
        **facts,
    )
    write(
        "sealed_bad_epoch",
        "sealed",
        "another key epoch: associated data",
        flipped(data, 20),
        "Damaged",
        **facts,
    )
    write("sealed_bad_body", "sealed", "a bit of the record", flipped(data, 140), "Damaged", **facts)
    write("sealed_bad_padding", "sealed", "a bit of the padding", flipped(data, 900), "Damaged", **facts)
    write("sealed_bad_cut", "sealed", "cut short in the padding", data[:-1], "Damaged", **facts)
    write("sealed_bad_longer", "sealed", "bytes after the end", data + b"\0", "Damaged", **facts)


def slots() -> None:
    data = seal_slot(BUNDLE, PASSWORD, COST, REPOSITORY, SALT)
    facts = {"password": PASSWORD.hex(), "repository": REPOSITORY.hex(), "salt": SALT.hex()}
    write("keyslot", "keyslot", "Argon2id with 64 KiB, 1 iteration, 1 lane (too cheap for use)", data,
          cost=list(COST), bundle=plainly(BUNDLE), **facts)  # fmt: skip
    more = (
        *(KeyEntry(name, 2, hashlib.sha256(b"test key 2 " + name).digest()) for name in L.SEALING_KEYS),
        KeyEntry(L.ROTATION, 2, bytes([1]) * 32),
        KeyEntry(L.BEFORE_ROTATION, 2, bytes([2]) * 32),
        KeyEntry(L.BEFORE_ROTATION, 2, bytes([3]) * 32),
    )
    changed = Bundle(1, 1, BUNDLE.keys + more, b"config")
    write("keyslot_epochs", "keyslot", "after a change of keys", seal_slot(changed, PASSWORD, COST, REPOSITORY, SALT),
          cost=list(COST), bundle=plainly(changed), **facts)  # fmt: skip
    write(
        "keyslot_wrong_password",
        "keyslot",
        "another password",
        data,
        "WrongPassword",
        **facts | {"password": b"no".hex()},
    )
    write(
        "keyslot_bad_body",
        "keyslot",
        "right password, a bit of the bundle",
        flipped(data, 200),
        "Damaged",
        **facts,
    )
    write("keyslot_bad_wrap", "keyslot", "not wrapped by a password", flipped(data, 17), "Damaged", **facts)
    for name, cost in (
        ("memory", Cost(L.ARGON2_CAP_KIB + 1, 1, 1)), ("little_memory", Cost(7, 1, 1)), ("iterations", Cost(64, 65, 1)),
        ("no_iterations", Cost(64, 0, 1)), ("lanes", Cost(1024, 1, 65)), ("no_lanes", Cost(64, 1, 0)),
    ):  # fmt: skip
        bad = data[: L.HEADER_SIZE] + struct.pack("<III", *cost) + data[L.HEADER_SIZE + 12 :]
        write(f"keyslot_bad_{name}", "keyslot", f"parameters out of bounds: {cost}", bad, "Damaged", **facts)
    write("armor", "armor", "a key slot as it is exported", data, text=armor(data, ("remarks for people",)))


def backup_only() -> None:
    ephemeral = bytes(range(32))
    recipients = {
        str(kind): {
            "private": recipient.private_key(KEYS.sealing(kind), kind).hex(),
            "public": recipient.public_key(KEYS.sealing(kind), kind).hex(),
            "okm": b"".join(_agreed(kind, ephemeral)).hex(),
        }
        for kind in L.PUBLIC_KEYS
    }
    write("recipients", "recipients", "key pairs from the named keys; keys of objects of this ephemeral private key",
          ephemeral, public=x25519_public(ephemeral).hex(), salt=SALT.hex(), recipients=recipients)  # fmt: skip

    event = Event(1, b"c" * 16, 1, (), 7, EventBody(records.EVENT_SNAPSHOT, b"any bytes"))
    seed = bytes(range(64, 96))
    sealer = _sealer_to(L.EVENT, ephemeral)
    signed = recipient.signed(seed, sealer.header, records.encode(event))
    data = seal_record(sealer, records.encode(signed))
    facts = {
        "ephemeral": ephemeral.hex(), "seed": seed.hex(), "verifying": verifying_key(seed).hex(), "salt": SALT.hex(),
        "record": plainly(event), "signature": signed.signature.hex(),
    }  # fmt: skip
    write("signed", "signed", "an event by a key that can only back up", data, **facts)
    for name, at, what in (
        ("ephemeral", 110, "a bit of the ephemeral key"), ("salt", 45, "a bit of the salt"),
        ("commitment", 80, "a bit of the commitment"), ("epoch", 20, "another epoch"), ("body", 180, "a bit of the record"),
    ):  # fmt: skip
        write(f"signed_bad_{name}", "signed", what, flipped(data, at), "Damaged", **facts)
    zero = data[: L.HEADER_SIZE] + bytes(32) + data[L.BACKUP_ONLY_HEADER_SIZE :]
    write(
        "signed_bad_zero", "signed", "an ephemeral key that makes any secret zero", zero, "Damaged", **facts
    )
    wrapped = data[:17] + b"\0" + data[18:]
    write("signed_bad_wrap", "signed", "said to be sealed with the named key", wrapped, "Damaged", **facts)

    frames = [[(Kind.CONTENT, b"one"), (Kind.CONTENT, b"two" * 100)], [(Kind.CONTENT, bytes(5000))]]
    write("volume_backup_only", "volume", "a data volume by a key that can only back up",
          seal_volume(VolumeKind.DATA, frames, sealer=_sealer_to(L.DATA_VOLUME, ephemeral)), kind=int(VolumeKind.DATA),
          ephemeral=ephemeral.hex(), salt=SALT.hex(),
          frames=[[[int(k), blob.hex()] for k, blob in frame] for frame in frames])  # fmt: skip

    class Stuck(System):
        def salt(self, client: bytes = b"") -> bytes:
            return SALT

    bundle = KEYS.backup_only(b"host", b"config", Stuck())
    slot = seal_slot(bundle, PASSWORD, COST, REPOSITORY, SALT)
    write("keyslot_backup_only", "keyslot", "of a key that can only back up", slot, cost=list(COST), bundle=plainly(bundle),
          password=PASSWORD.hex(), repository=REPOSITORY.hex(), salt=SALT.hex())  # fmt: skip


def _sealer_to(kind: int, ephemeral: bytes) -> Sealer:
    public = recipient.public_key(KEYS.sealing(kind), kind)
    return recipient.sealer_to(public, ephemeral, kind, REPOSITORY, SALT, 1)


def _agreed(kind: int, ephemeral: bytes) -> tuple[bytes, bytes]:
    public = recipient.public_key(KEYS.sealing(kind), kind)
    key = x25519(ephemeral, public) + x25519_public(ephemeral) + public
    return derive(key, SALT, kind, L.WRAP_BACKUP_ONLY)


def recovery_keys() -> None:
    for number, random in enumerate((bytes(20), b"\xff" * 20, bytes(range(200, 220)))):
        write(
            f"recovery_{number}",
            "recovery",
            "the recovery key of these random bytes",
            random,
            key=recovery.make(random),
        )
    key = recovery.make(bytes(range(200, 220)))
    data = seal_slot(BUNDLE, key.encode(), COST, REPOSITORY, SALT)
    facts = {
        "repository": REPOSITORY.hex(),
        "salt": SALT.hex(),
        "cost": list(COST),
        "bundle": plainly(BUNDLE),
    }
    for name, typed, what in (
        ("printed", key, "a recovery key as it is printed"),
        (
            "typed",
            f" {key.lower().replace('-', '  ').replace('0', 'o').replace('1', 'l')}",
            "as it may be typed",
        ),
        ("dashes", key.replace("-", "\N{EN DASH}"), "with the dashes of a word processor"),
    ):
        write(f"keyslot_recovery_{name}", "keyslot", what, data, password=typed.encode().hex(), **facts)
    wrong = key[:-1] + ("0" if key[-1] != "0" else "1")
    write("keyslot_recovery_wrong", "keyslot", "a recovery key with a wrong checksum", data, "WrongPassword",
          password=wrong.encode().hex(), **facts)  # fmt: skip


def frames() -> None:
    blobs = [(Kind.CONTENT, b"one"), (Kind.CONTENT, b""), (Kind.XATTR, b"three" * 3)]
    plain = framing.join([framing.word(k, len(b)) for k, b in blobs], [b for _, b in blobs])
    write(
        "frame",
        "frame",
        "three blobs behind their length words",
        plain,
        blobs=[[int(k), b.hex()] for k, b in blobs],
    )
    word = struct.Struct("<I").pack
    for name, count, bad, what in (
        ("none", 0, b"", "no blobs"), ("many", 1025, bytes(5000), "more blobs than a frame may have"),
        ("short", 1, word(1 << 24 | 4) + b"abc", "a blob longer than what is there"),
        ("long", 1, word(1 << 24 | 2) + b"abc", "bytes that belong to no blob"),
        ("kind", 1, word(6 << 24 | 3) + b"abc", "an unknown kind of blob"),
        ("words", 2, word(1 << 24), "fewer length words than blobs"),
    ):  # fmt: skip
        write(f"frame_bad_{name}", "frame", what, bad, "Damaged", blobs=[[]] * count)
    codec, body = framing.compress(b"snapfs " * 100, 3)
    write(
        "zstd", "body", "700 bytes, compressed", body, codec=codec, plain=(b"snapfs " * 100).hex(), length=700
    )
    huge = bytes.fromhex("28b52ffde00000000000000010020000")  # single segment, 8-byte content size
    unsaid = bytes.fromhex("28b52ffd005823030000")  # no content size; one block of 100 zeros
    rle = bytes.fromhex("28b52ffd0058") + bytes.fromhex("02001000") * 63 + bytes.fromhex("03001000")
    for name, codec, bad, length, what in (
        ("size", 1, body, 699, "declares another size than the frame's header"),
        ("huge", 1, huge, 700, "declares 2^60 bytes: refused before anything is allocated"),
        ("unsaid", 1, unsaid, 700, "does not say its size and is shorter"),
        ("bomb", 1, rle, 700, "does not say its size and grows to 8 MiB"),
        ("cut", 1, body[:-1], 700, "cut short"),
        ("text", 1, b"not compressed", 14, "not zstd at all"),
        ("empty", 1, b"", 0, "nothing"),
        ("stored", 0, b"abc", 4, "stored, and shorter than it says"),
        ("codec", 2, b"abc", 3, "an unknown codec"),
    ):
        write(f"zstd_bad_{name}", "body", what, bad, "Damaged", codec=codec, length=length)


def volumes() -> None:
    blobs = [[(Kind.CONTENT, b"first blob"), (Kind.CONTENT, b"second")], [(Kind.CONTENT, bytes(range(256)))]]
    data = seal_volume(VolumeKind.DATA, blobs)
    facts: dict[str, Any] = {"kind": 1, "frames": [[[int(k), b.hex()] for k, b in f] for f in blobs]}
    write("volume", "volume", "two frames, padding, directory, tail: 4 KiB", data, **facts, salt=SALT.hex())
    bad = (
        ("tail", flipped(data, len(data) - 1), "a bit of the tail"),
        ("directory", flipped(data, len(data) - 100), "a bit of the directory"),
        ("cut", data[:-1], "cut short"),
        ("kind", seal_volume(VolumeKind.TREE, blobs), "a tree volume in the place of a data volume"),
    )
    for name, damaged, what in bad:
        write(f"volume_bad_{name}", "volume", what, damaged, "Damaged", **facts)
    write("padme", "padme", "sizes of a run's last volume: [used, padded]", b"", volume_size=L.VOLUME_SIZE, sizes=[
        [n, layout.padded(n, L.VOLUME_SIZE)]
        for n in (200, 4048, 4049, 4096, 8192, 50_000, 131_072, 131_073, 1_000_000, 10_000_001, L.VOLUME_SIZE - 48)
    ])  # fmt: skip


def parities() -> None:
    """Of `count` pieces of 1,000 bytes that anybody can make."""
    for name, count in (("parity", 1), ("parity_rows", 450)):
        volume = b"".join(hashlib.sha256(b"%d" % i).digest() * 31 + bytes(8) for i in range(count))
        builder = Builder(len(volume))
        builder.update(volume)
        digest = hashlib.sha256(volume).digest()
        made = builder.parity(digest)
        write(name, "parity", f"the parity of {len(volume)} bytes: SHA-256(decimal number) 31 times and 8 zeros, {count} times",
              made if count == 1 else b"", count=count, sha256=hashlib.sha256(made).hexdigest(), length=len(made))  # fmt: skip
        if count == 1:
            head = bytearray(made[:64])
            for field, at in (
                ("magic", 0),
                ("version", 8),
                ("columns", 10),
                ("block", 12),
                ("length", 16),
                ("name", 24),
            ):
                write(f"parity_bad_{field}", "parity_header", f"another {field}", flipped(bytes(head), at), "Damaged",
                      volume=digest.hex())  # fmt: skip
            write(
                "parity_bad_cut",
                "parity_header",
                "63 bytes",
                bytes(head[:63]),
                "Damaged",
                volume=digest.hex(),
            )


def node(name: bytes, kind: int = NodeType.FILE, **more: Any) -> Node:
    if kind == NodeType.FILE:
        more.setdefault("size", 0)
    return Node(name, kind, 0o644, 1000, 100, b"user", b"group", 1_700_000_000_123_456_789, -1, **more)


def record_vectors() -> None:
    some = KEYS.blob_id(Kind.CONTENT, b"abc")
    nodes = {
        "empty": node(b"empty"),
        "inline": node(b"inline", size=3, data=b"abc"),
        "blobs": node(b"blobs", size=(1 << 33) + 3, blobs=((some, 3), (None, 1 << 33)), holes=Holes(1 << 33, ((3, 1 << 33),))),
        "pages": node(b"pages", size=1 << 40, root=some, holes=Holes(4096, None, some)),
        "directory": node(b"d\xff", NodeType.DIRECTORY, root=some, below=Below(3, 2, 1 << 34)),
        "symlink": node(b"link", NodeType.SYMLINK, data=b"../\xff target"),
        "device": node(b"sda1", NodeType.BLOCK, device=(8, 1)),
        "fifo": node(b"fifo", NodeType.FIFO),
        "all": node(b"x" * 255, size=1, data=b"!", link=(2, 1 << 60), changed=1, atime=1 << 61, links=2,
                    xattrs=(Xattr(b"user.a", b""), Xattr(b"user.long", None, some))),
    }  # fmt: skip
    for name, value in nodes.items():
        write(
            f"node_{name}",
            "node",
            f"a directory's entry: {name}",
            records.encode(value),
            record=plainly(value),
        )
    longer = msgspec.msgpack.encode([*msgspec.msgpack.decode(records.encode(nodes["all"])), b"new field", 7])
    write(
        "node_longer",
        "node",
        "fields added by a later version are passed over",
        longer,
        record=plainly(nodes["all"]),
        tail=True,
    )
    for name, bad in {
        "name_empty": node(b""), "name_dot": node(b"."), "name_dots": node(b".."), "name_slash": node(b"a/b"),
        "name_nul": node(b"a\0b"), "name_long": node(b"x" * 256), "type": node(b"a", 8), "type_zero": node(b"a", 0),
        "no_size": Node(b"a", NodeType.FILE, 0, 0, 0, None, None, 0, 0), "negative": node(b"a", size=-1),
        "length": node(b"a", size=4, data=b"abc"), "extents": node(b"a", size=4, blobs=((some, 3),)),
        "extent": node(b"a", size=0, blobs=((some, 4), (None, -4))), "blob": node(b"a", size=1 << 23, blobs=((some, 1 << 23),)),
        "id": node(b"a", size=3, blobs=((b"short", 3),)), "root": node(b"a", NodeType.DIRECTORY, root=b"short"),
        "target": node(b"a", NodeType.SYMLINK), "target_nul": node(b"a", NodeType.SYMLINK, data=b"a\0b"),
        "device": node(b"a", NodeType.CHARACTER), "below": node(b"a", NodeType.DIRECTORY, below=Below(-1, 0, 0)),
        "hole": node(b"a", size=0, holes=Holes(1, ((-1, 1),))),
    }.items():  # fmt: skip
        write(
            f"node_bad_{name}", "node", f"refused: {name.replace('_', ' ')}", records.encode(bad), "Damaged"
        )
    write("node_bad_bytes", "node", "not MessagePack", b"\xc1", "Damaged")
    write(
        "node_bad_text",
        "node",
        "a name that is text, not bytes",
        msgspec.msgpack.encode(["name", 1]),
        "Damaged",
    )

    config = Config(
        1, REPOSITORY, (), (b"later",), (), 1 << 18, 1 << 20, 1 << 22, 1 << 26, 1_700_000_000_000_000_000
    )
    write("config", "config", "a config", records.encode(config), record=plainly(config))
    for name, expect, change in (
        ("features", "UnsupportedFormat", {"read_features": (b"holograms",)}), ("version", "UnsupportedFormat", {"version": 2}),
        ("order", "Damaged", {"chunk_minimum": 1 << 20}), ("power", "Damaged", {"chunk_average": 1_000_000}),
        ("maximum", "Damaged", {"chunk_maximum": (1 << 22) + 1}), ("volume", "Damaged", {"volume_size": 1 << 31}),
        ("small", "Damaged", {"volume_size": 1 << 10}),
    ):  # fmt: skip
        bad = records.encode(msgspec.structs.replace(config, **change))
        write(f"config_bad_{name}", "config", f"refused: {change}", bad, expect)

    root = node(b"", NodeType.DIRECTORY, root=some, below=Below(1, 1, 3))
    snapshot = Snapshot(1, root, 1_700_000_000_000_000_000, b"host", b"user", (b"/home", b"/\xff"), (b"tag",),
                        Totals(*range(15)), True, 2, 1, (b"/", b"/home"), (b"*.o",), b"snapfs 0", some, 1000, 100)  # fmt: skip
    write("snapshot", "snapshot", "a snapshot's record", records.encode(snapshot), record=plainly(snapshot))
    for name, expect, change in (
        ("version", "UnsupportedFormat", {"version": 2}), ("root", "Damaged", {"root": node(b"")}),
        ("name", "Damaged", {"root": node(b"a", NodeType.DIRECTORY)}),
    ):  # fmt: skip
        bad = records.encode(msgspec.structs.replace(snapshot, **change))
        write(f"snapshot_bad_{name}", "snapshot", f"refused: {name}", bad, expect)
    write(
        "snapshot_bad_shape",
        "snapshot",
        "a newer version, of another shape",
        msgspec.msgpack.encode([2, {}]),
        "UnsupportedFormat",
    )

    event = Event(
        1,
        b"c" * 16,
        7,
        (Head(b"d" * 16, 300, b"n" * 32),),
        -5,
        EventBody(records.EVENT_TAGS, None, (some,), (b"a", b"b")),
    )
    write("event", "event", "an event that changes tags", records.encode(event), record=plainly(event))
    body = EventBody(records.EVENT_KEYS_CHANGED, None, (bytes([1]) * 32, bytes([2]) * 32), (b"host", b"user"))
    closing = Event(1, b"c" * 16, 8, (Head(b"c" * 16, 7, b"n" * 32),), 1, body)
    write("event_keys_changed", "event", "the keys of its epoch are not used any more", records.encode(closing),
          record=plainly(closing))  # fmt: skip
    write(
        "event_bad_version",
        "event",
        "a newer event",
        records.encode(msgspec.structs.replace(event, version=2)),
        "UnsupportedFormat",
    )

    leaf = records.encode_page(0, [msgspec.Raw(records.encode(nodes["inline"])), msgspec.Raw(longer)])
    write(
        "page_leaf",
        "page",
        "a page of two entries, one with fields of a later version",
        leaf,
        level=0,
        entries=2,
    )
    branch = records.encode(Branch(b"first", 3, 1 << 40, some, 4, 2))
    write(
        "page_inner",
        "page",
        "a page that names a page",
        records.encode_page(1, [msgspec.Raw(branch)]),
        level=1,
        entries=1,
    )
    for name, expect, bad in (
        ("empty", "Damaged", records.encode_page(0, [])), ("deep", "Damaged", records.encode_page(17, [msgspec.Raw(branch)])),
        ("negative", "Damaged", records.encode_page(-1, [msgspec.Raw(branch)])), ("cut", "Damaged", leaf[:-1]),
        ("version", "UnsupportedFormat", records.encode(records.Page(2, 0, [msgspec.Raw(branch)]))),
        ("shape", "UnsupportedFormat", msgspec.msgpack.encode([2, b"", {}])),
    ):  # fmt: skip
        write(f"page_bad_{name}", "page", f"refused: {name}", bad, expect)


def paging() -> None:
    store = MemoryBlobs()
    directory = DirectoryWriter(store.put, KEYS.page)
    for i in range(1000):
        directory.add(node(b"%06d" % i, size=2, data=b"ab"))
    root, below = directory.finish()
    assert root is not None
    write("paging_directory", "paging", "1000 files named %06d, as node_inline but of content ab", b"",
          list=False, root=root.hex(), below=plainly(below), pages=len(store.blobs))  # fmt: skip
    store = MemoryBlobs()
    content = ContentWriter(store.put, KEYS.page)
    for i in range(1000):
        content.add(KEYS.blob_id(Kind.CONTENT, b"%06d" % i) if i % 10 else None, 1000 + i)
    extents, root = content.finish()
    assert extents is None
    assert root is not None
    write("paging_list", "paging", "1000 extents of 1000 + i bytes: i % 10 = 0 is a hole, else the blob %06d", b"",
          list=True, root=root.hex(), pages=len(store.blobs))  # fmt: skip


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.json"):
        old.unlink()
    for make in (
        headers,
        keys,
        sealed_records,
        slots,
        backup_only,
        recovery_keys,
        frames,
        volumes,
        parities,
        record_vectors,
        paging,
    ):
        make()


if __name__ == "__main__":
    main()
