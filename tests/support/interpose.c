/* Stands between a process and libc (LD_PRELOAD): counts the calls below one folder, and makes a fault happen at the n-th.
 *
 * It sees what the `os` module does not: the writes of LMDB, of compiled modules and of buffered files.  Until arm() is called
 * everything passes.  What the numbers mean is in interpose.py. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { CREATE = 1, WRITE, FSYNC, RENAME, MKDIR, UNLINK, RMDIR, TRUNCATE, LINK, OPEN, READ };
enum { NOTHING, DIE, FAIL, SHORT, FAKE, CUT, CLOCK, WRONG };
enum { CHANGES = 1, READS = 2, LOOKS = 4 };

static struct {
    char folder[4096];
    size_t length;
    int action, what, param, power, log;
    long first, last;
    long *count;
    long long clock_jump;
} on;
static volatile int armed, dead;
static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

void arm(const char *folder, int what, long first, long last, int action, int param, int power, int log, long *count) {
    snprintf(on.folder, sizeof on.folder, "%s", folder);
    on.length = strlen(on.folder);
    on.what = what, on.first = first, on.last = last, on.action = action, on.param = param, on.power = power, on.log = log;
    on.count = count;
    armed = 1;
}

static int below(const char *path) {
    return strncmp(path, on.folder, on.length) == 0 && (path[on.length] == '/' || path[on.length] == 0);
}

/* Whether a descriptor, or a path beside one, lies below the folder; its absolute name into `name`. */
static int here(int fd, const char *path, char *name) {
    if (!armed) return 0;
    if (path && path[0] == '/') {
        snprintf(name, 4096, "%s", path);
        return below(name);
    }
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t got;
    if (fd == AT_FDCWD) got = getcwd(name, 4096) ? (ssize_t)strlen(name) : -1;
    else got = readlink(link, name, 4000);
    if (got < 0) return 0;
    name[got] = 0;
    if (got > 10 && strcmp(name + got - 10, " (deleted)") == 0) name[got - 10] = 0;
    if (path) snprintf(name + strlen(name), 4096 - strlen(name), "/%s", path);
    return below(name);
}

static void end(void) {
    dead = 1;
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) pause();
}

static void emit(const void *data, size_t size) {
    const char *at = data;
    while (size) {
        ssize_t done = syscall(SYS_write, on.log, at, size);
        if (done <= 0) _exit(99);
        at += done, size -= done;
    }
}

/* One record: kind, flags, inode, offset, length of name, of other (second name, or bytes written), then these two. */
static void record(int kind, int flags, ino_t inode, int64_t offset, const char *name, const void *other, size_t size) {
    if (on.log < 0) return;
    struct { uint32_t kind, flags; uint64_t inode; int64_t offset; uint32_t name, other; } head =
        {kind, flags, inode, offset, (uint32_t)strlen(name), (uint32_t)size};
    emit(&head, sizeof head);
    emit(name, head.name);
    emit(other, size);
}

static ino_t inode_of(int fd) {
    struct stat st;
    return syscall(SYS_fstat, fd, &st) == 0 ? st.st_ino : 0;
}

/* Counts a call; returns what to do with it.  The lock is held from here to leave(). */
static int enter(int what) {
    pthread_mutex_lock(&lock);
    while (dead) pause();
    if (!(on.what & what)) return NOTHING;
    long n = __atomic_add_fetch(on.count, 1, __ATOMIC_SEQ_CST);
    if (n < on.first || n > on.last) return NOTHING;
    if (on.action == CLOCK) {
        on.clock_jump = on.param;
        return NOTHING;
    }
    return on.action;
}

static void leave(void) { int e = errno; pthread_mutex_unlock(&lock); errno = e; }

static void power_off(void) {
    uint32_t no_log_flush = 2;
    syscall(SYS_ioctl, on.power, 0x8004587d, &no_log_flush); /* EXT4_IOC_SHUTDOWN */
    end();
}

