"""The keys of an open repository, derived once from its bundle: all of them, or those of a machine that can only back up."""

from __future__ import annotations

from collections.abc import Iterator

from snapfs.repo.errors import BackupOnly, Damaged, OldKeys, UnsupportedFormat
from snapfs.repo.format import labels as L
from snapfs.repo.format import recipient
from snapfs.repo.format.crypto import hkdf, keyed_hash, verifying_key, wipe
from snapfs.repo.format.envelope import Opener, Sealer, parse_header
from snapfs.repo.format.records import Bundle, KeyEntry
from snapfs.repo.model import BlobId, Kind
from snapfs.repo.system import System

_ROLES = {
    L.ROLE_EVERYTHING: (L.NAMED_KEYS, L.SEALING_KEYS),
    L.ROLE_BACKUP_ONLY: (L.BACKUP_ONLY_KEYS, tuple(L.PUBLIC_KEYS.values())),
}
"""Role of a bundle -> the names in it, and which of them have epochs."""
_NO_KEYS = (b"client", b"host")


class Keys:
    """Ids, paging, the index's tags, and what objects are sealed and opened with.

    Ids and the chunker's key live as long as the repository; only sealing keys have epochs.  `epoch`: of those that seal what is
    written now; what earlier ones sealed is read with them.
    """

    def __init__(self, bundle: Bundle, where: str) -> None:
        """Raises Damaged, UnsupportedFormat for a role of a newer version."""
        if bundle.role not in _ROLES:
            raise UnsupportedFormat(
                f"{where}: a key of a kind that this snapfs does not know: install a newer snapfs"
            )
        names, sealing = _ROLES[bundle.role]
        self.can_read = bundle.role == L.ROLE_EVERYTHING
        """False: it seals objects, and opens none."""
        if any(len(k.key) != L.KEY_SIZE for k in bundle.keys if self.can_read or k.name not in _NO_KEYS):
            raise Damaged("a key is not as long as keys are", where)
        self._keys = {(k.name, k.epoch): k.key for k in bundle.keys if k.name in names}
        self.epoch = max((epoch for _, epoch in self._keys), default=1)
        epochs = (
            range(1 if self.can_read else self.epoch, self.epoch + 1) if self.epoch <= L.EPOCHS_LIMIT else ()
        )
        needed = {(name, epoch) for name in sealing for epoch in epochs}
        needed |= {(name, 1) for name in names if name not in sealing}
        if not epochs or not needed <= self._keys.keys():
            raise Damaged("a key is missing", where)
        if not self.can_read and len(self.client) != L.CLIENT_SIZE:
            raise Damaged("a client id is not as long as those are", where)
        self.rotations = tuple(k.key for k in bundle.keys if k.name == L.ROTATION)
        """Names of the events that ended the earlier epochs."""
        self.before_rotations = tuple(k.key for k in bundle.keys if k.name == L.BEFORE_ROTATION)
        """Names of the events that were the heads then: they count also where one of `rotations` is damaged."""
        id_key = self._keys[b"id", 1]
        self.blob_keys = {kind: hkdf(id_key, None, label) for kind, label in L.ID_LABELS.items()}
        self._snapshot = hkdf(id_key, None, L.SNAPSHOT_ID_LABEL)
        self.fingerprint = hkdf(id_key, None, L.FINGERPRINT_LABEL, 16)
        """Tells this repository from one that somebody made with the same id."""
        self.page = hkdf(id_key, None, L.PAGE_LABEL)
        self.chunker = self._keys[b"chunker", 1]
        self.index_tag = hkdf(self._keys[b"index", 1], None, L.INDEX_TAG_LABEL)

    @staticmethod
    def generate(system: System) -> tuple[KeyEntry, ...]:
        return tuple(KeyEntry(name, 1, system.salt()) for name in L.NAMED_KEYS)

    def backup_only(self, host: bytes, config: bytes, system: System) -> Bundle:
        """A new bundle for a machine that can only back up, under the name of this host; `config`: the record."""
        public = (
            KeyEntry(name, self.epoch, recipient.public_key(self.sealing(kind, self.epoch), kind))
            for kind, name in L.PUBLIC_KEYS.items()
        )
        own = {
            b"index": system.salt(),
            b"signing": system.salt(),
            b"client": system.salt()[:16],
            b"host": host,
        }
        shared = (KeyEntry(name, 1, self._keys[name, 1]) for name in (b"id", b"chunker"))
        return Bundle(
            1, L.ROLE_BACKUP_ONLY, (*shared, *public, *(KeyEntry(n, 1, k) for n, k in own.items())), config
        )

    def next(self, system: System) -> tuple[KeyEntry, ...]:
        """New sealing keys, of the epoch after this."""
        return tuple(KeyEntry(name, self.epoch + 1, system.salt()) for name in L.SEALING_KEYS)

    def blob_id(self, kind: Kind, data: bytes | bytearray | memoryview) -> BlobId:
        return BlobId(keyed_hash(self.blob_keys[kind], data))

    def snapshot_id(self, record: bytes) -> bytes:
        return keyed_hash(self._snapshot, record)

    def wipe(self) -> None:
        """Nothing can be sealed or opened with these any more, nor with the bundle they came from."""
        named = (key for (name, _), key in self._keys.items() if name not in _NO_KEYS)
        keys = (*named, *self.blob_keys.values(), self._snapshot, self.page, self.index_tag)
        # First: whoever is late must not take for damage what he cannot open any more.
        self._keys, self.blob_keys = {}, {}
        for key in keys:
            wipe(key)

    # ---- a machine that can only back up -------------------------------------------------------------------------

    @property
    def client(self) -> bytes:
        """The client id that it was given (16 bytes)."""
        return self._keys[b"client", 1]

    @property
    def host(self) -> bytes:
        """The one host that its snapshots may name."""
        return self._keys[b"host", 1]

    @property
    def signing(self) -> bytes:
        """The seed that its events are signed with."""
        return self._keys[b"signing", 1]

    @property
    def pages(self) -> bytes:
        """What it seals with that it keeps of its own last snapshots on this machine."""
        return hkdf(self._keys[b"index", 1], None, L.OWN_PAGES_LABEL)

    @property
    def verifying(self) -> bytes:
        return verifying_key(self.signing)

    # ---- objects -------------------------------------------------------------------------------------------------

    def sealer(self, kind: int, repository: bytes, system: System, client: bytes = b"") -> Sealer:
        """For one new object of this kind (L.DATA_VOLUME ...).  Raises BackupOnly for one that these keys cannot make."""
        salt = system.salt(client)
        if self.can_read:
            return Sealer(self.sealing(kind, self.epoch), kind, repository, salt, epoch=self.epoch)
        if kind not in L.PUBLIC_KEYS:
            raise BackupOnly
        public = self._keys[L.PUBLIC_KEYS[kind], self.epoch]
        ephemeral = recipient.ephemeral_key(self.signing, system.salt(client))
        try:
            return recipient.sealer_to(public, ephemeral, kind, repository, salt, self.epoch)
        finally:
            wipe(ephemeral)

    def written(self, sealer: Sealer, data: bytes, where: str, kind: int, repository: bytes) -> Opener:
        """Of what was just sealed, and read back.  Who can, opens it as a stranger would."""
        if self.can_read:
            return self.opener(kind, data, where, repository)
        return sealer.opener(data, where, kind, repository)

    def sealing(self, kind: int, epoch: int | None = None) -> bytes:
        """The named key that seals objects of this kind (L.DATA_VOLUME ...); None: of now.  Raises BackupOnly, Damaged."""
        if not self.can_read:
            raise BackupOnly
        epoch = self.epoch if epoch is None else epoch
        if not self._keys:
            raise RuntimeError("the repository was closed, and its keys were wiped")
        try:
            return self._keys[L.OBJECT_KEYS[kind], epoch]
        except KeyError:
            raise Damaged(f"no key of epoch {epoch}", "key bundle") from None

    def epochs(self) -> Iterator[int]:
        """All of them, the newest first."""
        return iter(range(self.epoch, 0, -1))

    def opener(self, kind: int, data: bytes, where: str, repository: bytes | None = None) -> Opener:
        """For an object that begins so, by the key of the epoch that its header says.

        Raises Damaged, UnsupportedFormat; OldKeys for an epoch after these keys: who knows the SHA-256 of the object can tell
        whether that is true, or a bit of the header flipped.
        """
        header = parse_header(data, where)
        if header.epoch > self.epoch and header.kind == kind and repository in (None, header.repository):
            raise OldKeys(
                f"{where}: sealed with keys of epoch {header.epoch}, and this password opens those up to {self.epoch}: "
                "use a password that was made since"
            )
        if header.kind != kind:
            raise Damaged("belongs to another repository or is of another kind", where)
        named = self.sealing(kind, header.epoch)
        if header.wrap != L.WRAP_BACKUP_ONLY:
            return Opener(named, data, where, kind, repository)
        private = recipient.private_key(named, kind)
        try:
            key = recipient.sealing_key(private, header, where)
        finally:
            wipe(private)
        try:
            return Opener(key, data, where, kind, repository)
        finally:
            wipe(key)
