/* Per directory: the undo journal of entries that no fsync of the directory has covered.
 *
 * One sequence for all directories. An fsync of a directory drops its own changes; the cut undoes the others,
 * newest first. A rename belongs to the directory of its new name. A file whose last name may have to come back
 * (unlinked, or replaced by a rename) is held open; undoing writes its content into a new file. */
#include "powercut.h"

struct change {
    uint64_t seq;
    enum dir_kind kind;
    struct dir *dir, *from, *sub; /* from: the old name's directory; sub: a removed directory */
    struct file *victim;          /* what lost its name */
    char name[NAME_MAX + 1], old_name[NAME_MAX + 1];
};

pthread_mutex_t dirs_lock = PTHREAD_MUTEX_INITIALIZER;
static struct dir *dirs;
static struct change *changes;
static size_t count, capacity;
static uint64_t next_seq;

/* The directory behind fd, which is duplicated if it was not known; counted as used once more. */
static struct dir *dir_get(int fd) {
    struct stat st;
    if (fstat(fd, &st)) die("fstat of a directory failed");
    struct dir *d = dirs;
    while (d && (d->ino != st.st_ino || d->dev != st.st_dev)) d = d->next;
    if (!d) {
        d = calloc(1, sizeof *d);
        if (!d) die("no memory");
        d->dev = st.st_dev;
        d->ino = st.st_ino;
        d->fd = own((int)sys(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 3));
        if (d->fd < 0) die("no descriptor left for a directory");
        d->next = dirs;
        dirs = d;
    }
    d->refs++;
    return d;
}

static void dir_put(struct dir *d) {
    if (!d || --d->refs) return;
    struct dir **at = &dirs;
    while (*at != d) at = &(*at)->next;
    *at = d->next;
    disown(d->fd);
    free(d);
}

