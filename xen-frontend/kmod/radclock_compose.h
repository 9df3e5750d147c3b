/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * The arithmetic of the driver: checks a page from the backend and moves its
 * parameters from Xen system time to the guest's TSC.
 *
 * Pure functions over integers, without division and without a library, so that
 * the kernel can use them and a test in user space can hold them against their
 * twin, radclock/src/compose.rs: for the same input both give the same integers.
 */
#ifndef RADCLOCK_COMPOSE_H
#define RADCLOCK_COMPOSE_H

#include "radclockif.h"

#ifndef __KERNEL__
#include <stdbool.h>
#endif

__extension__ typedef unsigned __int128 radclock_u128;
__extension__ typedef __int128 radclock_s128;

/* Xen's struct vcpu_time_info without its version: guest TSC to system time. */
struct radclock_time_info {
	uint64_t tsc_timestamp;
	uint64_t system_time;		/* ns at tsc_timestamp */
	uint32_t tsc_to_system_mul;	/* ns a count, 2^-32, before tsc_shift */
	int8_t tsc_shift;
};

/* What composing adds to the bound, besides its own rounding. */
struct radclock_added {
	uint64_t nanos;		/* error of system time at the reference, ns */
	uint64_t rate;		/* relative error of the TSC's scale, 2^-64 */
};

/* The parameters of a page, named as there. */
struct radclock_params {
	uint64_t counter_value;
	uint64_t time_sec;
	uint64_t time_frac_sec;
	uint64_t time_maxerror_nanosec;
	uint64_t counter_period_frac_sec;
	uint64_t counter_period_maxerror_rate_frac_sec;
	uint8_t counter_period_shift;
};

/* Why a page from the backend is not used. */
enum radclock_page_fault {
	RADCLOCK_PAGE_OK,
	RADCLOCK_PAGE_LAYOUT,	/* magic, version or size */
	RADCLOCK_PAGE_COUNTER,	/* another counter, or not UTC */
	RADCLOCK_PAGE_STATUS,	/* a status that is none */
	RADCLOCK_PAGE_NO_BOUND,	/* a readable status without bounds */
	RADCLOCK_PAGE_PERIOD,	/* not a nanosecond */
	RADCLOCK_PAGE_TIME,	/* beyond any date */
};

/*
 * Rounding of a composed clock, ns: Xen's scaling drops up to a nanosecond twice
 * (the TSC's low bits when tsc_shift is negative, and the product's fraction).
 */
#define RADCLOCK_ROUNDING_NANOS	2

/*
 * A nanosecond in units of 2^-64 s, less and plus 1 %: the platform timer behind
 * Xen system time is never as wrong as that.
 */
#define RADCLOCK_NANO_FRAC_MIN	18262276632ULL
#define RADCLOCK_NANO_FRAC_MAX	18631211515ULL
/* The largest shift with which a nanosecond fits into 64 bits. */
#define RADCLOCK_NANO_SHIFT_MAX	29
/* A bound on the period's error above 1/16 of the period is nonsense. */
#define RADCLOCK_RATE_FRACTION	4
/* 2262-04-11: what signed nanoseconds since 1970 hold, which is what programs make of it. */
#define RADCLOCK_TIME_SEC_MAX	9223372036ULL

static inline bool radclock_readable(uint8_t status)
{
	return status == RADCLOCK_STATUS_SYNCHRONIZED ||
	       status == RADCLOCK_STATUS_FREERUNNING;
}

