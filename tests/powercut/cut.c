/* The power cut itself, and the settings.
 *
 * The cut takes `world`, so that no watched change is half done, and forks without libc's fork handlers (another
 * thread may hold malloc's lock). The child stops the parent, so that none of its threads sees a file change back
 * or sends another byte, undoes everything from its copy of the journals, and kills the parent with SIGKILL:
 * who waits for the process finds the files already as the power cut left them. */
#include "powercut.h"
#include <semaphore.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <time.h>

struct settings settings;
struct control *control;
pthread_rwlock_t world = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;
bool own_fds[65536];
static sem_t asked;
static int cutting;

void enter(void) {
    int saved = errno;
    pthread_rwlock_rdlock(&world);
    errno = saved;
}

void leave(void) {
    int saved = errno;
    pthread_rwlock_unlock(&world);
    errno = saved;
}

/* To stderr, in one write, without stdio. */
void say(const char *format, ...) {
    char line[512];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    if (n > 0) sys(SYS_write, 2, line, n < (int)sizeof line ? n : (int)sizeof line - 1);
}

/* The process does something the shim cannot undo: better no test than one that proves nothing. */
void die(const char *what) {
    say("powercut: pid %d: %s (errno %d); giving up\n", (int)sys(SYS_getpid), what, errno);
    abort();
}

int own(int fd) {
    if (fd >= 0 && fd < (int)(sizeof own_fds / sizeof *own_fds)) own_fds[fd] = true;
    return fd;
}

void disown(int fd) {
    if (fd < 0) return;
    if (fd < (int)(sizeof own_fds / sizeof *own_fds)) own_fds[fd] = false;
    sys(SYS_close, fd);
}

bool is_inside(const char *path) {
    if (!settings.root_len) return true;
    if (strncmp(path, settings.root, settings.root_len)) return false;
    return path[settings.root_len] == 0 || path[settings.root_len] == '/';
}

bool fd_path(int fd, char path[PATH_MAX]) {
    char link[32];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    long n = sys(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    if (n <= 0) return false;
    path[n] = 0;
    return path[0] == '/';
}

static uint64_t random_state;

static uint64_t next_random(void) {
    uint64_t z = (random_state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Waits until the signal has stopped the process; 1 ms more than enough for its other threads. */
static void stop(pid_t pid) {
    sys(SYS_kill, pid, SIGSTOP);
    struct timespec pause = {.tv_nsec = 1000000};
    sys(SYS_nanosleep, &pause, NULL);
}

static void roll_back(pid_t pid, const char *why) {
    unsigned files = 0, ops = 0, changes = 0;
    /* Sockets and locks must end with the parent, not with this child. */
    for (int fd = 0; fd < (int)(sizeof own_fds / sizeof *own_fds); fd++)
        if (fd != 2 && !own_fds[fd]) sys(SYS_close, fd);
    random_state = settings.seed;
    rollback_files(settings.torn ? next_random : NULL, &files, &ops);
    rollback_dirs(settings.torn ? next_random : NULL, &changes);
    say("powercut: pid %d: cut %s: undid %u writes in %u files and %u directory changes\n", (int)pid, why, ops,
        files, changes);
}

void cut(const char *why) {
    if (__atomic_exchange_n(&cutting, 1, __ATOMIC_SEQ_CST))
        for (;;) pause();
    pthread_rwlock_wrlock(&world);
    pid_t pid = (pid_t)sys(SYS_getpid);
    long child = sys(SYS_clone, 0, 0, 0, 0, 0);
    if (child < 0) die("cannot fork for the cut");
    if (child == 0) {
        stop(pid);
        roll_back(pid, why);
        sys(SYS_kill, pid, SIGKILL);
        sys(SYS_exit_group, 0);
    }
    for (;;) pause();
}

static void on_signal(int number) {
    (void)number;
    int saved = errno;
    sem_post(&asked);
    errno = saved;
}

static void *wait_for_signal(void *unused) {
    (void)unused;
    while (sem_wait(&asked)) {}
    cut("on SIGUSR2");
}

static void listen_for_signal(void) {
    pthread_t thread;
    sigset_t all, before;
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sem_init(&asked, 0, 0);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    if (pthread_create(&thread, NULL, wait_for_signal, NULL)) die("cannot start a thread");
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_detach(thread);
    sigaction(SIGUSR2, &action, NULL);
}

static uint64_t number(const char *name) {
    const char *text = getenv(name);
    if (!text || !*text) return 0;
    char *end;
    uint64_t value = strtoull(text, &end, 10);
    if (*end) die(name);
    return value;
}

static void map_control(const char *path) {
    int fd = (int)sys(SYS_openat, AT_FDCWD, path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0) die("cannot open FLOTILLA_FSYNC_COUNT_FILE");
    struct stat st;
    if (fstat(fd, &st) || (st.st_size < (off_t)sizeof *control && sys(SYS_ftruncate, fd, sizeof *control)))
        die("cannot size FLOTILLA_FSYNC_COUNT_FILE");
    long at = sys(SYS_mmap, 0, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == -1) die("cannot map FLOTILLA_FSYNC_COUNT_FILE");
    control = (struct control *)at;
    sys(SYS_close, fd);
}

__attribute__((constructor)) static void start(void) {
    const char *dir = getenv("FLOTILLA_POWERCUT_DIR");
    const char *mode = getenv("FLOTILLA_POWERCUT_MODE");
    const char *names = getenv("FLOTILLA_POWERCUT_DIR_ENTRIES");
    const char *counts = getenv("FLOTILLA_FSYNC_COUNT_FILE");
    const char *plan = getenv("FLOTILLA_STEPS_FILE");
    if (dir && *dir) {
        if (!realpath(dir, settings.root)) die("FLOTILLA_POWERCUT_DIR must exist");
        settings.root_len = strlen(settings.root);
    }
    if (mode && strcmp(mode, "strict") && strcmp(mode, "torn") && strcmp(mode, "off"))
        die("FLOTILLA_POWERCUT_MODE is strict, torn or off");
    if (names && strcmp(names, "strict") && strcmp(names, "kept"))
        die("FLOTILLA_POWERCUT_DIR_ENTRIES is strict or kept");
    settings.torn = mode && !strcmp(mode, "torn");
    settings.dirs = !names || strcmp(names, "kept");
    settings.seed = number("FLOTILLA_POWERCUT_SEED");
    settings.cut_after_fsync = number("FLOTILLA_POWERCUT_AFTER_FSYNC");
    settings.cut_in_fsync = number("FLOTILLA_POWERCUT_IN_FSYNC");
    settings.cut_in_write = number("FLOTILLA_POWERCUT_IN_WRITE");
    settings.fsync_delay_us = number("FLOTILLA_FSYNC_DELAY_US");
    settings.sync_us_per_mib = number("FLOTILLA_SYNC_US_PER_MIB");
    settings.fsync_fail_after = number("FLOTILLA_FSYNC_FAIL_AFTER");
    if (counts && *counts) map_control(counts);
    if (plan && *plan) steps_open(plan);
    if (settings.root_len && !(mode && !strcmp(mode, "off"))) {
        listen_for_signal();
        settings.journal = true;
    }
}
