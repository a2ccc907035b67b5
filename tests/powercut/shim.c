/* The calls the shim stands in for. See README.md for what is modelled, powercut.h for the other parts. */
#include "powercut.h"
#include <dlfcn.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <time.h>

#define EXPORT __attribute__((visibility("default")))
#define ALIAS(name, of) EXPORT __typeof__(of) name __attribute__((alias(#of)))

/* ---- writes ---- */

/* Bytes written through each descriptor since its last sync: for a disk of limited bandwidth. */
static uint64_t unsynced[4096];

static ssize_t wrote(int fd, ssize_t written) {
    if (settings.sync_us_per_mib && written > 0 && fd < 4096)
        __atomic_add_fetch(&unsynced[fd], (uint64_t)written, __ATOMIC_RELAXED);
    return written;
}

static ssize_t do_write(int fd, const void *data, size_t len) {
    struct op op;
    struct file *f = begin_change(fd, -1, len, &op);
    if (!f) return sys(SYS_write, fd, data, len);
    return end_change(f, fd, &op, sys(SYS_write, fd, data, op.cut_here ? (len + 1) / 2 : len));
}

EXPORT ssize_t write(int fd, const void *data, size_t len) {
    BEFORE_FD(CALL_WRITE, fd, data, len);
    ssize_t written = wrote(fd, do_write(fd, data, len));
    AFTER_FD(CALL_WRITE, fd, data, len, written >= 0);
    return written;
}

static ssize_t do_pwrite(int fd, const void *data, size_t len, off_t off) {
    struct op op;
    struct file *f = off < 0 ? NULL : begin_change(fd, off, len, &op);
    if (!f) return sys(SYS_pwrite64, fd, data, len, off);
    return end_change(f, fd, &op, sys(SYS_pwrite64, fd, data, op.cut_here ? (len + 1) / 2 : len, off));
}

EXPORT ssize_t pwrite(int fd, const void *data, size_t len, off_t off) {
    BEFORE_FD(CALL_WRITE, fd, data, len);
    ssize_t written = wrote(fd, do_pwrite(fd, data, len, off));
    AFTER_FD(CALL_WRITE, fd, data, len, written >= 0);
    return written;
}
ALIAS(pwrite64, pwrite);

/* Reads change nothing: they are steps only. */
EXPORT ssize_t pread(int fd, void *data, size_t len, off_t off) {
    BEFORE_FD(CALL_READ, fd, NULL, 0);
    ssize_t found = sys(SYS_pread64, fd, data, len, off);
    AFTER_FD(CALL_READ, fd, data, (size_t)found, found >= 0);
    return found;
}
ALIAS(pread64, pread);

static size_t total(const struct iovec *parts, int count) {
    size_t sum = 0;
    for (int i = 0; i < count; i++) sum += parts[i].iov_len;
    return sum;
}

EXPORT ssize_t writev(int fd, const struct iovec *parts, int count) {
    struct op op;
    struct file *f = settings.journal ? begin_change(fd, -1, total(parts, count), &op) : NULL;
    if (!f) return wrote(fd, sys(SYS_writev, fd, parts, count));
    return wrote(fd, end_change(f, fd, &op, sys(SYS_writev, fd, parts, op.cut_here ? (count + 1) / 2 : count)));
}

EXPORT ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t off, int flags) {
    struct op op;
    struct file *f = settings.journal ? begin_change(fd, off, total(parts, count), &op) : NULL;
    if (f && (flags & (RWF_DSYNC | RWF_SYNC))) die("pwritev2 with RWF_SYNC is not modelled");
    if (!f) return wrote(fd, sys(SYS_pwritev2, fd, parts, count, off, 0, flags));
    return wrote(fd, end_change(f, fd, &op, sys(SYS_pwritev2, fd, parts, op.cut_here ? (count + 1) / 2 : count, off, 0, flags)));
}
ALIAS(pwritev64v2, pwritev2);

EXPORT ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t off) {
    struct op op;
    struct file *f = settings.journal && off >= 0 ? begin_change(fd, off, total(parts, count), &op) : NULL;
    if (!f) return wrote(fd, sys(SYS_pwritev, fd, parts, count, off, 0));
    return wrote(fd, end_change(f, fd, &op, sys(SYS_pwritev, fd, parts, op.cut_here ? (count + 1) / 2 : count, off, 0)));
}
ALIAS(pwritev64, pwritev);

