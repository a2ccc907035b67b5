/* Ends or stops the process exactly at a file call: the n-th write, sync, link, ... of a path that matches.
 *
 * The plan lies in the file of FLOTILLA_STEPS_FILE, which all processes of a test may share and which the test
 * rewrites while they run: see README.md for its layout. A plan is a sequence of calls, each looked for once the one
 * before it was met, by this process alone; the process that meets the last one first claims the plan, and no other
 * one acts on it. */
#include "powercut.h"
#include <fnmatch.h>
#include <signal.h>
#include <sys/mman.h>

#define CALLS_MAX 8
#define PLAN_BYTES 4088

struct steps_file {
    uint32_t generation; /* a new number: a new plan */
    uint32_t claimed_by; /* the process that acted on it */
    char plan[PLAN_BYTES];
};

struct wanted {
    enum call call;
    bool before;
    unsigned long nth, seen;
    char path[512], content[256];
};

bool steps_on;
static struct steps_file *steps;
static pthread_mutex_t plan_lock = PTHREAD_MUTEX_INITIALIZER;
static uint32_t generation;
static char ending[8];
static struct wanted wanted[CALLS_MAX];
static size_t wanted_count, next;

static const char *const NAMES[] = {"create", "read", "write", "sync", "link", "unlink"};

void steps_open(const char *path) {
    int fd = (int)sys(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) || st.st_size < (off_t)sizeof *steps) die("cannot use FLOTILLA_STEPS_FILE");
    long at = sys(SYS_mmap, 0, sizeof *steps, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == -1) die("cannot map FLOTILLA_STEPS_FILE");
    sys(SYS_close, fd);
    steps = (struct steps_file *)at;
    steps_on = true;
}

static enum call call_of(const char *name) {
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++)
        if (!strcmp(name, NAMES[i])) return (enum call)i;
    die("FLOTILLA_STEPS_FILE: no such call");
}

/* Lines: the ending; then for each call "before|after NAME N PATH [CONTENT]". Under plan_lock. */
static void read_plan(uint32_t now) {
    char text[PLAN_BYTES], when[8], name[8], *rest = NULL;
    memcpy(text, steps->plan, sizeof text);
    text[sizeof text - 1] = 0;
    generation = now;
    wanted_count = next = 0;
    char *line = strtok_r(text, "\n", &rest);
    if (!line) return;
    snprintf(ending, sizeof ending, "%s", line);
    if (strcmp(ending, "kill") && strcmp(ending, "stop") && strcmp(ending, "cut"))
        die("FLOTILLA_STEPS_FILE: the ending is kill, stop or cut");
    while ((line = strtok_r(NULL, "\n", &rest))) {
        if (wanted_count == CALLS_MAX) die("FLOTILLA_STEPS_FILE: too many calls");
        struct wanted *w = &wanted[wanted_count++];
        memset(w, 0, sizeof *w);
        if (sscanf(line, "%7s %7s %lu %511s %255s", when, name, &w->nth, w->path, w->content) < 4)
            die("FLOTILLA_STEPS_FILE: a line that cannot be read");
        w->before = !strcmp(when, "before");
        w->call = call_of(name);
    }
}

/* Whether this call is the last one of the plan, and no other process was faster. */
static bool meets(enum call call, bool before, const char *path, const void *data, size_t len) {
    bool met = false;
    uint32_t now = __atomic_load_n(&steps->generation, __ATOMIC_ACQUIRE);
    pthread_mutex_lock(&plan_lock);
    if (now != generation) read_plan(now);
    struct wanted *w = next < wanted_count ? &wanted[next] : NULL;
    if (w && w->call == call && w->before == before && !fnmatch(w->path, path, 0) &&
        (!w->content[0] || (data && memmem(data, len, w->content, strlen(w->content)))) && ++w->seen == w->nth) {
        uint32_t nobody = 0;
        met = ++next == wanted_count &&
              __atomic_compare_exchange_n(&steps->claimed_by, &nobody, (uint32_t)sys(SYS_getpid), false,
                                          __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
    pthread_mutex_unlock(&plan_lock);
    return met;
}

static void act(enum call call, bool before, const char *path) {
    pid_t pid = (pid_t)sys(SYS_getpid);
    say("powercut: pid %d: %s %s %s of %s\n", (int)pid, ending, before ? "before" : "after", NAMES[call], path);
    if (!strcmp(ending, "cut")) {
        if (!settings.journal) die("FLOTILLA_STEPS_FILE says cut, and there is no journal");
        cut("at a step");
    }
    bool stop = !strcmp(ending, "stop");
    sys(SYS_kill, pid, stop ? SIGSTOP : SIGKILL);
    while (!stop) pause();
}

void step_path(enum call call, bool before, const char *path) {
    int saved = errno;
    if (meets(call, before, path, NULL, 0)) act(call, before, path);
    errno = saved;
}

void step_fd(enum call call, bool before, int fd, const void *data, size_t len) {
    char path[PATH_MAX];
    int saved = errno;
    /* Sockets and pipes have no path. */
    if (fd_path(fd, path) && meets(call, before, path, data, len)) act(call, before, path);
    errno = saved;
}