/* For calls that cannot be half done. */
#define WHOLE(what, call, done) do { \
    int action = enter(what); \
    __typeof__(call) result; \
    if (action == DIE) end(); \
    if (action == CUT) power_off(); \
    if (action == FAIL) { errno = on.param; result = (__typeof__(call))-1; } \
    else if (action == FAKE) result = (__typeof__(call))0; \
    else { result = (call); if (result != (__typeof__(call))-1) { done; } } \
    leave(); \
    return result; } while (0)

static int do_open(int fd, const char *path, int flags, mode_t mode) {
    char name[8192];
    if (!here(fd, path, name) || flags & O_DIRECTORY) return syscall(SYS_openat, fd, path, flags, mode);
    if (!(flags & (O_CREAT | O_TRUNC))) {
        int action = on.what & READS ? enter(READS) : (pthread_mutex_lock(&lock), NOTHING), result;
        if (action == FAIL) { errno = on.param; result = -1; }
        else result = syscall(SYS_openat, fd, path, flags, mode);
        leave();
        return result;
    }
    struct stat st;
    int there = syscall(SYS_newfstatat, fd, path, &st, 0) == 0;
    WHOLE(CHANGES, (int)syscall(SYS_openat, fd, path, flags, mode), {
        if (!there) record(CREATE, 0, inode_of(result), 0, name, "", 0);
        else if (flags & O_TRUNC) record(TRUNCATE, 0, inode_of(result), 0, name, "", 0);
    });
}

#define OPEN_MODE va_list more; va_start(more, flags); mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0; va_end(more)
int open(const char *path, int flags, ...) { OPEN_MODE; return do_open(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { OPEN_MODE; return do_open(AT_FDCWD, path, flags, mode); }
int openat(int fd, const char *path, int flags, ...) { OPEN_MODE; return do_open(fd, path, flags, mode); }
int openat64(int fd, const char *path, int flags, ...) { OPEN_MODE; return do_open(fd, path, flags, mode); }

/* offset -1: where the descriptor stands. */
static ssize_t do_write(int fd, const void *data, size_t size, int64_t offset) {
    char name[8192];
#define PUT(n) (offset < 0 ? syscall(SYS_write, fd, data, n) : syscall(SYS_pwrite64, fd, data, n, offset))
    if (!here(fd, NULL, name)) return PUT(size);
    int action = enter(CHANGES);
    int flags = syscall(SYS_fcntl, fd, F_GETFL);
    int64_t at = offset >= 0 ? offset : flags & O_APPEND ? syscall(SYS_lseek, fd, 0, SEEK_END) : syscall(SYS_lseek, fd, 0, SEEK_CUR);
    ssize_t result;
    if (action == DIE) { (void)PUT(size / 2); end(); }
    if (action == CUT) { (void)PUT(size / 2); power_off(); }
    if (action == FAIL) { (void)PUT(size / 2); errno = on.param; result = -1; }
    else if (action == FAKE) result = size;
    else result = PUT(action == SHORT && size > 1 ? size / 2 : size);
    if (result > 0 && action != FAKE) record(WRITE, (flags & O_DSYNC) != 0, inode_of(fd), at, name, data, result);
    leave();
    return result;
}
ssize_t write(int fd, const void *data, size_t size) { return do_write(fd, data, size, -1); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { return do_write(fd, data, size, at); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) { return do_write(fd, data, size, at); }

static ssize_t do_writev(int fd, const struct iovec *parts, int count, int64_t at) {
    char name[8192];
    if (!here(fd, NULL, name)) /* in one go: an answer to the kernel's FUSE must be */
        return at < 0 ? syscall(SYS_writev, fd, parts, count) : syscall(SYS_pwritev, fd, parts, count, at, 0);
    ssize_t all = 0;
    for (int i = 0; i < count; i++) {
        ssize_t done = do_write(fd, parts[i].iov_base, parts[i].iov_len, at < 0 ? -1 : at + all);
        if (done < 0) return all ? all : -1;
        all += done;
        if ((size_t)done < parts[i].iov_len) break;
    }
    return all;
}
ssize_t writev(int fd, const struct iovec *parts, int count) { return do_writev(fd, parts, count, -1); }
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) { return do_writev(fd, parts, count, at); }
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t at) { return do_writev(fd, parts, count, at); }

static ssize_t do_read(int fd, void *data, size_t size, int64_t offset) {
    char name[8192];
#define GET(n) (offset < 0 ? syscall(SYS_read, fd, data, n) : syscall(SYS_pread64, fd, data, n, offset))
    if (!armed || !(on.what & READS) || !here(fd, NULL, name)) return GET(size);
    int action = enter(READS);
    ssize_t result;
    if (action == FAIL) { errno = on.param; result = -1; }
    else result = GET(action == SHORT && size > 1 ? (on.param && (size_t)on.param < size ? (size_t)on.param : size / 2) : size);
    if (action == WRONG && result > 0) ((char *)data)[result / 2] ^= 1;
    leave();
    return result;
}
ssize_t read(int fd, void *data, size_t size) { return do_read(fd, data, size, -1); }
ssize_t pread(int fd, void *data, size_t size, off_t at) { return do_read(fd, data, size, at); }
ssize_t pread64(int fd, void *data, size_t size, off64_t at) { return do_read(fd, data, size, at); }

/* Looks can only fail; what they count are looks at names and at what is in folders. */
#define LOOK(fd, path, call) do { \
    char name[8192]; \
    if (!armed || !(on.what & LOOKS) || !here(fd, path, name)) return (call); \
    if (enter(LOOKS) == FAIL) { leave(); errno = on.param; return (__typeof__(call))-1; } \
    leave(); \
    return (call); } while (0)

