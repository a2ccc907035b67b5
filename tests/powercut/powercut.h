/* What the five parts of the power-cut shim share; README.md says what the shim models.
 *
 *   shim.c     the calls it stands in for (write, fsync, rename, ...)
 *   journal.c  per file: how to undo every write that no fsync has covered
 *   dirs.c     per directory: how to undo every entry change that no fsync of the directory covered
 *   cut.c      the power cut: stop the process, undo, kill it; settings from the environment
 *   steps.c    ends the process exactly at a call that was named
 *
 * Locks, taken in this order: world (read) -> dirs -> table -> one file. Whoever changes a file or a journal
 * holds `world` for reading; the cut takes it for writing and never gives it back. System calls are made
 * directly (sys), so that the shim never meets its own stand-ins. */
#ifndef POWERCUT_H
#define POWERCUT_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

static inline long sys6(long n, long a, long b, long c, long d, long e, long f) {
    long result;
#if defined(__x86_64__)
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
#elif defined(__aarch64__)
    register long x8 __asm__("x8") = n;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    result = x0;
#else
#error "the power-cut shim knows the system calls of x86-64 and aarch64 only"
#endif
    if ((unsigned long)result >= (unsigned long)-4095L) {
        errno = (int)-result;
        return -1;
    }
    return result;
}
#define SYS_PAD(n, a, b, c, d, e, f, ...) \
    sys6((long)(n), (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
#define sys(...) SYS_PAD(__VA_ARGS__, 0, 0, 0, 0, 0, 0, 0)

/* One change of a file's bytes. Undone by setting the size to old_size and putting old back at off. */
struct op {
    uint64_t seq;
    off_t off;
    size_t len; /* bytes written from off on; 0 for a truncation, which is never torn */
    off_t old_size;
    size_t old_len;
    char *old;
    bool cut_here; /* the configured cut falls into this write */
};

struct file {
    struct file *next;
    dev_t dev;
    ino_t ino;
    int fd; /* the shim's own, read and write; -1 while nothing is to be undone */
    pthread_mutex_t lock;
    struct op *ops;
    size_t count, capacity;
    uint64_t next_seq;
    off_t size;  /* after the last change seen; growth beyond it came through stdio */
    int pins;    /* threads using this entry; under `table` */
    int held;    /* directory changes that may have to bring the file back; under `table` */
    bool keep;   /* its fd stays open: closing it would drop the process's fcntl locks, or stdio writes it */
    bool dead;   /* unlinked for good */
};

struct dir {
    struct dir *next;
    dev_t dev;
    ino_t ino;
    int fd;
    int refs;
};

/* A name in a directory, found before the name is changed. */
struct spot {
    int fd;
    bool inside;
    char path[PATH_MAX]; /* of the directory */
    char name[NAME_MAX + 1];
};

enum dir_kind { DIR_CREATE, DIR_MKDIR, DIR_UNLINK, DIR_RMDIR, DIR_RENAME, DIR_EXCHANGE };

enum call { CALL_CREATE, CALL_READ, CALL_WRITE, CALL_SYNC, CALL_LINK, CALL_UNLINK };

/* cut.c */
struct settings {
    bool journal, dirs, torn;
    uint64_t seed;
    uint64_t cut_after_fsync, cut_in_fsync, cut_in_write; /* 0: never */
    uint64_t fsync_delay_us, sync_us_per_mib, fsync_fail_after;
    char root[PATH_MAX];
    size_t root_len; /* 0: faults and counts concern every file */
};
/* The mapped file of FLOTILLA_FSYNC_COUNT_FILE. */
struct control {
    uint64_t syncs, dir_syncs; /* written by the shim */
    uint64_t delay_us, fail;   /* read by the shim at each sync, beside the environment's */
};
extern struct settings settings;
extern struct control *control;
extern pthread_rwlock_t world;
extern bool own_fds[65536];
void enter(void);
void leave(void);
void cut(const char *why) __attribute__((noreturn));
void die(const char *what) __attribute__((noreturn));
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
bool is_inside(const char *path);
bool fd_path(int fd, char path[PATH_MAX]);
int own(int fd);
void disown(int fd);

/* journal.c */
struct file *file_of_fd(int fd);
struct file *file_adopt(int fd, bool give_fd);
void file_unpin(struct file *f);
void file_hold(struct file *f);
void file_release(struct file *f);
void file_keep(int fd);
struct file *begin_change(int fd, off_t off, size_t len, struct op *op);
long end_change(struct file *f, int fd, struct op *op, long written);
int tracked_truncate(int fd, off_t size);
uint64_t sync_begin(struct file *f, int fd);
void sync_end(struct file *f, uint64_t barrier);
void sync_everything(void);
void rollback_files(uint64_t (*rng)(void), unsigned *files, unsigned *ops);

/* dirs.c */
extern pthread_mutex_t dirs_lock;
bool spot_find(int at, const char *path, struct spot *spot);
void spot_close(struct spot *spot);
void dir_note(enum dir_kind kind, const struct spot *spot, const struct spot *from, struct file *victim, int sub_fd);
void dir_note_created(const char *path);
struct file *dir_victim(const struct spot *spot);
uint64_t dir_sync_begin(void);
void dir_sync_end(const struct stat *st, uint64_t barrier);
void dir_sync_everything(void);
void rollback_dirs(uint64_t (*rng)(void), unsigned *undone);

/* steps.c: told of each call before it is made, and after it has succeeded. */
extern bool steps_on; /* whether anybody wants to know */
void steps_open(const char *path);
void step_path(enum call call, bool before, const char *path);
void step_fd(enum call call, bool before, int fd, const void *data, size_t len);
#define BEFORE_PATH(call, path) do { if (steps_on) step_path(call, true, path); } while (0)
#define AFTER_PATH(call, path, done) do { if (steps_on && (done)) step_path(call, false, path); } while (0)
#define BEFORE_FD(call, fd, data, len) do { if (steps_on) step_fd(call, true, fd, data, len); } while (0)
#define AFTER_FD(call, fd, data, len, done) do { if (steps_on && (done)) step_fd(call, false, fd, data, len); } while (0)
#endif
