// Stands between a program and the system's calls on files (LD_PRELOAD): writes down what is done to which
// file, in order, and lets one of the calls fail, or kills the process before it.
//
//   FAULT_LOG    file that each call is appended to: CALL, its path or paths, and 0 or the error's number,
//                with tabs between them
//   FAULT_CALL   open, write, fsync or rename: the calls that are counted (each with its kin); any: all of them, and
//                those that make and remove files and folders
//   FAULT_MATCH  pattern as a shell's of the whole path, * for anything, slashes too; of a rename, of either
//                path; none for every path
//   FAULT_AT     N: the Nth such call of the process, from 1; N+: it and all that follow
//   FAULT_DO     eio, enospc, erofs, or kill: SIGKILL before the call is made
//   FAULT_CLOCK  N: the clock (CLOCK_REALTIME) goes an hour back at its Nth reading, forth again at the 2Nth,
//                and so on; clocks that only go forth are left alone
//
// What is written through mmap, or within libc (stdio's files, when they are opened), is not seen. Writes
// to pipes, sockets and terminals are passed on.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define PATH (2 * PATH_MAX)

static int log_file = -1;
static const char *call_name, *pattern;
static long at, turn;
static int onwards, failure, killing;
static atomic_long counted, readings;

// Ends the program that was asked for something it cannot be given.
static __attribute__((noreturn)) void refuse(const char *what) {
  dprintf(2, "faults: %s\n", what);
  _exit(99);
}

// A file with the permissions of the program, at a number that the program does not come to.
static void open_log(const char *path) {
  const int found = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (found < 0)
    refuse("FAULT_LOG cannot be opened");
  log_file = fcntl(found, F_DUPFD_CLOEXEC, 200);
  syscall(SYS_close, found);
  if (log_file < 0)
    refuse("FAULT_LOG has no place");
}

static __attribute__((constructor)) void begin(void) {
  const char *log = getenv("FAULT_LOG"), *fault = getenv("FAULT_DO"), *number = getenv("FAULT_AT");
  const char *turns = getenv("FAULT_CLOCK");
  if (turns && (turn = strtol(turns, NULL, 10)) < 1)
    refuse("FAULT_CLOCK is N, from 1");
  if (log)
    open_log(log);
  if (!fault)
    return;
  call_name = getenv("FAULT_CALL");
  pattern = getenv("FAULT_MATCH");
  char *rest = NULL;
  at = number ? strtol(number, &rest, 10) : 0;
  onwards = rest && strcmp(rest, "+") == 0;
  if (at < 1 || (!onwards && *rest))
    refuse("FAULT_AT is N or N+, from 1");
  const char *calls[] = {"open", "write", "fsync", "rename", "any"};
  int known = 0;
  for (int i = 0; i < 5; ++i)
    known |= call_name && strcmp(call_name, calls[i]) == 0;
  if (!known)
    refuse("FAULT_CALL is open, write, fsync, rename or any");
  if (strcmp(fault, "eio") == 0)
    failure = EIO;
  else if (strcmp(fault, "enospc") == 0)
    failure = ENOSPC;
  else if (strcmp(fault, "erofs") == 0)
    failure = EROFS;
  else if (strcmp(fault, "kill") == 0)
    killing = 1;
  else
    refuse("FAULT_DO is eio, enospc, erofs or kill");
}

static void say(const char *call, const char *path, const char *to, int error) {
  if (log_file < 0)
    return;
  char line[2 * PATH + 64];
  const int length = to ? snprintf(line, sizeof line, "%s\t%s\t%s\t%d\n", call, path, to, error)
                        : snprintf(line, sizeof line, "%s\t%s\t%d\n", call, path, error);
  // One call a line, so that threads and processes tear none.
  syscall(SYS_write, log_file, line, (size_t)length);
}

static int matches(const char *path) { return path && (!pattern || fnmatch(pattern, path, 0) == 0); }

// Whether this call is to fail, with errno set; it does not return where the process is to die.
static int falls(const char *call, const char *path, const char *to) {
  if (!(failure || killing) || !(matches(path) || matches(to)))
    return 0;
  if (strcmp(call, call_name) != 0 && strcmp("any", call_name) != 0)
    return 0;
  const long number = atomic_fetch_add(&counted, 1) + 1;
  if (number != at && !(onwards && number > at))
    return 0;
  if (killing) {
    say("kill", path, to, 0);
    syscall(SYS_kill, getpid(), SIGKILL);
  }
  say(call, path, to, failure);
  errno = failure;
  return 1;
}

// The path of a name below an open folder.
static void whole(int folder, const char *name, char *out) {
  char base[PATH_MAX] = "";
  if (name[0] == '/') {
    snprintf(out, PATH, "%s", name);
    return;
  }
  if (folder == AT_FDCWD) {
    if (syscall(SYS_getcwd, base, sizeof base) < 0)
      base[0] = 0;
  } else {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    const ssize_t length = readlink(link, base, sizeof base - 1);
    base[length < 0 ? 0 : length] = 0;
  }
  snprintf(out, PATH, "%s/%s", base, name);
}

// The path of an open file; 0 where it is none.
static int opened(int file, char *out) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  const ssize_t length = readlink(link, out, PATH - 1);
  out[length < 0 ? 0 : length] = 0;
  return length > 0 && out[0] == '/' && strncmp(out, "/dev/", 5) != 0 && strncmp(out, "/proc/", 6) != 0;
}

