"""Every derivation label, magic number and size limit of the format, in one place (docs/format.md, "Constants")."""

from __future__ import annotations

from snapfs.repo.model import KiB, Kind, MiB

MAGIC = b"snapfs\r\n"
FORMAT_VERSION = 1

SUITE_AES_256_GCM = 1
WRAP_REPOSITORY = 0
"""The object's key is derived from a named key of the bundle."""
WRAP_PASSWORD = 1
"""The object's key is derived from a password with Argon2id; its parameters follow the fixed header."""
WRAP_BACKUP_ONLY = 2
"""The object's key is agreed on (X25519) with the holders of the whole bundle; the writer's ephemeral public key follows the
fixed header."""

HEADER_SIZE = 104
PUBLIC_KEY_SIZE = 32
CLIENT_SIZE = 16
BACKUP_ONLY_HEADER_SIZE = HEADER_SIZE + PUBLIC_KEY_SIZE
HEADER_LIMIT = HEADER_SIZE + 256
"""The longest header that readers accept."""
FRAME_HEADER_SIZE = 32
TAIL_SIZE = 32
TAG_SIZE = 16
KEY_SIZE = 32
SALT_SIZE = 32
ID_SIZE = 32

# Kinds of object (envelope.Header.kind).
DATA_VOLUME = 1
TREE_VOLUME = 2
EVENT = 3
CONFIG = 4
KEY_SLOT = 5

# Kinds of frame.
FRAME_PADDING = 0
FRAME_BLOBS = 1
FRAME_DIRECTORY = 2
FRAME_RECORD = 3

STORED = 0
ZSTD = 1

JOINED_DATA = 256 * KiB
"""Plaintext of a data frame that joins several blobs, at most."""
JOINED_TREE = 128 * KiB
JOINED_BLOBS = 1024
FRAME_PLAIN_LIMIT = 4 * MiB + 4 * JOINED_BLOBS
"""Readers refuse a frame whose plaintext is longer: a 4 MiB blob and its length words."""
DIRECTORY_PART_BLOBS = 32768
FRAMES_PER_VOLUME = 1 << 16
BLOBS_PER_VOLUME = 1 << 24
VOLUME_SIZE = 64 * MiB
VOLUME_SIZE_LIMIT = 1024 * MiB
RECORD_LIMIT = 4 * MiB
"""An event, the config or a key slot, as a file: readers look at no more of it."""
PADDING_STEP = 4 * KiB
RECORD_STEP = KiB

# Parity (docs/format.md, section 13).
PARITY_MAGIC = b"parity\r\n"
PARITY_VERSION = 1
PARITY_BLOCK = 4 * KiB
"""What a disk loses at once, and what is put back at once."""
PARITY_COLUMNS = 48
"""Blocks that share a block of parity: a 48th of a volume, 1.4 MB of 64 MiB, may be lost in one piece."""

INLINE_CONTENT = 64
INLINE_EXTENTS = 8
INLINE_XATTR = KiB
INLINE_HOLES = 8
NAME_LIMIT = 255
DEPTH_LIMIT = 4096
"""Directories within one another, that of the snapshot included: a path could not be worked with beyond."""
XATTR_LIMIT = 64 * KiB
"""Names of a node's extended attributes with a byte behind each: Linux lists no more (XATTR_LIST_MAX)."""

# Paging of directories, content lists and hole maps (records.PageRule).
PAGE_MINIMUM = 2 * KiB
PAGE_MAXIMUM = 32 * KiB
PAGE_ENTRIES = 16384
"""Readers refuse a page of more: no writer gets near, since the smallest entry takes three bytes."""
PAGE_LEVELS = 16
PAGE_MASK = 0x3F
"""A page ends after an entry whose keyed hash has these bits clear: one in 64."""

# Argon2id (RFC 9106): what is made, and what is accepted.
ARGON2_MEMORY_KIB = 128 * 1024
ARGON2_ITERATIONS = 3
ARGON2_LANES = 4
ARGON2_FLOOR_KIB = 64 * 1024
ARGON2_FLOOR_ITERATIONS = 3
ARGON2_CAP_KIB = 2 * 1024 * 1024
ARGON2_CAP_ITERATIONS = 64
ARGON2_CAP_LANES = 64

