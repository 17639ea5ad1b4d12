"""The bytes of the format, against tests/vectors/*.json: good ones in both directions, bad ones with the error they name."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from snapfs.repo import errors
from snapfs.repo.content import ContentWriter
from snapfs.repo.format import frame as framing
from snapfs.repo.format import labels as L
from snapfs.repo.format import recipient, records, recovery
from snapfs.repo.format import volume as layout
from snapfs.repo.format.armor import armor, unarmor
from snapfs.repo.format.crypto import verifies
from snapfs.repo.format.envelope import Header, Opener, Sealer, derive, parse_header
from snapfs.repo.format.keyslot import Cost, open_slot, seal_slot
from snapfs.repo.format.parity import Builder, decode_header
from snapfs.repo.format.records import Bundle, Config, Event
from snapfs.repo.format.sealed import open_record, seal_record
from snapfs.repo.grants import open_claim
from snapfs.repo.keys import Keys
from snapfs.repo.model import Below, BlobId, Kind, Node, NodeType, Snapshot, VolumeKind
from snapfs.repo.salvage import Salvage
from snapfs.repo.storage.local import LocalStorage
from snapfs.repo.trees import DirectoryWriter
from snapfs.repo.volumes import OBJECTS, Volumes, object_name
from support import parity as parity_twin
from support.parts import KEYS, REPOSITORY, MemoryBlobs, seal_volume

VECTORS = Path(__file__).parent / "vectors"
Scenario = dict[str, Any]


def load(path: Path) -> Scenario:
    scenario: Scenario = json.loads(path.read_text("utf-8"))
    return scenario


@pytest.mark.parametrize("path", sorted(VECTORS.glob("*.json")), ids=lambda path: path.stem)
def test_vector(path: Path, tmp_path: Path) -> None:
    scenario = load(path)
    data = bytes.fromhex(scenario["bytes"])
    check = globals()[f"check_{scenario['subject']}"]
    if scenario["expect"] == "ok":
        check(scenario, data, tmp_path)
    else:
        expected = getattr(errors, scenario["expect"])
        with pytest.raises(expected) as caught:
            check(scenario, data, tmp_path)
        assert caught.type is expected
        assert "\n" not in str(caught.value)


def test_there_are_vectors() -> None:
    assert len(list(VECTORS.glob("*.json"))) > 80


def from_plain(kind: type[Any], plain: Any) -> Any:
    return msgspec.json.decode(json.dumps(plain), type=kind)


def check_header(s: Scenario, data: bytes, _: Path) -> None:
    header = parse_header(data, "it")
    assert header.encode() == data
    assert (header.kind, header.epoch, header.extra.hex()) == (s["kind"], s["epoch"], s["extra"])
    assert header.repository.hex() == s["repository"]
    assert header.salt.hex() == s["salt"]
    assert header.commitment.hex() == s["commitment"]


def check_keys(s: Scenario, data: bytes, _: Path) -> None:
    assert {str(int(k)): KEYS.blob_id(k, data).hex() for k in Kind} == s["blob_ids"]
    assert KEYS.snapshot_id(data).hex() == s["snapshot_id"]
    assert KEYS.page.hex() == s["page"]
    assert KEYS.index_tag.hex() == s["index_tag"]
    salt = bytes(range(100, 132))
    assert {str(k): [p.hex() for p in derive(KEYS.sealing(k), salt, k)] for k in L.OBJECT_KEYS} == s[
        "objects"
    ]


def check_sealed(s: Scenario, data: bytes, _: Path) -> None:
    kind, repository, salt = s["kind"], bytes.fromhex(s["repository"]), bytes.fromhex(s["salt"])
    record = open_record(Opener(KEYS.sealing(kind), data, "it", kind, repository), data)
    assert record.hex() == s["record"]
    assert seal_record(Sealer(KEYS.sealing(kind), kind, repository, salt), record) == data


def check_keyslot(s: Scenario, data: bytes, _: Path) -> None:
    password = bytes.fromhex(s["password"])
    header, bundle = open_slot(data, password, "it")
    assert bundle == from_plain(Bundle, s["bundle"])
    assert Keys(bundle, "it").page == KEYS.page
    salt = bytes.fromhex(s["salt"])
    assert seal_slot(bundle, password, Cost._make(s["cost"]), header.repository, salt) == data


def sealer_to(kind: int, ephemeral: bytes, salt: bytes) -> Sealer:
    return recipient.sealer_to(
        recipient.public_key(KEYS.sealing(kind), kind), ephemeral, kind, REPOSITORY, salt, 1
    )


def check_recipients(s: Scenario, data: bytes, _: Path) -> None:
    salt, public = bytes.fromhex(s["salt"]), bytes.fromhex(s["public"])
    assert {int(kind) for kind in s["recipients"]} == {L.DATA_VOLUME, L.TREE_VOLUME, L.EVENT}
    for kind, facts in ((int(kind), facts) for kind, facts in s["recipients"].items()):
        private = bytes.fromhex(facts["private"])
        assert recipient.private_key(KEYS.sealing(kind), kind) == private
        assert recipient.public_key(KEYS.sealing(kind), kind).hex() == facts["public"]
        header = Header(kind, REPOSITORY, salt, bytes(32), wrap=L.WRAP_BACKUP_ONLY, extra=public)
        key = recipient.sealing_key(private, header, "it")
        okm = b"".join(derive(key, salt, kind, L.WRAP_BACKUP_ONLY))
        assert okm.hex() == facts["okm"]
        assert sealer_to(kind, data, salt).header[72:] == okm[32:] + public


def check_signed(s: Scenario, data: bytes, _: Path) -> None:
    opener = KEYS.opener(L.EVENT, data, "it", REPOSITORY)
    claim = open_claim(opener, data, "it")
    event = from_plain(Event, s["record"])
    assert claim.event == event
    assert claim.signature.hex() == s["signature"]
    assert verifies(bytes.fromhex(s["verifying"]), claim.message, claim.signature)
    assert claim.message == b"snapfs/1/backup-only/signature" + data[:136] + records.encode(event)
    sealer = sealer_to(L.EVENT, bytes.fromhex(s["ephemeral"]), bytes.fromhex(s["salt"]))
    signed = recipient.signed(bytes.fromhex(s["seed"]), sealer.header, records.encode(event))
    assert seal_record(sealer, records.encode(signed)) == data


def check_armor(s: Scenario, data: bytes, _: Path) -> None:
    assert armor(data, ("remarks for people",)) == s["text"]
    assert unarmor(s["text"].encode()) == data


def check_recovery(s: Scenario, data: bytes, _: Path) -> None:
    assert recovery.make(data) == s["key"]
    assert recovery.canonical(s["key"].encode()) == s["key"].encode()


def check_frame(s: Scenario, data: bytes, _: Path) -> None:
    found = framing.split(data, len(s["blobs"]), "it")
    assert [[kind, data[at : at + length].hex()] for kind, at, length in found] == s["blobs"]
    blobs = [bytes.fromhex(text) for _, text in s["blobs"]]
    assert framing.join([framing.word(kind, length) for kind, _, length in found], blobs) == data


def check_body(s: Scenario, data: bytes, _: Path) -> None:
    assert framing.decompress(s["codec"], data, s["length"], "it").hex() == s["plain"]


def check_volume(s: Scenario, data: bytes, folder: Path) -> None:
    kind = VolumeKind(s["kind"])
    name = hashlib.sha256(data).digest()
    storage = LocalStorage(str(folder))
    storage.make_folders()
    storage.put(object_name(kind, name), data)
    volumes = Volumes(storage, KEYS, REPOSITORY)
    try:
        entries = list(volumes.directory(kind, name, len(data)))
        frames = [[(Kind(k), bytes.fromhex(text)) for k, text in frame] for frame in s["frames"]]
        expected = [(KEYS.blob_id(k, blob), int(k), blob) for frame in frames for k, blob in frame]
        assert [(blob, k) for blob, k, _ in entries] == [(blob, k) for blob, k, _ in expected]
        for (_, _, at), (_, _, blob) in zip(entries, expected, strict=True):
            assert volumes.frame(kind, name, at)[1][at.offset : at.offset + at.length] == blob
        assert [
            (s.id, s.kind, s.location) for s in Salvage(volumes, kind, name, quick=True).blobs()
        ] == entries
        salt = bytes.fromhex(s["salt"])
        sealer = sealer_to(OBJECTS[kind], bytes.fromhex(s["ephemeral"]), salt) if "ephemeral" in s else None
        assert seal_volume(kind, frames, salt=salt, sealer=sealer) == data
    finally:
        storage.close()


def check_padme(s: Scenario, _: bytes, __: Path) -> None:
    assert [[used, layout.padded(used, s["volume_size"])] for used, _ in s["sizes"]] == s["sizes"]


def check_parity(s: Scenario, data: bytes, _: Path) -> None:
    volume = b"".join(hashlib.sha256(b"%d" % i).digest() * 31 + bytes(8) for i in range(s["count"]))
    builder, name = Builder(len(volume)), hashlib.sha256(volume).digest()
    builder.update(volume)
    made = builder.parity(name)
    assert (hashlib.sha256(made).hexdigest(), len(made)) == (s["sha256"], s["length"])
    assert made == parity_twin.parity(volume, name)
    assert not data or data == made
    assert decode_header(made, name, "it").length == len(made)


def check_parity_header(s: Scenario, data: bytes, _: Path) -> None:
    decode_header(data, bytes.fromhex(s["volume"]), "it")


def check_node(s: Scenario, data: bytes, _: Path) -> None:
    node = records.decode_node(msgspec.Raw(data), "it")
    assert node == from_plain(Node, s["record"])
    if not s.get("tail"):
        assert records.encode(node) == data


def check_config(s: Scenario, data: bytes, _: Path) -> None:
    config = records.check_config(records.decode(Config, data, "it"), "it")
    assert config == from_plain(Config, s["record"])
    assert records.encode(config) == data


def check_snapshot(s: Scenario, data: bytes, _: Path) -> None:
    snapshot = records.decode_snapshot(data, "it")
    assert snapshot == from_plain(Snapshot, s["record"])
    assert records.encode(snapshot) == data


def check_event(s: Scenario, data: bytes, _: Path) -> None:
    event = records.decode(Event, data, "it")
    assert event == from_plain(Event, s["record"])
    assert records.encode(event) == data


def check_page(s: Scenario, data: bytes, _: Path) -> None:
    page = records.decode_page(data, "it")
    assert (page.level, len(page.entries)) == (s["level"], s["entries"])
    assert records.encode_page(page.level, page.entries) == data, "raw entries keep what they do not know"


def check_paging(s: Scenario, _: bytes, __: Path) -> None:
    store = MemoryBlobs()
    if s["list"]:
        content = ContentWriter(store.put, KEYS.page)
        for i in range(1000):
            content.add(KEYS.blob_id(Kind.CONTENT, b"%06d" % i) if i % 10 else None, 1000 + i)
        root = content.finish()[1]
    else:
        directory = DirectoryWriter(store.put, KEYS.page)
        for i in range(1000):
            directory.add(
                Node(
                    b"%06d" % i,
                    NodeType.FILE,
                    0o644,
                    1000,
                    100,
                    b"user",
                    b"group",
                    1_700_000_000_123_456_789,
                    -1,
                    2,
                    b"ab",
                )
            )
        root, below = directory.finish()
        assert below == from_plain(Below, s["below"])
    assert root is not None
    assert BlobId(root).hex() == s["root"]
    assert len(store.blobs) == s["pages"]


def test_header_fields_stand_where_the_format_says() -> None:
    salt, commitment = bytes(range(32)), bytes(range(32, 64))
    data = Header(L.DATA_VOLUME, REPOSITORY, salt, commitment, epoch=258, extra=b"xyz").encode()
    assert data[:8] == b"snapfs\r\n"
    assert data[8:10] == b"\x01\x00", "version"
    assert data[10:12] == b"\x6b\x00", "length of the header: 107"
    assert data[12:16] == bytes(4), "features"
    assert data[16:20] == b"\x01\x00\x01\x00", "suite, wrap, kind, reserved"
    assert data[20:24] == b"\x02\x01\x00\x00", "epoch"
    assert data[24:40] == REPOSITORY
    assert data[40:72] == salt
    assert data[72:104] == commitment
    assert data[104:] == b"xyz"
    assert {OBJECTS[kind] for kind in VolumeKind} == {L.DATA_VOLUME, L.TREE_VOLUME}
