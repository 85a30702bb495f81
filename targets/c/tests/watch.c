/* Preloaded, tells on stderr of every environment variable, file and thread that a program asks libc for. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>

#define NEXT(function) ((__typeof__(&function))dlsym(RTLD_NEXT, #function))
#define MODE(flags, last) ((flags) & (O_CREAT | __O_TMPFILE) ? va_arg(last, int) : 0)

char *getenv(const char *name)
{
    fprintf(stderr, "variable %s\n", name);
    return NEXT(getenv)(name);
}

char *secure_getenv(const char *name)
{
    fprintf(stderr, "variable %s\n", name);
    return NEXT(secure_getenv)(name);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument)
{
    fprintf(stderr, "thread\n");
    return NEXT(pthread_create)(thread, attributes, start, argument);
}

#define OPEN(function)                                                                              \
    int function(const char *path, int flags, ...)                                                  \
    {                                                                                               \
        va_list last;                                                                               \
        int mode;                                                                                   \
        va_start(last, flags);                                                                      \
        mode = MODE(flags, last);                                                                   \
        va_end(last);                                                                               \
        fprintf(stderr, "file %s\n", path);                                                         \
        return NEXT(function)(path, flags, mode);                                                   \
    }

OPEN(open)
OPEN(open64)
