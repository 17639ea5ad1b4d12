"""Does the memory of this process hold a secret?  Run as a process of its own, which is given it only in disguise.

python -m support.memory password MASKED ARGUMENTS...    run a command line of snapfs, wait a second, look
python -m support.memory keys FOLDER                     open, back up, read, close, and look for the keys
python -m support.memory control MASKED                  what is there is found
"""

from __future__ import annotations

import gc
import sys
import time
from pathlib import Path

_MASK = 0x5A
_TABLE = bytes(byte ^ _MASK for byte in range(256))
_CHUNK = 1 << 20


def masked(secret: bytes) -> bytes:
    """A copy that is not found as the secret; masked again it is the secret."""
    return secret.translate(_TABLE)


def hits(*disguised: bytes) -> list[str]:
    """Where in memory there is a secret that looks so in disguise.  Looking makes no copy of it that would be found."""
    found = []
    with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", buffering=0) as memory:
        for line in maps:
            part = line.split()
            begin, end = (int(text, 16) for text in part[0].split("-"))
            if "r" not in part[1] or part[-1].startswith(("[vvar", "[vsyscall")):
                continue
            buffer = bytearray(_CHUNK + max(map(len, disguised)))
            for at in range(begin, end, _CHUNK):
                view = memoryview(buffer)[: min(len(buffer), end - at)]
                memory.seek(at)
                try:
                    got = memory.readinto(view) or 0
                except OSError:
                    break
                seen = buffer.translate(_TABLE)[:got]
                view[:] = bytes(len(view))
                found += [
                    f"number {number}, {part[-1] if len(part) > 5 else 'anonymous'} at {at + seen.find(one):#x}"
                    for number, one in enumerate(disguised, 1)
                    if one in seen
                ]
    return found


def main(what: str, *args: str) -> int:
    if what == "control":
        secret = masked(bytes.fromhex(args[0]))
        return 0 if hits(masked(secret)) else 1
    if what == "password":
        from snapfs.cli.main import run

        code = run(args[1:])
        time.sleep(1)
        gc.collect()
        print("looked", code, *hits(bytes.fromhex(args[0])), sep="\n", file=sys.stderr)
        return 0
    from support import repositories as repos

    folder = Path(args[0])
    with repos.open_(folder) as repository:
        # BLAKE3 is given the chunker's key as it is, and leaves it on its stack.
        keys = [masked(key.key) for key in repository.slots.bundle.keys if key.name != b"chunker"]
        print(
            len({line.split(",")[0] for line in hits(*keys)}),
            "of",
            len(keys),
            "keys are seen while it is open",
        )
    repos.snapshot(folder, folder / "source")
    with repos.open_(folder) as repository:
        for snapshot in repository.snapshots():
            repository.trees.resolve(snapshot.record.root, b"/")
    gc.collect()
    print("afterwards", *hits(*keys))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
