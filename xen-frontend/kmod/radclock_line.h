/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * The line that Xen system time usually keeps by the TSC, and how far it is off.
 *
 * The backend's parameters are over system time. When Xen loses its pace (held up
 * in the midst of its calibration, or for longer than its platform timer counts),
 * the backend may not be running, or not have noticed yet. Which of the two clocks
 * is wrong cannot be told here, so the bound is to cover the difference.
 *
 * Pure, like radclock_compose.h; whoever includes it has mul_u64_u64_div_u64().
 */
#ifndef RADCLOCK_LINE_H
#define RADCLOCK_LINE_H

#include "radclock_compose.h"

/* From one instant of the line to the other, ns: in the end, and at first. */
#define RADCLOCK_LINE_SPAN		16000000000LL
#define RADCLOCK_LINE_FIRST_SPAN	1000000000LL
/* A line that was not looked at for so long is of the past, ns. */
#define RADCLOCK_LINE_REACH		256000000000LL
/* How far off is usual until it has been seen, and what never matters, ns. */
#define RADCLOCK_LINE_USUAL		100000
#define RADCLOCK_LINE_SMALL		5000
/*
 * A difference that stays for so long under a clock that is synchronised is in
 * the backend's parameters, ns.
 */
#define RADCLOCK_LINE_ABSORBED		60000000000LL
/* No difference is larger, ns: no clock is composed with such a bound. */
#define RADCLOCK_LINE_OFF_MAX		(1ULL << 62)

/* Begins as all zeros. */
struct radclock_line {
	bool begun;
	bool is_off;
	/* The instants that it goes through, the newer one last; the same one at first. */
	uint64_t tsc[2];
	uint64_t system_time[2];
	/* The furthest that it was off usually, up to the newer instant and since, ns. */
	uint64_t usual[2];
	uint64_t off_since;	/* system time */
};

static inline void radclock_line_begin(struct radclock_line *line, uint64_t tsc,
				       uint64_t system_time)
{
	*line = (struct radclock_line) {
		.begun = true,
		.tsc = { tsc, tsc },
		.system_time = { system_time, system_time },
		.usual = { RADCLOCK_LINE_USUAL, 0 },
	};
}

/* Whether a line goes through the instants: no TSC counts slower than 4 MHz. */
static inline bool radclock_line_known(const struct radclock_line *line)
{
	const uint64_t nanos = line->system_time[1] - line->system_time[0];

	return line->tsc[1] - line->tsc[0] > nanos >> 8;
}

/* How far @system_time is from where the line is at @tsc, ns. */
static inline uint64_t radclock_line_distance(const struct radclock_line *line, uint64_t tsc,
					      uint64_t system_time)
{
	const int64_t counts = (int64_t)(tsc - line->tsc[1]);
	const uint64_t ahead = counts < 0 ? -(uint64_t)counts : (uint64_t)counts;
	radclock_s128 off = (int64_t)(system_time - line->system_time[1]);
	uint64_t nanos;

	/* Years: what follows has 8 bits more. */
	if (ahead >> 54)
		return RADCLOCK_LINE_OFF_MAX;
	nanos = mul_u64_u64_div_u64(ahead, line->system_time[1] - line->system_time[0],
				    line->tsc[1] - line->tsc[0]);
	off += counts < 0 ? (radclock_s128)nanos : -(radclock_s128)nanos;
	off = off < 0 ? -off : off;
	return off > RADCLOCK_LINE_OFF_MAX ? RADCLOCK_LINE_OFF_MAX : (uint64_t)off;
}

/*
 * Takes the next look, @system_time at @tsc, under a clock that is @synchronized
 * or not. What a bound has to have on top for the difference, ns.
 */
static inline uint64_t radclock_line_look(struct radclock_line *line, uint64_t tsc,
					  uint64_t system_time, bool synchronized)
{
	const int64_t span = (int64_t)(line->system_time[1] - line->system_time[0]);
	const int64_t elapsed = (int64_t)(system_time - line->system_time[1]);
	uint64_t usual, known, off;

	if (!line->begun || (!span && elapsed < 0)) {
		radclock_line_begin(line, tsc, system_time);
		return 0;
	}
	if (!span) {
		if (elapsed < RADCLOCK_LINE_FIRST_SPAN)
			return 0;
		line->tsc[1] = tsc;
		line->system_time[1] = system_time;
		if (elapsed > RADCLOCK_LINE_SPAN || !radclock_line_known(line))
			radclock_line_begin(line, tsc, system_time);
		return 0;
	}
	if (!line->is_off && elapsed > RADCLOCK_LINE_REACH) {
		radclock_line_begin(line, tsc, system_time);
		return 0;
	}

	off = radclock_line_distance(line, tsc, system_time);
	/* Beyond its own length a line is known less well. */
	usual = line->usual[0] > line->usual[1] ? line->usual[0] : line->usual[1];
	known = usual;
	if (elapsed > span)
		known = mul_u64_u64_div_u64(usual, (uint64_t)elapsed, (uint64_t)span);

	if (off > 2 * (line->is_off ? usual : known) + RADCLOCK_LINE_SMALL) {
		if (!line->is_off || !synchronized)
			line->off_since = system_time;
		line->is_off = true;
		if ((int64_t)(system_time - line->off_since) < RADCLOCK_LINE_ABSORBED)
			return off + known;
		radclock_line_begin(line, tsc, system_time);
		return 0;
	}
	line->is_off = false;
	/* Never so much that the next line could have another slope altogether. */
	usual = off < (uint64_t)span >> 6 ? off : (uint64_t)span >> 6;
	if (usual > line->usual[1])
		line->usual[1] = usual;
	if (elapsed >= span || elapsed >= RADCLOCK_LINE_SPAN) {
		if (span >= RADCLOCK_LINE_SPAN) {
			line->tsc[0] = line->tsc[1];
			line->system_time[0] = line->system_time[1];
			line->usual[0] = line->usual[1];
			line->usual[1] = 0;
		}
		line->tsc[1] = tsc;
		line->system_time[1] = system_time;
		if (!radclock_line_known(line))
			radclock_line_begin(line, tsc, system_time);
	}
	return 0;
}

/*
 * How fast a clock that runs by @info leaves the line, relative, 2^-64; all ones
 * if that is a sixteenth and more: no bound grows so fast. Only for one that is
 * off it, which has a line.
 */
static inline uint64_t radclock_line_departure(const struct radclock_line *line,
					       const struct radclock_time_info *info)
{
	const uint64_t usual = line->system_time[1] - line->system_time[0];
	const uint64_t counted = radclock_system_time(info, line->tsc[1]) -
				 radclock_system_time(info, line->tsc[0]);
	const uint64_t off = counted > usual ? counted - usual : usual - counted;

	if (off >= counted >> 4)
		return ~0ULL;
	return mul_u64_u64_div_u64(off, 1ULL << 63, counted) << 1;
}

#endif /* RADCLOCK_LINE_H */
