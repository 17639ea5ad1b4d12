# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, embedsignature=True
"""What parity does with each byte of a volume, compiled.  Everything else about it is in parity.py.

The checksum is XXH64 (Yann Collet, https://github.com/Cyan4973/xxHash, doc/xxhash_spec.md), seed 0, of pieces whose length is a
multiple of 32: then its last steps have nothing to do.  A library would have to be called for every 4 KiB.
tests/support/parity.py says the same in plain Python and is the reference.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

cdef extern from *:
    """
    #include <endian.h>
    #define PRIME_1 0x9E3779B185EBCA87ULL
    #define PRIME_2 0xC2B2AE3D27D4EB4FULL
    #define PRIME_3 0x165667B19E3779F9ULL
    #define PRIME_4 0x85EBCA77C2B2AE63ULL
    """
    uint64_t PRIME_1, PRIME_2, PRIME_3, PRIME_4
    uint64_t le64toh(uint64_t) noexcept nogil
    uint64_t htole64(uint64_t) noexcept nogil


cdef inline uint64_t _rotated(uint64_t value, int bits) noexcept nogil:
    return (value << bits) | (value >> (64 - bits))


cdef inline uint64_t _round(uint64_t state, uint64_t lane) noexcept nogil:
    return _rotated(state + lane * PRIME_2, 31) * PRIME_1


cdef inline uint64_t _lane(const unsigned char *data) noexcept nogil:
    cdef uint64_t value
    memcpy(&value, data, 8)
    return le64toh(value)


cdef uint64_t _xxh64(const unsigned char *data, Py_ssize_t length) noexcept nogil:
    cdef uint64_t a = PRIME_1 + PRIME_2, b = PRIME_2, c = 0, d = 0 - PRIME_1
    cdef uint64_t h
    cdef const unsigned char *end = data + length
    while data < end:
        a = _round(a, _lane(data))
        b = _round(b, _lane(data + 8))
        c = _round(c, _lane(data + 16))
        d = _round(d, _lane(data + 24))
        data += 32
    h = _rotated(a, 1) + _rotated(b, 7) + _rotated(c, 12) + _rotated(d, 18)
    h = (h ^ _round(0, a)) * PRIME_1 + PRIME_4
    h = (h ^ _round(0, b)) * PRIME_1 + PRIME_4
    h = (h ^ _round(0, c)) * PRIME_1 + PRIME_4
    h = (h ^ _round(0, d)) * PRIME_1 + PRIME_4
    h += <uint64_t>length
    h = (h ^ (h >> 33)) * PRIME_2
    h = (h ^ (h >> 29)) * PRIME_3
    return h ^ (h >> 32)


def checksums(const unsigned char[::1] data, Py_ssize_t block):
    """XXH64 of each `block` bytes of `data`, 8 bytes each, little-endian.  `block` is a multiple of 32, the length one of `block`.

    The interpreter's lock is kept: a frame takes microseconds, and whoever gave it up would wait for it longer than that.
    """
    if block <= 0 or block % 32 or data.shape[0] % block:
        raise ValueError(f"{data.shape[0]} bytes in blocks of {block}")
    cdef Py_ssize_t count = data.shape[0] // block
    cdef bytes found = PyBytes_FromStringAndSize(NULL, 8 * count)
    cdef char *out = PyBytes_AS_STRING(found)
    cdef Py_ssize_t i
    cdef uint64_t one
    for i in range(count):
        one = htole64(_xxh64(&data[i * block], block))
        memcpy(out + 8 * i, &one, 8)
    return found


def fold(unsigned char[::1] into, Py_ssize_t at, const unsigned char[::1] data):
    """XOR `data` into `into`, from offset `at` on, and from its beginning again whenever its end is reached."""
    cdef Py_ssize_t size = into.shape[0], left = data.shape[0], done = 0, now, i
    if not 0 <= at < size and left:
        raise ValueError(f"offset {at} of {size} bytes")
    cdef unsigned char *to
    cdef const unsigned char *source
    while left:
        now = min(left, size - at)
        to = &into[at]
        source = &data[done]
        for i in range(now):
            to[i] ^= source[i]
        done += now
        left -= now
        at = 0
