# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, embedsignature=True
"""Many entries of one directory in one call: their status, or the content of small files, with the GIL released once.

One file at a time costs six system calls, and after each the thread must ask for the GIL again while others compress; that
took longer than the calls.  Only what goes smoothly is done here.  A file that is anything else (not regular, sparse, too
long, without permission, with extended attributes, changed while it was read) is left to entries.py, which says why.
"""

from libc.errno cimport ENODATA, ENOSYS, EOPNOTSUPP, errno
from libc.stdlib cimport free, malloc

import sys

cdef extern from *:
    """
    #include <fcntl.h>
    #include <sys/stat.h>
    #include <sys/xattr.h>
    #include <unistd.h>
    """
    int fstatat(int, const char *, c_stat *, int) nogil
    int fstat(int, c_stat *) nogil
    int openat(int, const char *, int, ...) nogil
    ssize_t read(int, void *, size_t) nogil
    ssize_t flistxattr(int, char *, size_t) nogil
    int close(int) nogil
    bint S_ISREG(unsigned int) nogil
    bint S_ISDIR(unsigned int) nogil
    int AT_SYMLINK_NOFOLLOW, O_CLOEXEC, O_NOATIME, O_NOCTTY, O_NOFOLLOW, O_NONBLOCK, O_RDONLY


cdef object _ns(timespec *at):
    if -9000000000 < at.tv_sec < 9000000000:
        return at.tv_sec * 1000000000 + at.tv_nsec
    return <object> at.tv_sec * 1000000000 + at.tv_nsec  # after the year 2255 it fits no 64 bits


cdef class Status:
    """What os.stat_result tells, under the same names; times only in ns."""

    @property
    def st_mode(self): return self.st.st_mode
    @property
    def st_ino(self): return self.st.st_ino
    @property
    def st_dev(self): return self.st.st_dev
    @property
    def st_nlink(self): return self.st.st_nlink
    @property
    def st_uid(self): return self.st.st_uid
    @property
    def st_gid(self): return self.st.st_gid
    @property
    def st_rdev(self): return self.st.st_rdev
    @property
    def st_size(self): return self.st.st_size
    @property
    def st_blocks(self): return self.st.st_blocks
    @property
    def st_atime_ns(self): return _ns(&self.st.st_atim)
    @property
    def st_mtime_ns(self): return _ns(&self.st.st_mtim)
    @property
    def st_ctime_ns(self): return _ns(&self.st.st_ctim)


cdef Status _status(c_stat *st):
    cdef Status status = Status.__new__(Status)
    status.st = st[0]
    return status


cdef class _Names:
    """Pointers to names that their list keeps alive."""

    cdef const char **at
    cdef Py_ssize_t count
    cdef list names

    def __cinit__(self, list names not None):
        self.names = list(names)
        self.count = len(names)
        self.at = <const char **> malloc(max(self.count, 1) * sizeof(char *))
        if self.at == NULL:
            raise MemoryError
        cdef Py_ssize_t i
        cdef bytes name
        for i in range(self.count):
            name = self.names[i]
            self.at[i] = name

    def __dealloc__(self):
        free(self.at)


def look(int dir_fd, list names):
    """lstat of each name in an open directory up to the first that is a directory: a Status, or the errno (int)."""
    cdef _Names wanted = _Names(names)
    cdef Py_ssize_t i, count = wanted.count
    cdef c_stat *found = <c_stat *> malloc(max(wanted.count, 1) * sizeof(c_stat))
    cdef int *failed = <int *> malloc(max(wanted.count, 1) * sizeof(int))
    try:
        if found == NULL or failed == NULL:
            raise MemoryError
        with nogil:
            for i in range(wanted.count):
                failed[i] = 0
                if fstatat(dir_fd, wanted.at[i], &found[i], AT_SYMLINK_NOFOLLOW):
                    failed[i] = errno
                elif S_ISDIR(found[i].st_mode):
                    count = i + 1
                    break
        return [failed[i] if failed[i] else _status(&found[i]) for i in range(count)]
    finally:
        free(found)
        free(failed)


cdef int _FLAGS = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC


cdef bint _same(c_stat *a, c_stat *b) noexcept nogil:
    return (
        a.st_dev == b.st_dev and a.st_ino == b.st_ino and a.st_size == b.st_size
        and a.st_mtim.tv_sec == b.st_mtim.tv_sec and a.st_mtim.tv_nsec == b.st_mtim.tv_nsec
        and a.st_ctim.tv_sec == b.st_ctim.tv_sec and a.st_ctim.tv_nsec == b.st_ctim.tv_nsec
    )


cdef Py_ssize_t _read(
    int dir_fd, const char *name, unsigned int euid, c_stat *st, char *to, Py_ssize_t room
) noexcept nogil:
    """The length of the file, whose bytes are then in `to`; -1 for whatever did not go smoothly."""
    cdef int fd = -1
    cdef c_stat after
    cdef Py_ssize_t got = 0, size = -1
    cdef ssize_t n
    if euid == 0 or euid == st.st_uid:
        fd = openat(dir_fd, name, _FLAGS | O_NOATIME)
    if fd < 0:
        fd = openat(dir_fd, name, _FLAGS)
    if fd < 0:
        return -1
    if fstat(fd, st) == 0 and S_ISREG(st.st_mode) and st.st_size <= room:
        n = flistxattr(fd, NULL, 0)
        if n == 0 or (n < 0 and (errno == EOPNOTSUPP or errno == ENODATA or errno == ENOSYS)):
            size = st.st_size
            while got < size:
                n = read(fd, to + got, size - got)
                if n <= 0:
                    size = -1
                    break
                got += n
            if size >= 0 and (fstat(fd, &after) or not _same(st, &after)):
                size = -1
    close(fd)
    return size


def read_small(int dir_fd, list names, list statuses, unsigned int euid, unsigned char[::1] buffer):
    """The whole content of small files: (Status of the open file, bytes) for each, or None for one to be read with more care.

    `statuses` are what look() said of them; a file that has become longer since is None.  The sum of their sizes must not exceed
    the buffer's.
    """
    cdef _Names wanted = _Names(names)
    cdef Py_ssize_t i, room = 0
    cdef Status known
    if len(statuses) != wanted.count:
        raise ValueError("as many statuses as names, please")
    cdef c_stat *found = <c_stat *> malloc(max(wanted.count, 1) * sizeof(c_stat))
    cdef Py_ssize_t *start = <Py_ssize_t *> malloc((wanted.count + 1) * sizeof(Py_ssize_t))
    cdef Py_ssize_t *length = <Py_ssize_t *> malloc(max(wanted.count, 1) * sizeof(Py_ssize_t))
    cdef char *at = <char *> &buffer[0]
    try:
        if found == NULL or start == NULL or length == NULL:
            raise MemoryError
        for i in range(wanted.count):
            known = <Status?> statuses[i]
            found[i] = known.st
            start[i] = room
            room += known.st.st_size
        start[wanted.count] = room
        if room > buffer.shape[0]:
            raise ValueError("more than the buffer holds")
        for name in names:
            sys.audit("open", name, None, _FLAGS)  # as os.open does
        with nogil:
            for i in range(wanted.count):
                length[i] = _read(dir_fd, wanted.at[i], euid, &found[i], at + start[i], start[i + 1] - start[i])
        return [
            None if length[i] < 0 else (_status(&found[i]), <bytes> at[start[i] : start[i] + length[i]])
            for i in range(wanted.count)
        ]
    finally:
        free(found)
        free(start)
        free(length)
