/* Count the calls that write below a folder, and at one of them kill the process or refuse as a bad disk would.
 *
 * Preloaded, and idle until `faults_arm`. Calls are counted from 1 in the order in which they are made; what they are
 * is kept, so that a first run without a fault shows how many there are and which.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define KEPT 16384
#define LONGEST 512

/* the same numbers as `Mode` in hook.py */
enum { COUNT, KILL_BEFORE, KILL_AFTER, REFUSE_ONCE, REFUSE_FROM, FILL_UP };
enum verdict { GO, GO_AND_DIE, GO_HALF, REFUSE };

static char root[LONGEST];
static size_t root_length;
static long fault_at, count;
static int mode = COUNT, number, armed;
static char calls[KEPT][LONGEST];

void faults_arm(const char *folder, long at, int how, int error)
{
    root_length = (size_t)snprintf(root, sizeof root, "%s", folder);
    fault_at = at;
    mode = how;
    number = error;
    count = 0;
    armed = 1;
}

void faults_disarm(void) { armed = 0; }

long faults_count(void) { return count; }

const char *faults_call(long index) { return index >= 1 && index <= count && index <= KEPT ? calls[index - 1] : ""; }

static void die(void)
{
    kill(getpid(), SIGKILL);
    pause();
}

static int refuse(int error)
{
    errno = error;
    return REFUSE;
}

/* `needs_space`: a full disk refuses the call */
static int reached(const char *call, const char *path, int needs_space)
{
    if (!armed || strncmp(path, root, root_length) != 0 || (path[root_length] != '/' && path[root_length] != '\0'))
        return GO;
    count++;
    if (count <= KEPT)
        snprintf(calls[count - 1], LONGEST, "%s %s", call, path + root_length);
    if (count < fault_at || mode == COUNT)
        return GO;
    switch (mode) {
    case KILL_BEFORE:
        die();
        return GO;
    case KILL_AFTER:
        return count == fault_at ? GO_AND_DIE : GO;
    case REFUSE_ONCE:
        return count == fault_at ? refuse(number) : GO;
    case REFUSE_FROM:
        return refuse(number);
    default:
        if (!needs_space)
            return GO;
        return count == fault_at && strstr(call, "write") ? GO_HALF : refuse(number);
    }
}

static const char *of_descriptor(int descriptor, char *path)
{
    char link[64];
    int before = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = armed ? readlink(link, path, LONGEST - 1) : -1;
    path[length > 0 ? length : 0] = '\0';
    errno = before;
    return path;
}

static const char *of_name(int folder, const char *name, char *path)
{
    char base[LONGEST];
    if (!armed)
        return "";
    if (name[0] == '/') {
        snprintf(path, LONGEST, "%s", name);
        return path;
    }
    if (folder != AT_FDCWD)
        of_descriptor(folder, base);
    else if (getcwd(base, sizeof base) == NULL)
        base[0] = '\0';
    if (snprintf(path, LONGEST, "%s/%s", base, name) >= LONGEST)
        path[LONGEST - 1] = '\0';
    return path;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* make the call `real`, unless the verdict on it is another */
#define CALL(label, path, needs_space, real)                                                                           \
    do {                                                                                                               \
        int verdict = reached(label, path, needs_space);                                                               \
        if (verdict == REFUSE)                                                                                         \
            return -1;                                                                                                 \
        __typeof__(real) result = real;                                                                                \
        if (verdict == GO_AND_DIE)                                                                                     \
            die();                                                                                                     \
        return result;                                                                                                 \
    } while (0)

/* the same for a call with a size, of which a part may be done */
#define WRITE(label, path, size, real)                                                                                 \
    do {                                                                                                               \
        int verdict = reached(label, path, 1);                                                                         \
        if (verdict == REFUSE)                                                                                         \
            return -1;                                                                                                 \
        if (verdict != GO)                                                                                             \
            size /= 2;                                                                                                 \
        ssize_t result = real;                                                                                         \
        if (verdict == GO_AND_DIE)                                                                                     \
            die();                                                                                                     \
        return result;                                                                                                 \
    } while (0)

static int writes(int flags) { return flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC); }

#define OPEN_MODE(flags)                                                                                               \
    mode_t permissions = 0;                                                                                            \
    if ((flags) & (O_CREAT | (O_TMPFILE & ~O_DIRECTORY))) {                                                            \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        permissions = va_arg(rest, mode_t);                                                                            \
        va_end(rest);                                                                                                  \
    }