/* False: the path's directory cannot be opened; the call itself will say why. */
bool spot_find(int at, const char *path, struct spot *spot) {
    char parent[PATH_MAX];
    size_t len = strlen(path);
    spot->inside = false;
    spot->fd = -1;
    while (len > 1 && path[len - 1] == '/') len--;
    if (!len || len >= sizeof parent) return false;
    size_t cut_at = len;
    while (cut_at && path[cut_at - 1] != '/') cut_at--;
    if (len - cut_at > NAME_MAX || len == cut_at) return false;
    memcpy(spot->name, path + cut_at, len - cut_at);
    spot->name[len - cut_at] = 0;
    memcpy(parent, path, cut_at);
    parent[cut_at] = 0;
    int saved = errno;
    spot->fd = own((int)sys(SYS_openat, at, cut_at ? parent : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (spot->fd >= 0 && fd_path(spot->fd, spot->path)) spot->inside = is_inside(spot->path);
    errno = saved;
    return spot->fd >= 0;
}

void spot_close(struct spot *spot) {
    int saved = errno;
    if (spot->fd >= 0) disown(spot->fd);
    errno = saved;
}

/* The file that a name about to be removed stands for, pinned; NULL if there is none or it is no regular file. */
struct file *dir_victim(const struct spot *spot) {
    struct stat st;
    int saved = errno;
    struct file *f = NULL;
    if (spot->inside && !fstatat(spot->fd, spot->name, &st, AT_SYMLINK_NOFOLLOW) && S_ISREG(st.st_mode)) {
        int fd = (int)sys(SYS_openat, spot->fd, spot->name, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
        if (fd >= 0) f = file_adopt(fd, true);
    }
    errno = saved;
    return f;
}

/* Notes a change that has just succeeded. The victim's pin passes to it. Under dirs_lock. */
void dir_note(enum dir_kind kind, const struct spot *spot, const struct spot *from, struct file *victim, int sub_fd) {
    int saved = errno;
    if (victim) file_hold(victim);
    if (!settings.dirs || !spot->inside) {
        if (victim) file_release(victim);
        errno = saved;
        return;
    }
    if (count == capacity) {
        capacity = capacity ? capacity * 2 : 64;
        changes = realloc(changes, capacity * sizeof *changes);
        if (!changes) die("no memory");
    }
    struct change *c = &changes[count++];
    memset(c, 0, sizeof *c);
    c->seq = next_seq++;
    c->kind = kind;
    c->victim = victim;
    c->dir = dir_get(spot->fd);
    memcpy(c->name, spot->name, sizeof c->name);
    if (from) {
        c->from = dir_get(from->fd);
        memcpy(c->old_name, from->name, sizeof c->old_name);
    }
    if (sub_fd >= 0) c->sub = dir_get(sub_fd);
    errno = saved;
}

/* After open has created the file at this absolute path. Under dirs_lock. */
void dir_note_created(const char *path) {
    struct spot spot;
    if (spot_find(AT_FDCWD, path, &spot)) dir_note(DIR_CREATE, &spot, NULL, NULL, -1);
    spot_close(&spot);
}

uint64_t dir_sync_begin(void) {
    pthread_mutex_lock(&dirs_lock);
    uint64_t barrier = next_seq;
    pthread_mutex_unlock(&dirs_lock);
    return barrier;
}

/* st: of the synced directory; NULL: of all. */
void dir_sync_end(const struct stat *st, uint64_t barrier) {
    pthread_mutex_lock(&dirs_lock);
    size_t left = 0;
    for (size_t i = 0; i < count; i++) {
        struct change c = changes[i];
        bool covered = !st || (c.dir->ino == st->st_ino && c.dir->dev == st->st_dev);
        if (!covered || c.seq >= barrier) {
            changes[left++] = c;
            continue;
        }
        if (c.victim) file_release(c.victim);
        dir_put(c.dir);
        dir_put(c.from);
        dir_put(c.sub);
    }
    count = left;
    pthread_mutex_unlock(&dirs_lock);
}

void dir_sync_everything(void) {
    dir_sync_end(NULL, UINT64_MAX);
}

struct entry64 {
    uint64_t ino;
    int64_t off;
    uint16_t len;
    uint8_t type;
    char name[];
};

/* Removes a directory that was never durable, with all in it. No malloc: this runs in the cut. */
static void remove_tree(int at, const char *name) {
    int fd = (int)sys(SYS_openat, at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
    if (fd < 0) return;
    _Alignas(struct entry64) char buffer[4096];
    for (;;) {
        long n = sys(SYS_getdents64, fd, buffer, sizeof buffer);
        if (n <= 0) break;
        bool removed = false;
        for (long i = 0; i < n;) {
            struct entry64 *e = (struct entry64 *)(buffer + i);
            i += e->len;
            if (!strcmp(e->name, ".") || !strcmp(e->name, "..")) continue;
            removed = true;
            if (sys(SYS_unlinkat, fd, e->name, 0)) remove_tree(fd, e->name);
        }
        if (removed) sys(SYS_lseek, fd, 0, SEEK_SET);
    }
    sys(SYS_close, fd);
    sys(SYS_unlinkat, at, name, AT_REMOVEDIR);
}

static void bring_back(struct dir *dir, const char *name, struct file *f) {
    static char buffer[65536];
    struct stat st;
    if (fstat(f->fd, &st)) die("rollback: fstat failed");
    int fd = (int)sys(SYS_openat, dir->fd, name, O_WRONLY | O_CREAT | O_TRUNC, st.st_mode & 07777);
    if (fd < 0) return; /* its directory is gone as well, for good */
    long n;
    for (off_t at = 0; (n = sys(SYS_pread64, f->fd, buffer, sizeof buffer, at)) > 0; at += n)
        for (long done = 0; done < n;) {
            long put = sys(SYS_pwrite64, fd, buffer + done, n - done, at + done);
            if (put <= 0) die("rollback: cannot write an unlinked file back");
            done += put;
        }
    sys(SYS_close, fd);
}

static void undo(struct change *c) {
    switch (c->kind) {
    case DIR_CREATE:
        sys(SYS_unlinkat, c->dir->fd, c->name, 0);
        break;
    case DIR_MKDIR:
        remove_tree(c->dir->fd, c->name);
        break;
    case DIR_UNLINK:
        break;
    case DIR_RMDIR:
        sys(SYS_mkdirat, c->dir->fd, c->name, 0755);
        c->sub->fd = (int)sys(SYS_openat, c->dir->fd, c->name, O_RDONLY | O_DIRECTORY);
        break;
    case DIR_RENAME:
        sys(SYS_renameat2, c->dir->fd, c->name, c->from->fd, c->old_name, 0);
        break;
    case DIR_EXCHANGE:
        sys(SYS_renameat2, c->dir->fd, c->name, c->from->fd, c->old_name, RENAME_EXCHANGE);
        break;
    }
    if (c->victim) bring_back(c->dir, c->name, c->victim);
}

/* Runs in the cut, after rollback_files. With rng, a prefix of the changes is kept: a journal is in order. */
void rollback_dirs(uint64_t (*rng)(void), unsigned *undone) {
    size_t kept = rng ? rng() % (count + 1) : 0;
    while (count > kept) {
        undo(&changes[--count]);
        ++*undone;
    }
}