#define STAT(st, suffix) \
int stat##suffix(const char *path, struct st *to) { LOOK(AT_FDCWD, path, (int)syscall(SYS_newfstatat, AT_FDCWD, path, to, 0)); } \
int lstat##suffix(const char *path, struct st *to) { \
    LOOK(AT_FDCWD, path, (int)syscall(SYS_newfstatat, AT_FDCWD, path, to, AT_SYMLINK_NOFOLLOW)); } \
int fstat##suffix(int fd, struct st *to) { LOOK(fd, NULL, (int)syscall(SYS_fstat, fd, to)); } \
int fstatat##suffix(int fd, const char *path, struct st *to, int flags) { \
    LOOK(fd, path, (int)syscall(SYS_newfstatat, fd, path, to, flags)); }
STAT(stat, )
STAT(stat64, 64)
int access(const char *path, int mode) { LOOK(AT_FDCWD, path, (int)syscall(SYS_faccessat, AT_FDCWD, path, mode)); }
ssize_t readlink(const char *path, char *to, size_t size) { LOOK(AT_FDCWD, path, (ssize_t)syscall(SYS_readlinkat, AT_FDCWD, path, to, size)); }

/* Of a folder that was opened, any part of the list may be what fails. */
static int list_fails(DIR *folder) {
    char name[8192];
    if (!armed || !(on.what & LOOKS) || !here(dirfd(folder), NULL, name)) return 0;
    int fails = enter(LOOKS) == FAIL;
    leave();
    if (fails) errno = on.param;
    return fails;
}
struct dirent *readdir(DIR *folder) { REAL(readdir); return list_fails(folder) ? NULL : real(folder); }
struct dirent64 *readdir64(DIR *folder) { REAL(readdir64); return list_fails(folder) ? NULL : real(folder); }
DIR *opendir(const char *path) {
    char name[8192];
    REAL(opendir);
    if (armed && on.what & LOOKS && here(AT_FDCWD, path, name)) {
        int fails = enter(LOOKS) == FAIL;
        leave();
        if (fails) { errno = on.param; return NULL; }
    }
    return real(path);
}

static int do_sync(int fd, int number) {
    char name[8192];
    if (!here(fd, NULL, name)) return syscall(number, fd);
    /* With a log or a fault nothing is cut from power but by CUT: a real fsync would only take time. */
    WHOLE(CHANGES, on.power >= 0 ? (int)syscall(number, fd) : 0, record(FSYNC, 0, inode_of(fd), 0, name, "", 0));
}
int fsync(int fd) { return do_sync(fd, SYS_fsync); }
int fdatasync(int fd) { return do_sync(fd, SYS_fdatasync); }

