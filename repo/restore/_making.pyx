# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, embedsignature=True
"""Many new small files in one directory in one call, without the GIL: other threads read and open what comes next meanwhile.

Only what goes smoothly is done here: a file that meets any error is taken away again, and left to entries.py, which says why.
"""

from libc.errno cimport EINTR, errno
from libc.stdlib cimport free, malloc

cdef extern from *:
    """
    #include <fcntl.h>
    #include <sys/stat.h>
    #include <unistd.h>
    """
    struct timespec:
        long long tv_sec
        long tv_nsec
    int openat(int, const char *, int, ...) nogil
    ssize_t c_write "write"(int, const void *, size_t) nogil
    int fchown(int, unsigned int, unsigned int) nogil
    int fchmod(int, unsigned int) nogil
    int futimens(int, const timespec *) nogil
    int unlinkat(int, const char *, int) nogil
    int close(int) nogil
    int O_CLOEXEC, O_CREAT, O_EXCL, O_NOFOLLOW, O_WRONLY


cdef struct Wanted:
    const char *name
    const char *data
    Py_ssize_t size
    unsigned int mode, uid, gid
    timespec times[2]
    int failed


cdef int _fill(int fd, Wanted *file) noexcept nogil:
    cdef Py_ssize_t done = 0
    cdef ssize_t n
    while done < file.size:
        n = c_write(fd, file.data + done, file.size - done)
        if n < 0 and errno != EINTR:
            return errno
        if n > 0:
            done += n
    if fchown(fd, file.uid, file.gid) or fchmod(fd, file.mode) or futimens(fd, file.times):
        return errno
    return 0


cdef int _make(int dir_fd, Wanted *file) noexcept nogil:
    cdef int failed, fd = openat(dir_fd, file.name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0o600)
    if fd < 0:
        return errno
    failed = _fill(fd, file)
    if close(fd) and not failed:
        failed = errno
    if failed:
        unlinkat(dir_fd, file.name, 0)
    return failed


def make_files(int dir_fd, list files):
    """Make files that are not there yet: (name, content, mode, uid, gid, atime, mtime) each, times in ns.

    Returns an errno for each; 0: it is there as it should be, owner, mode and times as well; else nothing of it is.  Raises
    OverflowError for numbers that the system cannot hold, before anything is made.
    """
    cdef Py_ssize_t i, count = len(files)
    cdef bytes name, data
    cdef Wanted *wanted = <Wanted *> malloc(max(count, 1) * sizeof(Wanted))
    if wanted == NULL:
        raise MemoryError
    try:
        for i in range(count):
            name, data, mode, uid, gid, atime, mtime = files[i]
            wanted[i].name = name
            wanted[i].data = data
            wanted[i].size = len(data)
            wanted[i].mode, wanted[i].uid, wanted[i].gid = mode, uid, gid
            wanted[i].times[0].tv_sec, wanted[i].times[0].tv_nsec = divmod(atime, 1000000000)
            wanted[i].times[1].tv_sec, wanted[i].times[1].tv_nsec = divmod(mtime, 1000000000)
        with nogil:
            for i in range(count):
                wanted[i].failed = _make(dir_fd, &wanted[i])
        return [wanted[i].failed for i in range(count)]
    finally:
        free(wanted)