# HKDF-SHA256 info strings.
PREFIX = b"snapfs/1/"
OBJECT_LABELS = {
    DATA_VOLUME: PREFIX + b"object/data",
    TREE_VOLUME: PREFIX + b"object/tree",
    EVENT: PREFIX + b"object/event",
    CONFIG: PREFIX + b"object/config",
    KEY_SLOT: PREFIX + b"object/key slot",
}
OBJECT_KEYS = {DATA_VOLUME: b"data", TREE_VOLUME: b"tree", EVENT: b"event", CONFIG: b"config"}
"""The named key of the bundle that seals each kind of object."""
NAMED_KEYS = (b"id", b"chunker", b"data", b"tree", b"event", b"config", b"index")
SEALING_KEYS = tuple(OBJECT_KEYS.values())
"""Those of NAMED_KEYS that have epochs."""
EPOCHS_LIMIT = 256
"""Readers refuse a bundle of more; each takes some 200 bytes in every key slot."""
ROTATION, BEFORE_ROTATION = b"rotation", b"before rotation"
"""Entries of the bundle that are no keys: names of events, of the epoch that they began."""
FEATURE_EPOCHS = b"key epochs"
"""A read feature of the config: some objects are sealed with keys of later epochs than 1."""
READ_FEATURES = (FEATURE_EPOCHS,)

# Keys that can only back up (wrap kind 2).
ROLE_EVERYTHING = 1
ROLE_BACKUP_ONLY = 2
BACKUP_ONLY_LABELS = {
    DATA_VOLUME: PREFIX + b"backup-only/object/data",
    TREE_VOLUME: PREFIX + b"backup-only/object/tree",
    EVENT: PREFIX + b"backup-only/object/event",
}
"""Of the keys of the objects that such a client makes."""
RECIPIENT_LABELS = {
    DATA_VOLUME: PREFIX + b"backup-only/recipient/data",
    TREE_VOLUME: PREFIX + b"backup-only/recipient/tree",
    EVENT: PREFIX + b"backup-only/recipient/event",
}
"""Of the private keys, derived from the named keys of the same kind."""
EPHEMERAL_LABEL = PREFIX + b"backup-only/ephemeral"
OWN_PAGES_LABEL = PREFIX + b"backup-only/own pages"
OWN_PAGE_LABEL = PREFIX + b"backup-only/own page"
"""Of what such a machine keeps of its own last snapshots, never in the repository."""
SIGNATURE_LABEL = PREFIX + b"backup-only/signature"
PUBLIC_KEYS = {DATA_VOLUME: b"data public", TREE_VOLUME: b"tree public", EVENT: b"event public"}
"""What the bundle of such a client has in place of the named key."""
BACKUP_ONLY_KEYS = (b"id", b"chunker", b"index", *PUBLIC_KEYS.values(), b"signing", b"client", b"host")

ID_LABELS = {
    Kind.CONTENT: PREFIX + b"id/content",
    Kind.DIRECTORY: PREFIX + b"id/directory",
    Kind.LIST: PREFIX + b"id/list",
    Kind.HOLES: PREFIX + b"id/holes",
    Kind.XATTR: PREFIX + b"id/xattr",
}
SNAPSHOT_ID_LABEL = PREFIX + b"id/snapshot"
PAGE_LABEL = PREFIX + b"page"
"""Of the key (derived from "id") that hashes names and ids for paging."""
INDEX_TAG_LABEL = PREFIX + b"index tag"
FINGERPRINT_LABEL = PREFIX + b"fingerprint"
"""Of what a machine remembers a repository by that it made: 16 bytes from the key "id", never in the repository."""
SALT_LABEL = PREFIX + b"salt"
GEAR_LABEL = b"snapfs/1/gear table"
"""Message hashed by keyed BLAKE3 (key "chunker") into the chunker's table of 256 little-endian 64-bit words."""
