/* Per file: the undo journal of what no fsync has covered.
 *
 * A file is known by (device, inode), looked up by fstat at each call: no table of descriptors can go stale
 * that way, whatever dup, close_range or fclose do. The operations of a file form a sequence; a sync drops all
 * that came before it began; the cut undoes the others, newest first. */
#include "powercut.h"

#define BUCKETS 1024
#define OWN_FDS_MAX 256

static struct file *buckets[BUCKETS];
static pthread_mutex_t table = PTHREAD_MUTEX_INITIALIZER;
static int open_fds;
static uint64_t writes;

static struct file **bucket(dev_t dev, ino_t ino) {
    return &buckets[(ino * 2654435761u ^ dev) % BUCKETS];
}

static struct file *find(const struct stat *st) {
    for (struct file *f = *bucket(st->st_dev, st->st_ino); f; f = f->next)
        if (f->ino == st->st_ino && f->dev == st->st_dev && !f->dead) return f;
    return NULL;
}

static void close_own(struct file *f) {
    if (f->fd < 0) return;
    disown(f->fd);
    f->fd = -1;
    open_fds--;
}

/* Closes descriptors of files that have nothing to undo. Under `table`. */
static void sweep(void) {
    for (int i = 0; i < BUCKETS; i++)
        for (struct file *f = buckets[i]; f; f = f->next)
            if (f->fd >= 0 && !f->keep && !f->pins && !f->held && !f->count) close_own(f);
}

/* Under `table`: frees an unlinked file that nobody needs any more. */
static void reap(struct file *f) {
    if (!f->dead || f->pins || f->held) return;
    struct file **at = bucket(f->dev, f->ino);
    while (*at != f) at = &(*at)->next;
    *at = f->next;
    close_own(f);
    for (size_t i = 0; i < f->count; i++) free(f->ops[i].old);
    free(f->ops);
    free(f);
}

struct file *file_of_fd(int fd) {
    struct stat st;
    int saved = errno;
    if (fstat(fd, &st) || !S_ISREG(st.st_mode)) {
        errno = saved;
        return NULL;
    }
    pthread_mutex_lock(&table);
    struct file *f = find(&st);
    if (f) f->pins++;
    pthread_mutex_unlock(&table);
    return f;
}

static void open_own(struct file *f, int fd) {
    if (f->fd >= 0) return;
    char path[64] = "/proc/self/fd/";
    char digits[16];
    int n = 0;
    for (int v = fd; n == 0 || v; v /= 10) digits[n++] = (char)('0' + v % 10);
    size_t at = strlen(path);
    while (n) path[at++] = digits[--n];
    path[at] = 0;
    f->fd = own((int)sys(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC));
    if (f->fd < 0) die("cannot open a second descriptor of a file under the directory");
}

/* Starts to watch a file; returns it pinned. With give_fd, `fd` (read and write) becomes or is closed by the shim. */
struct file *file_adopt(int fd, bool give_fd) {
    struct stat st;
    if (fstat(fd, &st) || !S_ISREG(st.st_mode)) {
        if (give_fd) sys(SYS_close, fd);
        return NULL;
    }
    pthread_mutex_lock(&table);
    struct file *f = find(&st);
    if (!f) {
        f = calloc(1, sizeof *f);
        if (!f) die("no memory");
        f->dev = st.st_dev;
        f->ino = st.st_ino;
        f->size = st.st_size;
        f->fd = -1;
        pthread_mutex_init(&f->lock, NULL);
        struct file **at = bucket(st.st_dev, st.st_ino);
        f->next = *at;
        *at = f;
    }
    f->pins++;
    if (give_fd && f->fd < 0) {
        f->fd = own(fd);
        open_fds++;
    } else if (give_fd) {
        sys(SYS_close, fd);
    }
    pthread_mutex_unlock(&table);
    return f;
}