/* Whether @page, a private copy, is one that a backend of version 1 writes. */
static inline enum radclock_page_fault
radclock_check_wire(const struct radclock_page *page)
{
	const struct radclock_vmclock *abi = &page->abi;
	const uint64_t bounds = RADCLOCK_FLAG_PERIOD_MAXERROR_VALID |
				RADCLOCK_FLAG_TIME_MAXERROR_VALID;
	const uint64_t period = abi->counter_period_frac_sec;
	const uint8_t shift = abi->counter_period_shift;

	if (abi->magic != RADCLOCK_VMCLOCK_MAGIC ||
	    abi->version != RADCLOCK_VMCLOCK_VERSION ||
	    abi->size != RADCLOCK_PAGE_SIZE ||
	    page->ext.magic != RADCLOCK_EXTENSION_MAGIC ||
	    page->ext.version != RADCLOCK_EXTENSION_VERSION)
		return RADCLOCK_PAGE_LAYOUT;
	if (abi->counter_id != RADCLOCK_COUNTER_XEN_SYSTEM ||
	    abi->time_type != RADCLOCK_TIME_UTC)
		return RADCLOCK_PAGE_COUNTER;
	if (abi->clock_status > RADCLOCK_STATUS_UNRELIABLE)
		return RADCLOCK_PAGE_STATUS;
	if (!radclock_readable(abi->clock_status))
		return RADCLOCK_PAGE_OK;
	if ((abi->flags & bounds) != bounds)
		return RADCLOCK_PAGE_NO_BOUND;
	if (shift > RADCLOCK_NANO_SHIFT_MAX ||
	    period < RADCLOCK_NANO_FRAC_MIN << shift ||
	    period > RADCLOCK_NANO_FRAC_MAX << shift ||
	    abi->counter_period_maxerror_rate_frac_sec > period >> RADCLOCK_RATE_FRACTION)
		return RADCLOCK_PAGE_PERIOD;
	if (abi->time_sec > RADCLOCK_TIME_SEC_MAX)
		return RADCLOCK_PAGE_TIME;
	return RADCLOCK_PAGE_OK;
}

/* The parameters of a page that passed radclock_check_wire(). */
static inline struct radclock_params
radclock_page_params(const struct radclock_page *page)
{
	const struct radclock_vmclock *abi = &page->abi;
	struct radclock_params params = {
		.counter_value = abi->counter_value,
		.time_sec = abi->time_sec,
		.time_frac_sec = abi->time_frac_sec,
		.time_maxerror_nanosec = abi->time_maxerror_nanosec,
		.counter_period_frac_sec = abi->counter_period_frac_sec,
		.counter_period_maxerror_rate_frac_sec =
			abi->counter_period_maxerror_rate_frac_sec,
		.counter_period_shift = abi->counter_period_shift,
	};

	return params;
}

/* Whether a record can be used: Xen never leaves mul at 0 or shifts further. */
static inline bool radclock_time_info_valid(const struct radclock_time_info *info)
{
	return info->tsc_to_system_mul && info->tsc_shift > -32 && info->tsc_shift < 32;
}

/*
 * Xen system time in ns at @tsc by a valid record, as Xen itself computes it
 * (rounding included), also for a @tsc before the record's. Wraps like the TSC.
 */
static inline uint64_t radclock_system_time(const struct radclock_time_info *info, uint64_t tsc)
{
	const int64_t delta = (int64_t)(tsc - info->tsc_timestamp);
	radclock_s128 scaled = delta;

	if (info->tsc_shift < 0)
		scaled >>= -info->tsc_shift;
	else
		scaled *= (int64_t)1 << info->tsc_shift;
	/* 63 + 31 bits, by 32 more: at most 126. */
	scaled *= info->tsc_to_system_mul;
	return info->system_time + (uint64_t)(scaled >> 32);
}

/* A span of 2^-64 s in ns, rounded up; all ones if it is longer than that holds. */
static inline uint64_t radclock_ceil_nanos(radclock_u128 frac)
{
	const uint64_t secs = (uint64_t)(frac >> 64);
	const radclock_u128 nanos = (radclock_u128)secs * 1000000000 +
		(((radclock_u128)(uint64_t)frac * 1000000000 + ~0ULL) >> 64);

	return nanos >> 64 ? ~0ULL : (uint64_t)nanos;
}

/*
 * Composes @wire, over Xen system time, with @info into parameters over the TSC
 * whose reference instant is @tsc. False, and nothing written, if the record is
 * not valid or the result does not fit the page; the parameters need not have
 * passed any check.
 */
