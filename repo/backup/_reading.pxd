cdef extern from "<sys/stat.h>" nogil:
    struct timespec:
        long long tv_sec
        long tv_nsec
    struct c_stat "stat":
        unsigned long long st_dev, st_ino, st_nlink, st_rdev
        unsigned int st_mode, st_uid, st_gid
        long long st_size, st_blocks
        timespec st_atim, st_mtim, st_ctim


cdef class Status:
    cdef c_stat st