EXPORT ssize_t copy_file_range(int in, off_t *in_off, int out, off_t *out_off, size_t len, unsigned flags) {
    struct op op;
    struct file *f = begin_change(out, out_off ? *out_off : -1, len, &op);
    long n = sys(SYS_copy_file_range, in, in_off, out, out_off, len, flags);
    return f ? end_change(f, out, &op, n) : n;
}

EXPORT ssize_t sendfile(int out, int in, off_t *off, size_t len) {
    struct op op;
    struct file *f = begin_change(out, -1, len, &op);
    long n = sys(SYS_sendfile, out, in, off, len);
    return f ? end_change(f, out, &op, n) : n;
}
ALIAS(sendfile64, sendfile);

/* ---- sizes ---- */

EXPORT int ftruncate(int fd, off_t size) {
    return settings.journal ? tracked_truncate(fd, size) : (int)sys(SYS_ftruncate, fd, size);
}
ALIAS(ftruncate64, ftruncate);

EXPORT int fallocate(int fd, int mode, off_t off, off_t len) {
    struct op op;
    struct file *f = NULL;
    if (mode != FALLOC_FL_KEEP_SIZE) f = begin_change(fd, off, (size_t)len, &op);
    if (f && (mode & (FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_INSERT_RANGE))) die("fallocate moving bytes is not modelled");
    int result = (int)sys(SYS_fallocate, fd, mode, off, len);
    if (f) end_change(f, fd, &op, result == 0 ? len : -1);
    return result;
}
ALIAS(fallocate64, fallocate);

EXPORT int posix_fallocate(int fd, off_t off, off_t len) {
    int saved = errno;
    int result = fallocate(fd, 0, off, len) ? errno : 0;
    errno = saved;
    return result;
}
ALIAS(posix_fallocate64, posix_fallocate);

/* ---- opening ---- */

/* O_TRUNC is taken out of the call and done afterwards, so that the old content can be saved. */
static int open_tracked(int at, const char *path, int flags, mode_t mode) {
    bool writes = (flags & O_ACCMODE) != O_RDONLY;
    bool creates = (flags & O_CREAT) != 0;
    if (!settings.journal || (flags & O_PATH) || (!writes && !creates))
        return (int)sys(SYS_openat, at, path, flags, mode);
    if (writes && (flags & O_DIRECT)) flags &= ~O_DIRECT; /* the journal knows buffered writes alone */
    int saved = errno;
    char real[PATH_MAX];
    enter();
    if (creates) pthread_mutex_lock(&dirs_lock);
    bool existed = !creates || !sys(SYS_faccessat, at, path, F_OK);
    errno = saved;
    int fd = (int)sys(SYS_openat, at, path, writes ? flags & ~O_TRUNC : flags, mode);
    saved = errno;
    if (fd >= 0 && fd_path(fd, real) && is_inside(real)) {
        struct file *f = file_adopt(fd, false);
        if (f) file_unpin(f);
        if (!existed) dir_note_created(real);
    }
    if (creates) pthread_mutex_unlock(&dirs_lock);
    leave();
    if (fd >= 0 && writes && (flags & O_TRUNC)) tracked_truncate(fd, 0);
    errno = saved;
    return fd;
}

static int do_open(int at, const char *path, int flags, mode_t mode) {
    if (flags & O_CREAT) BEFORE_PATH(CALL_CREATE, path);
    int fd = open_tracked(at, path, flags, mode);
    if (flags & O_CREAT) AFTER_PATH(CALL_CREATE, path, fd >= 0);
    return fd;
}

#define MODE_ARGUMENT(flags, mode)                                  \
    mode_t mode = 0;                                                \
    if ((flags) & (O_CREAT | (O_TMPFILE & ~O_DIRECTORY))) {         \
        va_list args;                                               \
        va_start(args, flags);                                      \
        mode = va_arg(args, mode_t);                                \
        va_end(args);                                               \
    }

EXPORT int open(const char *path, int flags, ...) {
    MODE_ARGUMENT(flags, mode)
    return do_open(AT_FDCWD, path, flags, mode);
}
ALIAS(open64, open);