#define OPENER(name)                                                                                                   \
    int name(const char *file, int flags, ...)                                                                         \
    {                                                                                                                  \
        char path[LONGEST];                                                                                            \
        OPEN_MODE(flags)                                                                                               \
        if (!writes(flags))                                                                                            \
            return NEXT(name)(file, flags, permissions);                                                               \
        CALL("open", of_name(AT_FDCWD, file, path), flags & O_CREAT, NEXT(name)(file, flags, permissions));            \
    }

#define OPENER_AT(name)                                                                                                \
    int name(int folder, const char *file, int flags, ...)                                                             \
    {                                                                                                                  \
        char path[LONGEST];                                                                                            \
        OPEN_MODE(flags)                                                                                               \
        if (!writes(flags))                                                                                            \
            return NEXT(name)(folder, file, flags, permissions);                                                       \
        CALL("open", of_name(folder, file, path), flags & O_CREAT, NEXT(name)(folder, file, flags, permissions));      \
    }

OPENER(open)
OPENER(open64)
OPENER_AT(openat)
OPENER_AT(openat64)

int creat(const char *file, mode_t permissions)
{
    char path[LONGEST];
    CALL("open", of_name(AT_FDCWD, file, path), 1, NEXT(creat)(file, permissions));
}

ssize_t write(int descriptor, const void *bytes, size_t size)
{
    char path[LONGEST];
    WRITE("write", of_descriptor(descriptor, path), size, NEXT(write)(descriptor, bytes, size));
}

ssize_t pwrite(int descriptor, const void *bytes, size_t size, off_t offset)
{
    char path[LONGEST];
    WRITE("pwrite", of_descriptor(descriptor, path), size, NEXT(pwrite)(descriptor, bytes, size, offset));
}

ssize_t pwrite64(int descriptor, const void *bytes, size_t size, off64_t offset)
{
    char path[LONGEST];
    WRITE("pwrite", of_descriptor(descriptor, path), size, NEXT(pwrite64)(descriptor, bytes, size, offset));
}

ssize_t writev(int descriptor, const struct iovec *parts, int size)
{
    char path[LONGEST];
    WRITE("writev", of_descriptor(descriptor, path), size, NEXT(writev)(descriptor, parts, size));
}

int fsync(int descriptor)
{
    char path[LONGEST];
    CALL("fsync", of_descriptor(descriptor, path), 1, NEXT(fsync)(descriptor));
}

int fdatasync(int descriptor)
{
    char path[LONGEST];
    CALL("fdatasync", of_descriptor(descriptor, path), 1, NEXT(fdatasync)(descriptor));
}

int ftruncate(int descriptor, off_t size)
{
    char path[LONGEST];
    CALL("ftruncate", of_descriptor(descriptor, path), 0, NEXT(ftruncate)(descriptor, size));
}

int ftruncate64(int descriptor, off64_t size)
{
    char path[LONGEST];
    CALL("ftruncate", of_descriptor(descriptor, path), 0, NEXT(ftruncate64)(descriptor, size));
}

int rename(const char *old, const char *new)
{
    char path[LONGEST];
    CALL("rename", of_name(AT_FDCWD, new, path), 0, NEXT(rename)(old, new));
}

int renameat(int old_folder, const char *old, int new_folder, const char *new)
{
    char path[LONGEST];
    CALL("rename", of_name(new_folder, new, path), 0, NEXT(renameat)(old_folder, old, new_folder, new));
}

int renameat2(int old_folder, const char *old, int new_folder, const char *new, unsigned int flags)
{
    char path[LONGEST];
    CALL("rename", of_name(new_folder, new, path), 0, NEXT(renameat2)(old_folder, old, new_folder, new, flags));
}

int mkdir(const char *file, mode_t permissions)
{
    char path[LONGEST];
    CALL("mkdir", of_name(AT_FDCWD, file, path), 1, NEXT(mkdir)(file, permissions));
}

int mkdirat(int folder, const char *file, mode_t permissions)
{
    char path[LONGEST];
    CALL("mkdir", of_name(folder, file, path), 1, NEXT(mkdirat)(folder, file, permissions));
}

int unlink(const char *file)
{
    char path[LONGEST];
    CALL("unlink", of_name(AT_FDCWD, file, path), 0, NEXT(unlink)(file));
}

int unlinkat(int folder, const char *file, int flags)
{
    char path[LONGEST];
    CALL("unlink", of_name(folder, file, path), 0, NEXT(unlinkat)(folder, file, flags));
}

int rmdir(const char *file)
{
    char path[LONGEST];
    CALL("rmdir", of_name(AT_FDCWD, file, path), 0, NEXT(rmdir)(file));
}