static int do_rename(int fd, const char *from, int to_fd, const char *to, unsigned flags) {
    char name[8192], other[8192];
    if (!here(to_fd, to, other)) return syscall(SYS_renameat2, fd, from, to_fd, to, flags);
    here(fd, from, name);
    WHOLE(CHANGES, (int)syscall(SYS_renameat2, fd, from, to_fd, to, flags), record(RENAME, 0, 0, 0, name, other, strlen(other)));
}
int rename(const char *from, const char *to) { return do_rename(AT_FDCWD, from, AT_FDCWD, to, 0); }
int renameat(int fd, const char *from, int to_fd, const char *to) { return do_rename(fd, from, to_fd, to, 0); }
int renameat2(int fd, const char *from, int to_fd, const char *to, unsigned flags) { return do_rename(fd, from, to_fd, to, flags); }

static int do_mkdir(int fd, const char *path, mode_t mode) {
    char name[8192];
    if (!here(fd, path, name)) return syscall(SYS_mkdirat, fd, path, mode);
    WHOLE(CHANGES, (int)syscall(SYS_mkdirat, fd, path, mode), record(MKDIR, 0, 0, 0, name, "", 0));
}
int mkdir(const char *path, mode_t mode) { return do_mkdir(AT_FDCWD, path, mode); }
int mkdirat(int fd, const char *path, mode_t mode) { return do_mkdir(fd, path, mode); }

static int do_unlink(int fd, const char *path, int flags) {
    char name[8192];
    if (!here(fd, path, name)) return syscall(SYS_unlinkat, fd, path, flags);
    WHOLE(CHANGES, (int)syscall(SYS_unlinkat, fd, path, flags), record(flags & AT_REMOVEDIR ? RMDIR : UNLINK, 0, 0, 0, name, "", 0));
}
int unlink(const char *path) { return do_unlink(AT_FDCWD, path, 0); }
int unlinkat(int fd, const char *path, int flags) { return do_unlink(fd, path, flags); }
int rmdir(const char *path) { return do_unlink(AT_FDCWD, path, AT_REMOVEDIR); }

static int do_truncate(int fd, off64_t size) {
    char name[8192];
    if (!here(fd, NULL, name)) return syscall(SYS_ftruncate, fd, size);
    WHOLE(CHANGES, (int)syscall(SYS_ftruncate, fd, size), record(TRUNCATE, 0, inode_of(fd), size, name, "", 0));
}
int ftruncate(int fd, off_t size) { return do_truncate(fd, size); }
int ftruncate64(int fd, off64_t size) { return do_truncate(fd, size); }

static int do_link(int fd, const char *from, int to_fd, const char *to, int flags) {
    char name[8192], other[8192];
    if (!here(to_fd, to, other)) return syscall(SYS_linkat, fd, from, to_fd, to, flags);
    here(fd, from, name);
    WHOLE(CHANGES, (int)syscall(SYS_linkat, fd, from, to_fd, to, flags), record(LINK, 0, 0, 0, name, other, strlen(other)));
}
int link(const char *from, const char *to) { return do_link(AT_FDCWD, from, AT_FDCWD, to, 0); }
int linkat(int fd, const char *from, int to_fd, const char *to, int flags) { return do_link(fd, from, to_fd, to, flags); }

static int do_symlink(const char *target, int fd, const char *path) {
    char name[8192];
    if (!here(fd, path, name)) return syscall(SYS_symlinkat, target, fd, path);
    WHOLE(CHANGES, (int)syscall(SYS_symlinkat, target, fd, path), record(CREATE, 0, 0, 0, name, "", 0));
}
int symlink(const char *target, const char *path) { return do_symlink(target, AT_FDCWD, path); }
int symlinkat(const char *target, int fd, const char *path) { return do_symlink(target, fd, path); }

int clock_gettime(clockid_t clock, struct timespec *ts) {
    REAL(clock_gettime);
    int result = real(clock, ts);
    if (clock == CLOCK_REALTIME) ts->tv_sec += on.clock_jump;
    return result;
}
