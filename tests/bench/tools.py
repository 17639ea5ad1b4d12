"""How each program is called.  Every one gets a home of its own, so that none finds another's caches."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

PASSWORD = "measured with this"


class Tool:
    """`work` holds the repository, caches and everything else; it is gone before each round."""

    name = ""

    def __init__(self, work: Path) -> None:
        self.home = work / self.name
        self.repository = self.home / "repository"
        folders = {
            f"XDG_{kind}_HOME": str(self.home / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA", "STATE")
        }
        self.environment = {**os.environ, **folders, "HOME": str(self.home), "LC_ALL": "C.UTF-8"}

    @property
    def program(self) -> str | None:
        return os.environ.get(self.name.upper()) or shutil.which(self.name)

    def command(self, *args: str | Path) -> list[str]:
        assert self.program is not None
        return [self.program, *(os.fspath(arg) for arg in args)]

    def version(self) -> list[str]:
        return self.command("--version")

    def init(self) -> list[str]:
        raise NotImplementedError

    def backup(self, source: Path) -> list[str]:
        raise NotImplementedError

    def restore(self, target: Path) -> list[str]:
        """Run in `target`."""
        raise NotImplementedError

    def check(self) -> list[str]:
        raise NotImplementedError

    def mount(self, top: Path, source: Path) -> list[str]:
        """Stays in the foreground."""
        raise NotImplementedError

    mounts_one = False
    """What `mount` shows is one snapshot."""

    def mount_one(self, top: Path, source: Path) -> list[str] | None:
        """Mounts the newest backup of a source alone, at `top`; None where that is no other thing, or cannot be."""
        return None

    def mounted(self, top: Path, source: Path) -> Path:
        """Where the newest backup of a source is seen."""
        raise NotImplementedError


class Snapfs(Tool):
    name = "snapfs"

    def __init__(self, work: Path) -> None:
        super().__init__(work)
        self.environment |= {"SNAPFS_PASSWORD": PASSWORD, "SNAPFS_REPOSITORY": str(self.repository)}

    def init(self) -> list[str]:
        return self.command("init")

    def backup(self, source: Path) -> list[str]:
        return self.command("backup", "--quiet", source)

    def restore(self, target: Path) -> list[str]:
        return self.command("restore", "--quiet", "latest", "--target", target)

    def check(self) -> list[str]:
        return self.command("check", "--read-data")

    def mount(self, top: Path, source: Path) -> list[str]:
        return self.command("mount", "--foreground", top)

    def mount_one(self, top: Path, source: Path) -> list[str] | None:
        return self.command("mount", "--foreground", top, f"latest:{source}")

    def mounted(self, top: Path, source: Path) -> Path:
        return top / "snapshots/latest" / source.relative_to("/")


class Restic(Snapfs):
    name = "restic"

    def __init__(self, work: Path) -> None:
        super().__init__(work)
        self.environment |= {"RESTIC_PASSWORD": PASSWORD, "RESTIC_REPOSITORY": str(self.repository)}

    def version(self) -> list[str]:
        return self.command("version")

    def mount(self, top: Path, source: Path) -> list[str]:
        return self.command("mount", top)

    def mount_one(self, top: Path, source: Path) -> list[str] | None:
        return None


class Borg(Tool):
    name = "borg"
    mounts_one = True

    def __init__(self, work: Path) -> None:
        super().__init__(work)
        self.environment |= {
            "BORG_PASSPHRASE": PASSWORD, "BORG_REPO": str(self.repository), "BORG_BASE_DIR": str(self.home),
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        }  # fmt: skip
        self._archives = 0

    def init(self) -> list[str]:
        return self.command("init", "-e", "repokey-blake2")

    def backup(self, source: Path) -> list[str]:
        self._archives += 1
        return self.command("create", "-C", "zstd,3", f"::{self._archives}", source)

    def restore(self, target: Path) -> list[str]:
        return self.command("extract", f"::{self._archives}")

    def check(self) -> list[str]:
        return self.command("check", "--verify-data")

    def mount(self, top: Path, source: Path) -> list[str]:
        return self.command("mount", "-f", f"::{self._archives}", top)

    def mounted(self, top: Path, source: Path) -> Path:
        return top / source.relative_to("/")


TOOLS: dict[str, type[Tool]] = {tool.name: tool for tool in (Snapfs, Restic, Borg)}
