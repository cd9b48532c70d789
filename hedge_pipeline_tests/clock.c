// The wall clock of a process and its children, moved by the seconds in a shared file; what waits
// for a time to pass is not touched, and the times of files go with the clock.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *moved_by;

__attribute__((constructor)) static void open_clock(void) {
    const char *path = getenv("HEDGE_TEST_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *found = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
    if (found != MAP_FAILED) moved_by = found;
    close(file);
}

static int64_t seconds(void) { return moved_by ? *moved_by : 0; }

int clock_gettime(clockid_t id, struct timespec *at) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int code = real(id, at);
    if (!code && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) at->tv_sec += seconds();
    return code;
}

int gettimeofday(struct timeval *at, void *zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}

static int moved(int code, struct stat *found) {
    if (!code) {
        found->st_mtim.tv_sec += seconds();
        found->st_ctim.tv_sec += seconds();
        found->st_atim.tv_sec += seconds();
    }
    return code;
}

#define MOVED(name, given, passed)                       \
    int name given {                                     \
        static int(*real) given;                         \
        if (!real) real = dlsym(RTLD_NEXT, #name);       \
        return moved(real passed, (struct stat *)found); \
    }

MOVED(stat, (const char *path, struct stat *found), (path, found))
MOVED(lstat, (const char *path, struct stat *found), (path, found))
MOVED(fstat, (int file, struct stat *found), (file, found))
MOVED(fstatat, (int folder, const char *path, struct stat *found, int how), (folder, path, found, how))
MOVED(stat64, (const char *path, struct stat64 *found), (path, found))
MOVED(lstat64, (const char *path, struct stat64 *found), (path, found))
MOVED(fstat64, (int file, struct stat64 *found), (file, found))
MOVED(fstatat64, (int folder, const char *path, struct stat64 *found, int how), (folder, path, found, how))
