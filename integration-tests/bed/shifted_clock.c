/* A wall clock that is SHIFT_SECONDS ahead (behind if negative) for the one process that loads
 * this through LD_PRELOAD. CLOCK_MONOTONIC and CLOCK_BOOTTIME stay, as they do on a host whose
 * clock was set wrongly. Built by the harness of the stories (src/wall_clock.rs).
 *
 * Whoever waits until a moment of the wall clock got that moment from here, so it is shifted back
 * for the kernel. Without that a waiter would not wait at all, or for a day. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now)
{
        int failed = (int)syscall(SYS_clock_gettime, clock, now);
        if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
                now->tv_sec += SHIFT_SECONDS;
        return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
        struct timespec precise;
        (void)zone;
        clock_gettime(CLOCK_REALTIME, &precise);
        now->tv_sec = precise.tv_sec;
        now->tv_usec = precise.tv_nsec / 1000;
        return 0;
}

time_t time(time_t *into)
{
        struct timespec precise;
        clock_gettime(CLOCK_REALTIME, &precise);
        if (into)
                *into = precise.tv_sec;
        return precise.tv_sec;
}

int timespec_get(struct timespec *now, int base)
{
        return base == TIME_UTC && !clock_gettime(CLOCK_REALTIME, now) ? base : 0;
}

int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict until)
{
        struct timespec real = *until;
        real.tv_sec -= SHIFT_SECONDS;
        return pthread_cond_clockwait(condition, mutex, CLOCK_REALTIME, &real);
}

/* The C library's own condition variables are those of POSIX. */
int cnd_timedwait(cnd_t *restrict condition, mtx_t *restrict mutex,
                  const struct timespec *restrict until)
{
        int ended = pthread_cond_timedwait((pthread_cond_t *)condition, (pthread_mutex_t *)mutex,
                                           until);
        return ended == 0 ? thrd_success : ended == ETIMEDOUT ? thrd_timedout : thrd_error;
}
