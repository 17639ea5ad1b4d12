from collections.abc import Callable

from snapfs.repo.backup._reading import Status

class EarlierPage:
    version: int
    """1, or 0 for any other."""
    level: int
    left: int
    """Entries still to come."""
    def __init__(self, page: bytes, where: str = "") -> None: ...
    def name(self) -> bytes: ...
    def take(self) -> bytes: ...
    def unchanged(
        self,
        names: list[bytes],
        statuses: list[Status | int],
        user_name: Callable[[int], bytes | None],
        group_name: Callable[[int], bytes | None],
    ) -> tuple[int, int, int]: ...