void file_unpin(struct file *f) {
    pthread_mutex_lock(&table);
    f->pins--;
    reap(f);
    pthread_mutex_unlock(&table);
}

/* The pin becomes a hold: a directory change may have to bring this file back. */
void file_hold(struct file *f) {
    pthread_mutex_lock(&table);
    f->pins--;
    f->held++;
    pthread_mutex_unlock(&table);
}

void file_release(struct file *f) {
    struct stat st;
    pthread_mutex_lock(&table);
    f->held--;
    if (!f->held && f->fd >= 0 && !fstat(f->fd, &st) && st.st_nlink == 0) f->dead = true;
    reap(f);
    pthread_mutex_unlock(&table);
}

/* Gives the file a descriptor of the shim's own. Only ever called with the file pinned and locked. */
static void need_fd(struct file *f, int fd) {
    if (f->fd >= 0) return;
    pthread_mutex_lock(&table);
    if (open_fds >= OWN_FDS_MAX) sweep();
    open_own(f, fd);
    open_fds++;
    pthread_mutex_unlock(&table);
}

/* See struct file: `keep`. */
void file_keep(int fd) {
    enter();
    struct file *f = file_of_fd(fd);
    if (f) {
        pthread_mutex_lock(&f->lock);
        need_fd(f, fd);
        f->keep = true;
        pthread_mutex_unlock(&f->lock);
        file_unpin(f);
    }
    leave();
}

static void push(struct file *f, struct op op) {
    if (f->count == f->capacity) {
        f->capacity = f->capacity ? f->capacity * 2 : 16;
        f->ops = realloc(f->ops, f->capacity * sizeof *f->ops);
        if (!f->ops) die("no memory");
    }
    op.seq = f->next_seq++;
    f->ops[f->count++] = op;
}

/* Notices what came past the shim: stdio writes from inside libc, which can only be seen as growth. */
static void absorb(struct file *f, off_t size) {
    if (size > f->size) {
        struct op op = {.off = f->size, .len = (size_t)(size - f->size), .old_size = f->size};
        push(f, op);
    }
    f->size = size;
}

static void forget_before(struct file *f, uint64_t barrier) {
    size_t gone = 0;
    while (gone < f->count && f->ops[gone].seq < barrier) free(f->ops[gone++].old);
    f->count -= gone;
    memmove(f->ops, f->ops + gone, f->count * sizeof *f->ops);
}

static void save_old(struct file *f, struct op *op, off_t from, off_t to) {
    if (to > op->old_size) to = op->old_size;
    if (from >= to) return;
    op->old_len = (size_t)(to - from);
    op->old = malloc(op->old_len);
    if (!op->old) die("no memory");
    for (size_t done = 0; done < op->old_len;) {
        long n = sys(SYS_pread64, f->fd, op->old + done, op->old_len - done, from + (off_t)done);
        if (n <= 0) die("cannot read the bytes that are about to be overwritten");
        done += (size_t)n;
    }
}

/* Before a write of len bytes at off (-1: at the descriptor's position). NULL: not a file of ours; else the file,
 * locked, which end_change unlocks. */
struct file *begin_change(int fd, off_t off, size_t len, struct op *op) {
    if (!settings.journal) return NULL;
    int saved = errno;
    enter();
    struct file *f = file_of_fd(fd);
    if (!f) {
        leave();
        errno = saved;
        return NULL;
    }
    pthread_mutex_lock(&f->lock);
    need_fd(f, fd);
    struct stat st;
    if (fstat(fd, &st)) die("fstat failed");
    absorb(f, st.st_size);
    *op = (struct op){.old_size = st.st_size, .len = len};
    long flags = sys(SYS_fcntl, fd, F_GETFL, 0);
    if (flags & O_APPEND) off = st.st_size;
    if (off < 0) off = (off_t)sys(SYS_lseek, fd, 0, SEEK_CUR);
    op->off = off;
    op->cut_here = len > 0 && __atomic_add_fetch(&writes, 1, __ATOMIC_RELAXED) == settings.cut_in_write;
    save_old(f, op, off, off + (off_t)len);
    errno = saved;
    return f;
}

