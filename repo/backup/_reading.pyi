class Status:
    st_mode: int
    st_ino: int
    st_dev: int
    st_nlink: int
    st_uid: int
    st_gid: int
    st_rdev: int
    st_size: int
    st_blocks: int
    st_atime_ns: int
    st_mtime_ns: int
    st_ctime_ns: int

def look(dir_fd: int, names: list[bytes]) -> list[Status | int]: ...
def read_small(
    dir_fd: int, names: list[bytes], statuses: list[Status], euid: int, buffer: bytearray
) -> list[tuple[Status, bytes] | None]: ...
