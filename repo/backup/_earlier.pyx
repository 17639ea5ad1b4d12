# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, embedsignature=True
"""A directory page of an earlier snapshot, walked without decoding it: most entries are only to be found unchanged.

Knows just enough of MessagePack and of the Node record (docs/format.md, section 6) to find its fields and the end of it.
tests/test_repo_earlier.py holds it against records.decode_node and the rule in entries.py.
"""

from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcmp

from ._reading cimport Status, c_stat

from snapfs.repo.errors import Damaged

cdef extern from "<sys/stat.h>":
    bint S_ISREG(unsigned int)

cdef enum:
    FILE = 1
    UID = 3
    DEEPEST = 16


cdef class EarlierPage:
    """Level-0 entries of a directory page, in order.  `level` above 0: a page of branches, to be decoded by others."""

    cdef bytes page
    cdef const unsigned char *data
    cdef Py_ssize_t at, end
    cdef readonly Py_ssize_t left
    cdef readonly int level, version
    cdef str where
    cdef unsigned int uid, gid
    cdef bint named
    cdef bytes user, group

    def __init__(self, bytes page not None, str where=""):
        """Raises Damaged; `where` names the page then."""
        self.page = page
        self.where = where
        self.data = page
        self.at = 0
        self.end = len(page)
        cdef int64_t fields, version, level, count
        if (
            not self.array(&self.at, &fields) or fields < 3
            or not self.integer(&self.at, &version) or not self.integer(&self.at, &level)
            or not self.array(&self.at, &count) or not 0 <= level <= 16
        ):
            raise Damaged("a page that does not decode", where)
        self.version = version if version == 1 else 0
        self.level = level
        self.left = 0 if level else count

    def name(self):
        """Of the next entry.  Raises Damaged."""
        cdef Py_ssize_t at = self.at, start, length
        cdef int64_t fields
        if not self.array(&at, &fields) or not fields or not self.binary(&at, &start, &length):
            raise Damaged("an entry that does not decode", self.where)
        return self.page[start : start + length]

    def take(self):
        """The encoding of the next entry, which is passed by.  Raises Damaged."""
        cdef Py_ssize_t start = self.at, at = self.at
        if self.left <= 0 or not self.skip(&at, 0):
            raise Damaged("an entry that does not decode", self.where)
        self.at = at
        self.left -= 1
        return self.page[start:at]

    def unchanged(self, list names, list statuses, user_name, group_name):
        """Pass by the entries that are, in the same order, regular files of these names with one name each, unchanged since.

        Returns (how many, their bytes, how many have extended attributes).  Ends at whatever else there is, and at the end of the page.
        """
        cdef Py_ssize_t count = 0, most = min(len(names), len(statuses)), at
        cdef int64_t size = 0
        cdef int with_xattrs = 0
        cdef bint has_xattrs
        cdef bytes name
        cdef object status
        while self.left and count < most:
            status = statuses[count]
            if type(status) is not Status:
                break
            name = names[count]
            at = self.at
            has_xattrs = False
            if not self.is_same(&at, name, &(<Status> status).st, user_name, group_name, &has_xattrs):
                break
            self.at = at
            self.left -= 1
            count += 1
            size += (<Status> status).st.st_size
            with_xattrs += has_xattrs
        return count, size, with_xattrs

    cdef bint is_same(
        self, Py_ssize_t *at, bytes name, c_stat *st, user_name, group_name, bint *has_xattrs
    ) except -1:
        cdef int64_t fields, number, i
        cdef Py_ssize_t start, length
        if not S_ISREG(st.st_mode) or st.st_nlink != 1:
            return False
        if not self.array(at, &fields) or fields < 10 or not self.binary(at, &start, &length):
            return False
        if length != len(name) or memcmp(self.data + start, <const char *> name, length):
            return False
        if not self.integer(at, &number) or number != FILE or not self.integer(at, &number):  # type, mode
            return False
        if not self.integer(at, &number) or number != st.st_uid or not self.integer(at, &number) or number != st.st_gid:
            return False
        if not self.named or self.uid != st.st_uid or self.gid != st.st_gid:
            self.uid, self.user = st.st_uid, user_name(st.st_uid)
            self.gid, self.group = st.st_gid, group_name(st.st_gid)
            self.named = True
        if not self.equal(at, self.user) or not self.equal(at, self.group):
            return False
        if not self.time(at, st.st_mtim.tv_sec, st.st_mtim.tv_nsec) or not self.time(at, st.st_ctim.tv_sec, st.st_ctim.tv_nsec):
            return False
        if not self.integer(at, &number) or number != st.st_size:
            return False
        for i in range(10, fields):
            if i == 14:
                has_xattrs[0] = at[0] < self.end and self.data[at[0]] != 0xC0
            elif i == 18:  # changed while it was read: is to be read again
                if not self.integer(at, &number) or number:
                    return False
                continue
            elif i == 15 or i >= 19:  # hard links, access times, and whatever a later version adds
                if at[0] >= self.end or self.data[at[0]] != 0xC0:
                    return False
            if not self.skip(at, 0):
                return False
        return True

    cdef bint equal(self, Py_ssize_t *at, bytes expected) noexcept:
        """The next value is these bytes, or nil for None."""
        cdef Py_ssize_t start, length
        if expected is None:
            if at[0] < self.end and self.data[at[0]] == 0xC0:
                at[0] += 1
                return True
            return False
        return (
            self.binary(at, &start, &length) and length == len(expected)
            and not memcmp(self.data + start, <const char *> expected, length)
        )

    cdef bint time(self, Py_ssize_t *at, int64_t seconds, int64_t ns) noexcept:
        """The next value is this time.  One that fits no 64 bits is left to Python."""
        cdef int64_t number
        return (
            -9000000000 < seconds < 9000000000 and self.integer(at, &number) and number == seconds * 1000000000 + ns
        )

    # ---- MessagePack: each moves `at` behind a value of its type, or says no -----------------------------------------

    cdef bint number(self, Py_ssize_t *at, int width, uint64_t *value) noexcept:
        cdef int i
        if self.end - at[0] < width:
            return False
        value[0] = 0
        for i in range(width):
            value[0] = value[0] << 8 | self.data[at[0] + i]
        at[0] += width
        return True

    cdef bint integer(self, Py_ssize_t *at, int64_t *value) noexcept:
        """Of those that fit 64 bits with a sign."""
        cdef unsigned char head
        cdef uint64_t raw
        cdef int width
        if at[0] >= self.end:
            return False
        head = self.data[at[0]]
        at[0] += 1
        if head < 0x80:
            value[0] = head
            return True
        if head >= 0xE0:
            value[0] = <int64_t> head - 256
            return True
        if not 0xCC <= head <= 0xD3:
            return False
        width = 1 << (head & 3)
        if not self.number(at, width, &raw):
            return False
        if head >= 0xD0 and width < 8 and raw >> (8 * width - 1):
            raw |= <uint64_t> -1 << (8 * width)
        value[0] = <int64_t> raw
        return head >= 0xD0 or value[0] >= 0

    cdef bint length(self, Py_ssize_t *at, int width, int64_t *value) noexcept:
        cdef uint64_t raw
        if not self.number(at, width, &raw):
            return False
        value[0] = <int64_t> raw
        return True

    cdef bint array(self, Py_ssize_t *at, int64_t *count) noexcept:
        cdef unsigned char head
        if at[0] >= self.end:
            return False
        head = self.data[at[0]]
        at[0] += 1
        if head & 0xF0 == 0x90:
            count[0] = head & 0x0F
            return True
        return (head == 0xDC and self.length(at, 2, count)) or (head == 0xDD and self.length(at, 4, count))

    cdef bint binary(self, Py_ssize_t *at, Py_ssize_t *start, Py_ssize_t *size) noexcept:
        cdef unsigned char head
        cdef int64_t length
        if at[0] >= self.end:
            return False
        head = self.data[at[0]]
        at[0] += 1
        if not 0xC4 <= head <= 0xC6 or not self.length(at, 1 << (head - 0xC4), &length) or length > self.end - at[0]:
            return False
        start[0] = at[0]
        size[0] = length
        at[0] += length
        return True

    cdef bint skip(self, Py_ssize_t *at, int depth) noexcept:
        """Any of the values that occur in records: nil, bool, int, bin, array."""
        cdef unsigned char head
        cdef int64_t count, i
        cdef Py_ssize_t start, length
        if at[0] >= self.end or depth > DEEPEST:
            return False
        head = self.data[at[0]]
        if head < 0x80 or head >= 0xE0 or head == 0xC0 or head == 0xC2 or head == 0xC3:
            at[0] += 1
            return True
        if 0xC4 <= head <= 0xC6:
            return self.binary(at, &start, &length)
        if 0xCC <= head <= 0xD3:
            at[0] += 1 + (1 << (head & 3))
            return at[0] <= self.end
        if not self.array(at, &count):
            return False
        for i in range(count):
            if not self.skip(at, depth + 1):
                return False
        return True