/* After it, with what the call returned. */
long end_change(struct file *f, int fd, struct op *op, long written) {
    int saved = errno;
    struct stat st;
    if (fstat(f->fd, &st)) die("fstat failed");
    if (written > 0) {
        op->len = (size_t)written;
        push(f, *op);
    } else {
        free(op->old);
    }
    f->size = st.st_size;
    if (written > 0 && (sys(SYS_fcntl, fd, F_GETFL, 0) & O_DSYNC)) forget_before(f, f->next_seq);
    pthread_mutex_unlock(&f->lock);
    file_unpin(f);
    leave();
    if (op->cut_here) cut("in a write");
    errno = saved;
    return written;
}

int tracked_truncate(int fd, off_t size) {
    struct op op;
    struct file *f = begin_change(fd, size, 0, &op);
    if (!f) return (int)sys(SYS_ftruncate, fd, size);
    op.off = size;
    save_old(f, &op, size, op.old_size);
    int result = (int)sys(SYS_ftruncate, fd, size);
    if (result == 0 && size != op.old_size) {
        push(f, op);
        op.old = NULL;
    }
    end_change(f, fd, &op, 0);
    return result;
}

/* Everything before the returned barrier is durable once the sync that begins now has succeeded. */
uint64_t sync_begin(struct file *f, int fd) {
    struct stat st;
    pthread_mutex_lock(&f->lock);
    if (!fstat(fd, &st)) absorb(f, st.st_size);
    uint64_t barrier = f->next_seq;
    pthread_mutex_unlock(&f->lock);
    return barrier;
}

void sync_end(struct file *f, uint64_t barrier) {
    pthread_mutex_lock(&f->lock);
    forget_before(f, barrier);
    pthread_mutex_unlock(&f->lock);
}

/* After sync(2) or syncfs(2), which are modelled as covering what was written while they ran as well. */
void sync_everything(void) {
    struct stat st;
    pthread_mutex_lock(&table);
    for (int i = 0; i < BUCKETS; i++)
        for (struct file *f = buckets[i]; f; f = f->next) {
            if (f->fd >= 0 && !fstat(f->fd, &st)) f->size = st.st_size;
            forget_before(f, f->next_seq);
        }
    pthread_mutex_unlock(&table);
}

static void put_back(struct file *f, const struct op *op, size_t kept) {
    off_t end = op->off + (off_t)kept;
    off_t size = kept && end > op->old_size ? end : op->old_size;
    if (sys(SYS_ftruncate, f->fd, size)) die("rollback: ftruncate failed");
    for (size_t done = kept; done < op->old_len;) {
        long n = sys(SYS_pwrite64, f->fd, op->old + done, op->old_len - done, op->off + (off_t)done);
        if (n <= 0) die("rollback: pwrite failed");
        done += (size_t)n;
    }
}

/* Runs in the cut, alone: no locks, no malloc. With rng, each file keeps a prefix of its operations, the last of them torn. */
void rollback_files(uint64_t (*rng)(void), unsigned *files, unsigned *ops) {
    struct stat st;
    for (int i = 0; i < BUCKETS; i++)
        for (struct file *f = buckets[i]; f; f = f->next) {
            bool grown = f->fd >= 0 && !fstat(f->fd, &st) && st.st_size > f->size;
            if (!f->count && !grown) continue;
            if (grown && sys(SYS_ftruncate, f->fd, f->size)) die("rollback: ftruncate failed");
            size_t whole = rng ? rng() % (f->count + 1) : 0;
            for (size_t at = f->count; at-- > whole;) {
                struct op *op = &f->ops[at];
                size_t kept = rng && at == whole && op->len ? rng() % op->len : 0;
                put_back(f, op, kept);
                ++*ops;
            }
            ++*files;
        }
}