static inline bool radclock_compose(const struct radclock_params *wire,
				    const struct radclock_time_info *info, uint64_t tsc,
				    const struct radclock_added *added,
				    struct radclock_params *guest)
{
	const uint8_t wire_shift = wire->counter_period_shift;
	uint64_t period, rate;
	radclock_u128 time, product, growth, bound;
	int64_t elapsed;
	radclock_s128 span;
	int bits, shift;

	if (!radclock_time_info_valid(info) || !wire->counter_period_frac_sec || wire_shift > 63)
		return false;

	/* The time at tsc, rounded towards minus infinity. */
	elapsed = (int64_t)(radclock_system_time(info, tsc) - wire->counter_value);
	span = (radclock_s128)elapsed * wire->counter_period_frac_sec;
	span >>= wire_shift;
	time = ((radclock_u128)wire->time_sec << 64 | wire->time_frac_sec) + (radclock_u128)span;
	/* It must stay in the first half of the range, so a wrap-around shows. */
	if (wire->time_sec >> 63 || time >> 127)
		return false;

	/*
	 * The period: frac / 2^(64 + wire_shift) * mul * 2^(tsc_shift - 32), with 64
	 * significant bits, rounded down.
	 */
	product = (radclock_u128)wire->counter_period_frac_sec * info->tsc_to_system_mul;
	bits = product >> 64 ? 128 - __builtin_clzll((uint64_t)(product >> 64))
			     : 64 - __builtin_clzll((uint64_t)product);
	shift = wire_shift + 96 - bits - info->tsc_shift;
	if (shift < 0 || shift > 63)
		return false;
	period = (uint64_t)(bits > 64 ? product >> (bits - 64) : product << (64 - bits));

	/* Its bound: the wire's, rounded up, one for the rounding above, and what is added. */
	bound = (radclock_u128)wire->counter_period_maxerror_rate_frac_sec * info->tsc_to_system_mul;
	if (bits > 64)
		bound = (bound >> (bits - 64)) + 1;
	else if (bound >> bits)
		return false;
	else
		bound <<= 64 - bits;
	bound += 1;
	if (bound >> 64)
		return false;
	/* The sum has 65 bits, so it is multiplied in two parts. */
	product = (radclock_u128)period + bound;
	bound += (product >> 64) * added->rate +
		 ((radclock_u128)(uint64_t)product * added->rate >> 64) + 1;
	if (bound >> 64)
		return false;
	rate = (uint64_t)bound;

	/* The bound at tsc. */
	growth = (radclock_u128)(elapsed < 0 ? -(uint64_t)elapsed : (uint64_t)elapsed) *
		 wire->counter_period_maxerror_rate_frac_sec;
	growth = (growth >> wire_shift) + 1;
	bound = (radclock_u128)wire->time_maxerror_nanosec + radclock_ceil_nanos(growth) +
		added->nanos + RADCLOCK_ROUNDING_NANOS;
	if (bound >> 64)
		return false;

	guest->counter_value = tsc;
	guest->time_sec = (uint64_t)(time >> 64);
	guest->time_frac_sec = (uint64_t)time;
	guest->time_maxerror_nanosec = (uint64_t)bound;
	guest->counter_period_frac_sec = period;
	guest->counter_period_maxerror_rate_frac_sec = rate;
	guest->counter_period_shift = (uint8_t)shift;
	return true;
}

/*
 * What is left of valid_nanos at @tsc, for a page whose reference instant moves
 * from the wire's to @tsc. 0: the clock is free-running.
 */
static inline uint64_t radclock_valid_left(uint64_t valid_nanos, uint64_t wire_counter,
					   const struct radclock_time_info *info, uint64_t tsc)
{
	const int64_t elapsed = (int64_t)(radclock_system_time(info, tsc) - wire_counter);

	if (elapsed <= 0)
		return valid_nanos;
	return valid_nanos > (uint64_t)elapsed ? valid_nanos - (uint64_t)elapsed : 0;
}

#endif /* RADCLOCK_COMPOSE_H */
