// SPDX-License-Identifier: MIT OR Apache-2.0
// Preloaded into QEMU: its CLOCK_MONOTONIC runs LAB_RATE_PPB parts in 10^9 fast. QEMU's HPET and PM timer count it, and
// Xen's system time follows those, so the host's counter has a rate of its own. The TSC stays the build machine's.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

#define SECOND 1000000000LL

static int (*real_clock_gettime)(clockid_t, struct timespec *);
static int64_t start;
static int64_t rate_ppb;

// The first call may come from another library's constructor, before any other thread is there.
static void begin(void)
{
	const char *rate = getenv("LAB_RATE_PPB");
	struct timespec now;

	*(void **)&real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
	real_clock_gettime(CLOCK_MONOTONIC, &now);
	start = now.tv_sec * SECOND + now.tv_nsec;
	rate_ppb = rate ? atoll(rate) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *time)
{
	if (!real_clock_gettime)
		begin();
	int result = real_clock_gettime(clock, time);

	if (clock == CLOCK_MONOTONIC && !result) {
		int64_t now = time->tv_sec * SECOND + time->tv_nsec;

		now += (int64_t)((__int128)(now - start) * rate_ppb / SECOND);
		time->tv_sec = now / SECOND;
		time->tv_nsec = now % SECOND;
	}
	return result;
}
