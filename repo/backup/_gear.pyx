# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, embedsignature=True
"""The chunker's inner loop, compiled: one FastCDC cut.  Everything else about cutting is in chunker.py.

tests/support/gear.py says the same in plain Python and is the reference; the two must agree on every input.
"""

from libc.stdint cimport uint64_t


cdef Py_ssize_t _scan(
    const unsigned char *data,
    Py_ssize_t at,
    Py_ssize_t stop,
    const uint64_t *table,
    uint64_t mask,
    uint64_t *state,
) noexcept nogil:
    """The position after the first byte from `at` on where the hash meets the mask, or -1."""
    cdef uint64_t h = state[0]
    while stop - at >= 4:  # unrolled: half as fast again, measured; gcc does not do it where a loop has several exits
        h = (h << 1) + table[data[at]]
        if not (h & mask):
            return at + 1
        h = (h << 1) + table[data[at + 1]]
        if not (h & mask):
            return at + 2
        h = (h << 1) + table[data[at + 2]]
        if not (h & mask):
            return at + 3
        h = (h << 1) + table[data[at + 3]]
        if not (h & mask):
            return at + 4
        at += 4
    while at < stop:
        h = (h << 1) + table[data[at]]
        at += 1
        if not (h & mask):
            return at
    state[0] = h
    return -1


def cut(
    const unsigned char[::1] data,
    Py_ssize_t start,
    Py_ssize_t end,
    const uint64_t[::1] table,
    Py_ssize_t minimum,
    Py_ssize_t average,
    Py_ssize_t maximum,
    uint64_t mask_small,
    uint64_t mask_large,
):
    """Where the chunk that begins at `start` ends: a position in (start, end], or `end` if nothing cuts before it.

    Positions and lengths are bytes.  The GIL is released: several threads cut at once.
    """
    if not 0 <= start <= end <= data.shape[0]:
        raise ValueError(f"range {start}..{end} is outside of {data.shape[0]} bytes")
    if table.shape[0] != 256:
        raise ValueError(f"the table has {table.shape[0]} entries, not 256")
    if not 0 <= minimum <= average <= maximum:
        raise ValueError(f"sizes out of order: {minimum}, {average}, {maximum}")
    cdef Py_ssize_t size = end - start
    if size <= minimum:
        return end
    cdef Py_ssize_t middle = start + min(size, average)
    cdef Py_ssize_t limit = start + min(size, maximum)
    cdef Py_ssize_t found
    cdef uint64_t state = 0
    with nogil:
        found = _scan(&data[0], start + minimum, middle, &table[0], mask_small, &state)
        if found < 0:
            found = _scan(&data[0], middle, limit, &table[0], mask_large, &state)
    return limit if found < 0 else found