EXPORT int openat(int at, const char *path, int flags, ...) {
    MODE_ARGUMENT(flags, mode)
    return do_open(at, path, flags, mode);
}
ALIAS(openat64, openat);

EXPORT int creat(const char *path, mode_t mode) {
    return do_open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}
ALIAS(creat64, creat);

/* What glibc's headers turn open into under _FORTIFY_SOURCE. */
EXPORT int __open_2(const char *path, int flags) { return do_open(AT_FDCWD, path, flags, 0); }
ALIAS(__open64_2, __open_2);
EXPORT int __openat_2(int at, const char *path, int flags) { return do_open(at, path, flags, 0); }
ALIAS(__openat64_2, __openat_2);

EXPORT int truncate(const char *path, off_t size) {
    int fd = do_open(AT_FDCWD, path, O_WRONLY | O_CLOEXEC, 0);
    if (fd < 0) return -1;
    int result = tracked_truncate(fd, size);
    int saved = errno;
    sys(SYS_close, fd);
    errno = saved;
    return result;
}
ALIAS(truncate64, truncate);

/* stdio writes from inside libc, past this shim: the file is marked, and its growth is noticed. */
EXPORT FILE *fdopen(int fd, const char *mode) {
    static FILE *(*real)(int, const char *);
    if (!real) real = (FILE * (*)(int, const char *)) dlsym(RTLD_NEXT, "fdopen");
    if (settings.journal && strpbrk(mode, "wa+")) file_keep(fd);
    return real(fd, mode);
}

EXPORT FILE *fopen(const char *path, const char *mode) {
    static FILE *(*real)(const char *, const char *);
    if (!real) real = (FILE * (*)(const char *, const char *)) dlsym(RTLD_NEXT, "fopen");
    if (!settings.journal || !strpbrk(mode, "wa+")) return real(path, mode);
    int flags = strchr(mode, '+') ? O_RDWR : O_WRONLY;
    if (mode[0] == 'w') flags |= O_CREAT | O_TRUNC;
    if (mode[0] == 'a') flags |= O_CREAT | O_APPEND;
    if (strchr(mode, 'e')) flags |= O_CLOEXEC;
    if (strchr(mode, 'x')) flags |= O_EXCL;
    int fd = do_open(AT_FDCWD, path, flags, 0666);
    if (fd < 0) return NULL;
    FILE *stream = fdopen(fd, mode);
    if (!stream) sys(SYS_close, fd);
    return stream;
}
ALIAS(fopen64, fopen);

/* ---- directory entries ---- */

EXPORT int renameat2(int from_at, const char *from, int to_at, const char *to, unsigned flags) {
    if (!settings.journal) return (int)sys(SYS_renameat2, from_at, from, to_at, to, flags);
    struct spot old, new;
    enter();
    pthread_mutex_lock(&dirs_lock);
    spot_find(from_at, from, &old);
    spot_find(to_at, to, &new);
    bool exchange = (flags & RENAME_EXCHANGE) != 0;
    struct file *victim = exchange ? NULL : dir_victim(&new);
    int result = (int)sys(SYS_renameat2, from_at, from, to_at, to, flags);
    bool same = false;
    if (result == 0 && victim) {
        struct stat st;
        same = !fstatat(old.fd, old.name, &st, AT_SYMLINK_NOFOLLOW); /* two names of one file: nothing was done */
    }
    if (result == 0 && !same && old.fd >= 0 && new.fd >= 0)
        dir_note(exchange ? DIR_EXCHANGE : DIR_RENAME, &new, &old, victim, -1);
    else if (victim)
        file_unpin(victim);
    spot_close(&old);
    spot_close(&new);
    pthread_mutex_unlock(&dirs_lock);
    leave();
    return result;
}

EXPORT int renameat(int from_at, const char *from, int to_at, const char *to) {
    return renameat2(from_at, from, to_at, to, 0);
}

EXPORT int rename(const char *from, const char *to) {
    return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0);
}