// A call on an open file: a fault, or the call and a line.
#define ON_FILE(call, file, made)                                                                            \
  char path[PATH];                                                                                           \
  const int before = errno;                                                                                  \
  const int is_file = opened(file, path);                                                                    \
  if (is_file && falls(call, path, NULL))                                                                    \
    return -1;                                                                                               \
  errno = before;                                                                                            \
  const ssize_t done = made;                                                                                 \
  const int after = errno;                                                                                   \
  if (is_file)                                                                                               \
    say(call, path, NULL, done < 0 ? after : 0);                                                             \
  errno = after;                                                                                             \
  return done;

ssize_t write(int file, const void *bytes, size_t count) {
  ON_FILE("write", file, syscall(SYS_write, file, bytes, count))
}
ssize_t writev(int file, const struct iovec *parts, int count) {
  ON_FILE("write", file, syscall(SYS_writev, file, parts, count))
}
ssize_t pwrite64(int file, const void *bytes, size_t count, off64_t place) {
  ON_FILE("write", file, syscall(SYS_pwrite64, file, bytes, count, place))
}
ssize_t pwrite(int file, const void *bytes, size_t count, off_t place) {
  return pwrite64(file, bytes, count, place);
}
ssize_t copy_file_range(int from, off64_t *start, int to, off64_t *place, size_t count, unsigned flags) {
  ON_FILE("write", to, syscall(SYS_copy_file_range, from, start, to, place, count, flags))
}
ssize_t sendfile64(int to, int from, off64_t *start, size_t count) {
  ON_FILE("write", to, syscall(SYS_sendfile, to, from, start, count))
}
ssize_t sendfile(int to, int from, off_t *start, size_t count) { return sendfile64(to, from, start, count); }
int ftruncate64(int file, off64_t length) { ON_FILE("write", file, syscall(SYS_ftruncate, file, length)) }
int ftruncate(int file, off_t length) { return ftruncate64(file, length); }

int fsync(int file) { ON_FILE("fsync", file, syscall(SYS_fsync, file)) }
int fdatasync(int file) { ON_FILE("fsync", file, syscall(SYS_fdatasync, file)) }

// Only files that are opened for writing are of interest; one that may be made by it is said to be.
static int open_at(int folder, const char *name, int flags, mode_t mode) {
  char path[PATH];
  const int writes = (flags & O_ACCMODE) != O_RDONLY || (flags & O_CREAT);
  const int before = errno;
  if (writes) {
    whole(folder, name, path);
    if (falls("open", path, NULL))
      return -1;
  }
  errno = before;
  const int file = syscall(SYS_openat, folder, name, flags, mode);
  const int after = errno;
  if (writes)
    say(flags & O_CREAT ? "create" : "open", path, NULL, file < 0 ? after : 0);
  errno = after;
  return file;
}

// There is a mode where a file may be made.
#define MODE                                                                                                 \
  mode_t mode = 0;                                                                                           \
  if ((flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE) {                                               \
    va_list more;                                                                                            \
    va_start(more, flags);                                                                                   \
    mode = va_arg(more, mode_t);                                                                             \
    va_end(more);                                                                                            \
  }

int open(const char *name, int flags, ...) {
  MODE return open_at(AT_FDCWD, name, flags, mode);
}
int open64(const char *name, int flags, ...) {
  MODE return open_at(AT_FDCWD, name, flags | O_LARGEFILE, mode);
}
int openat(int folder, const char *name, int flags, ...) {
  MODE return open_at(folder, name, flags, mode);
}
int openat64(int folder, const char *name, int flags, ...) {
  MODE return open_at(folder, name, flags | O_LARGEFILE, mode);
}
int creat(const char *name, mode_t mode) {
  return open_at(AT_FDCWD, name, O_CREAT | O_WRONLY | O_TRUNC, mode);
}
int creat64(const char *name, mode_t mode) { return creat(name, mode); }

int renameat2(int of, const char *from, int in, const char *to, unsigned flags) {
  char source[PATH], target[PATH];
  const int before = errno;
  whole(of, from, source);
  whole(in, to, target);
  if (falls("rename", source, target))
    return -1;
  errno = before;
  const int done = syscall(SYS_renameat2, of, from, in, to, flags);
  const int after = errno;
  say("rename", source, target, done < 0 ? after : 0);
  errno = after;
  return done;
}
int renameat(int of, const char *from, int in, const char *to) { return renameat2(of, from, in, to, 0); }
int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }

// A call on a name below a folder: a fault, or the call.
#define ON_NAME(call, folder, name, made)                                                                    \
  char path[PATH];                                                                                           \
  const int before = errno;                                                                                  \
  whole(folder, name, path);                                                                                 \
  if (falls(call, path, NULL))                                                                               \
    return -1;                                                                                               \
  errno = before;                                                                                            \
  return made;

int mkdirat(int folder, const char *name, mode_t mode) {
  ON_NAME("make", folder, name, syscall(SYS_mkdirat, folder, name, mode))
}
int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }
int unlinkat(int folder, const char *name, int flags) {
  ON_NAME("remove", folder, name, syscall(SYS_unlinkat, folder, name, flags))
}
int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }

int clock_gettime(clockid_t clock, struct timespec *now) {
  const int done = syscall(SYS_clock_gettime, clock, now);
  if (done == 0 && clock == CLOCK_REALTIME && turn && (atomic_fetch_add(&readings, 1) + 1) / turn % 2)
    now->tv_sec -= 3600;
  return done;
}