static int do_unlinkat(int at, const char *path, int flags) {
    if (!settings.journal) return (int)sys(SYS_unlinkat, at, path, flags);
    struct spot spot;
    enter();
    pthread_mutex_lock(&dirs_lock);
    spot_find(at, path, &spot);
    struct file *victim = NULL;
    int sub = -1;
    if (spot.inside && (flags & AT_REMOVEDIR))
        sub = own((int)sys(SYS_openat, spot.fd, spot.name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    else
        victim = dir_victim(&spot);
    int result = (int)sys(SYS_unlinkat, at, path, flags);
    int saved = errno;
    if (result == 0 && (victim || sub >= 0))
        dir_note(sub >= 0 ? DIR_RMDIR : DIR_UNLINK, &spot, NULL, victim, sub);
    else if (victim)
        file_unpin(victim);
    if (sub >= 0) disown(sub);
    spot_close(&spot);
    pthread_mutex_unlock(&dirs_lock);
    leave();
    errno = saved;
    return result;
}

EXPORT int unlinkat(int at, const char *path, int flags) {
    BEFORE_PATH(CALL_UNLINK, path);
    int result = do_unlinkat(at, path, flags);
    AFTER_PATH(CALL_UNLINK, path, result == 0);
    return result;
}

EXPORT int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
EXPORT int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

EXPORT int remove(const char *path) {
    int saved = errno;
    if (!unlink(path)) return 0;
    if (errno != EISDIR && errno != EPERM) return -1;
    errno = saved;
    return rmdir(path);
}

EXPORT int mkdirat(int at, const char *path, mode_t mode) {
    if (!settings.journal) return (int)sys(SYS_mkdirat, at, path, mode);
    struct spot spot;
    enter();
    pthread_mutex_lock(&dirs_lock);
    int result = (int)sys(SYS_mkdirat, at, path, mode);
    if (result == 0 && spot_find(at, path, &spot)) {
        dir_note(DIR_MKDIR, &spot, NULL, NULL, -1);
        spot_close(&spot);
    }
    pthread_mutex_unlock(&dirs_lock);
    leave();
    return result;
}

EXPORT int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

static int do_linkat(int from_at, const char *from, int to_at, const char *to, int flags) {
    if (!settings.journal) return (int)sys(SYS_linkat, from_at, from, to_at, to, flags);
    struct spot spot;
    enter();
    pthread_mutex_lock(&dirs_lock);
    int result = (int)sys(SYS_linkat, from_at, from, to_at, to, flags);
    if (result == 0 && spot_find(to_at, to, &spot)) {
        dir_note(DIR_CREATE, &spot, NULL, NULL, -1);
        spot_close(&spot);
    }
    pthread_mutex_unlock(&dirs_lock);
    leave();
    return result;
}

EXPORT int linkat(int from_at, const char *from, int to_at, const char *to, int flags) {
    BEFORE_PATH(CALL_LINK, to);
    int result = do_linkat(from_at, from, to_at, to, flags);
    AFTER_PATH(CALL_LINK, to, result == 0);
    return result;
}

EXPORT int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }

/* ---- syncs ---- */

static void delay(uint64_t us) {
    us += settings.fsync_delay_us;
    if (control) {
        uint64_t asked = __atomic_load_n(&control->delay_us, __ATOMIC_RELAXED);
        if (asked) us = us - settings.fsync_delay_us + asked;
    }
    struct timespec left = {.tv_sec = (time_t)(us / 1000000), .tv_nsec = (long)(us % 1000000) * 1000};
    int saved = errno;
    while (us && sys(SYS_nanosleep, &left, &left) && errno == EINTR) {}
    errno = saved;
}

/* How long a disk of limited bandwidth takes for what was written through a descriptor since its last sync. */
static uint64_t bandwidth_us(int fd) {
    if (!settings.sync_us_per_mib || fd >= 4096) return 0;
    return (__atomic_exchange_n(&unsynced[fd], 0, __ATOMIC_RELAXED) * settings.sync_us_per_mib) >> 20;
}

/* Does this descriptor's file concern us? Then st is filled in. */
static bool in_scope(int fd, struct stat *st) {
    char path[PATH_MAX];
    int saved = errno;
    bool yes = !fstat(fd, st) && (S_ISREG(st->st_mode) || S_ISDIR(st->st_mode)) &&
               (!settings.root_len || (fd_path(fd, path) && is_inside(path)));
    errno = saved;
    return yes;
}

/* Counts a sync; returns its number in this process, or 0 if it has to fail. */
static uint64_t count_sync(bool of_dir) {
    static uint64_t syncs;
    uint64_t n = __atomic_add_fetch(&syncs, 1, __ATOMIC_RELAXED);
    bool fail = settings.fsync_fail_after && n >= settings.fsync_fail_after;
    if (control) {
        __atomic_add_fetch(&control->syncs, 1, __ATOMIC_RELAXED);
        if (of_dir) __atomic_add_fetch(&control->dir_syncs, 1, __ATOMIC_RELAXED);
        if (__atomic_load_n(&control->fail, __ATOMIC_RELAXED)) fail = true;
    }
    return fail ? 0 : n;
}

static int do_sync(long nr, int fd) {
    struct stat st;
    if (!in_scope(fd, &st)) return (int)sys(nr, fd);
    bool of_dir = S_ISDIR(st.st_mode);
    uint64_t n = count_sync(of_dir);
    if (n && settings.journal && n == settings.cut_in_fsync) cut("in an fsync");
    uint64_t barrier = 0;
    struct file *f = NULL;
    if (n && settings.journal) {
        enter();
        f = of_dir ? NULL : file_of_fd(fd);
        if (f) barrier = sync_begin(f, fd);
        if (of_dir) barrier = dir_sync_begin();
        leave();
    }
    delay(bandwidth_us(fd));
    if (!n) {
        errno = EIO;
        return -1;
    }
    int result = (int)sys(nr, fd);
    if (!settings.journal) return result;
    enter(); /* stands still from here on once a cut has begun: such a sync never returns */
    int saved = errno;
    if (f && result == 0) sync_end(f, barrier);
    if (f) file_unpin(f);
    if (of_dir && result == 0) dir_sync_end(&st, barrier);
    leave();
    if (n == settings.cut_after_fsync) cut("after an fsync");
    errno = saved;
    return result;
}

static int sync_step(long nr, int fd) {
    BEFORE_FD(CALL_SYNC, fd, NULL, 0);
    int result = do_sync(nr, fd);
    AFTER_FD(CALL_SYNC, fd, NULL, 0, result == 0);
    return result;
}

EXPORT int fsync(int fd) { return sync_step(SYS_fsync, fd); }
EXPORT int fdatasync(int fd) { return sync_step(SYS_fdatasync, fd); }

/* Starts write-back, promises nothing: takes its time like a sync, and covers nothing. */
EXPORT int sync_file_range(int fd, off_t off, off_t len, unsigned flags) {
    struct stat st;
    if (in_scope(fd, &st)) delay(0);
    return (int)sys(SYS_sync_file_range, fd, off, len, flags);
}

static void cover_everything(void) {
    if (!settings.journal) return;
    enter();
    sync_everything();
    dir_sync_everything();
    leave();
}

EXPORT int syncfs(int fd) {
    struct stat st;
    bool ours = in_scope(fd, &st);
    int result = (int)sys(SYS_syncfs, fd);
    if (ours && result == 0) cover_everything();
    return result;
}

EXPORT void sync(void) {
    sys(SYS_sync);
    cover_everything();
}

/* ---- what cannot be undone, and what must be known ---- */

EXPORT void *mmap(void *at, size_t len, int prot, int flags, int fd, off_t off) {
    if (settings.journal && fd >= 0 && (prot & PROT_WRITE) && (flags & MAP_SHARED)) {
        struct file *f = file_of_fd(fd);
        if (f) die("a writable shared mapping of a file under the directory is not modelled");
    }
    return (void *)sys(SYS_mmap, at, len, prot, flags, fd, off);
}
ALIAS(mmap64, mmap);

/* Closing any descriptor of a file drops the process's fcntl locks on it: the shim's own must then stay open. */
EXPORT int fcntl(int fd, int command, ...) {
    va_list args;
    va_start(args, command);
    long argument = va_arg(args, long);
    va_end(args);
    if (settings.journal && (command == F_SETLK || command == F_SETLKW)) file_keep(fd);
    return (int)sys(SYS_fcntl, fd, command, argument);
}
ALIAS(fcntl64, fcntl);

EXPORT long syscall(long number, ...) {
    long a[6];
    va_list args;
    va_start(args, number);
    for (int i = 0; i < 6; i++) a[i] = va_arg(args, long);
    va_end(args);
    if (settings.journal && number == SYS_io_uring_setup) die("io_uring is not modelled");
    return sys6(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
