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
/* An instant that system time did not leave the line within so long after, ns. */
#define RADCLOCK_LINE_PROVED		2000000000LL
/* How far off is usual until it has been seen, and what never matters, ns. */
#define RADCLOCK_LINE_USUAL		100000
#define RADCLOCK_LINE_SMALL		5000
/*
 * A difference that stays is in the backend's parameters if their reference is
 * so much later than its beginning, ns.
 */
#define RADCLOCK_LINE_ABSORBED		60000000000LL
/* No difference is larger, ns: no clock is composed with such a bound. */
#define RADCLOCK_LINE_OFF_MAX		(1ULL << 62)

/* Begins as all zeros. */
struct radclock_line {
	bool begun;
	bool is_off;
	bool has_next;
	/*
	 * The instants that it goes through, the newer one second; the same one at first.
	 * Then the next one, until it is proved: it may be that of a departure.
	 */
	uint64_t tsc[3];
	uint64_t system_time[3];
	/*
	 * The furthest that it was off usually, ns: in the two stretches before the newer
	 * instant, and from there to the next. The last is not usual yet: of what departs
	 * slowly, each look would make the next one usual.
	 */
	uint64_t usual[3];
	/* How far off it is, ns, and since when it is no farther, in system time. */
	uint64_t off;
	uint64_t off_since;
};

static inline void radclock_line_begin(struct radclock_line *line, uint64_t tsc,
				       uint64_t system_time)
{
	*line = (struct radclock_line) {
		.begun = true,
		.tsc = { tsc, tsc },
		.system_time = { system_time, system_time },
		.usual = { 0, RADCLOCK_LINE_USUAL, 0 },
	};
}

/* Whether a line goes through the instants: no TSC counts slower than 4 MHz. */
static inline bool radclock_line_known(const struct radclock_line *line)
{
	const uint64_t nanos = line->system_time[1] - line->system_time[0];

	return line->tsc[1] - line->tsc[0] > nanos >> 8;
}

/* From the line's newer instant to @tsc by the line, ns; at most 2^62 either way. */
static inline int64_t radclock_line_elapsed(const struct radclock_line *line, uint64_t tsc)
{
	const int64_t counts = (int64_t)(tsc - line->tsc[1]);
	const uint64_t ahead = counts < 0 ? -(uint64_t)counts : (uint64_t)counts;
	int64_t nanos;

	/* Years: what follows has 8 bits more. */
	if (ahead >> 54)
		return counts < 0 ? -(1LL << 62) : 1LL << 62;
	nanos = (int64_t)mul_u64_u64_div_u64(ahead, line->system_time[1] - line->system_time[0],
					     line->tsc[1] - line->tsc[0]);
	return counts < 0 ? -nanos : nanos;
}

/*
 * Takes the next look, @system_time at @tsc, under parameters whose reference is
 * @heard, in system time. What a bound has to have on top for the difference, ns.
 */
static inline uint64_t radclock_line_look(struct radclock_line *line, uint64_t tsc,
					  uint64_t system_time, uint64_t heard)
{
	const int64_t span = (int64_t)(line->system_time[1] - line->system_time[0]);
	int64_t elapsed = (int64_t)(system_time - line->system_time[1]);
	uint64_t usual, known, off;
	radclock_s128 ahead;

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

	/* By the TSC: it is system time that may be wrong. */
	ahead = elapsed;
	elapsed = radclock_line_elapsed(line, tsc);
	ahead -= elapsed;
	ahead = ahead < 0 ? -ahead : ahead;
	off = ahead > RADCLOCK_LINE_OFF_MAX ? RADCLOCK_LINE_OFF_MAX : (uint64_t)ahead;

	/* Beyond its own length a line is known less well. */
	usual = line->usual[0] > line->usual[1] ? line->usual[0] : line->usual[1];
	known = usual;
	if (elapsed > span)
		known = mul_u64_u64_div_u64(usual, (uint64_t)elapsed, (uint64_t)span);

	if (off > 2 * (line->is_off ? usual : known) + RADCLOCK_LINE_SMALL) {
		/* A young line may have been drawn while Xen was off: it is not to last. */
		if (!line->is_off || (span >= RADCLOCK_LINE_SPAN &&
				      off > line->off + 2 * known + RADCLOCK_LINE_SMALL)) {
			line->off = off;
			line->off_since = system_time;
		}
		line->is_off = true;
		line->has_next = false;
		/* Its newer instant may have been off by as much as is no difference. */
		if ((int64_t)(heard - line->off_since) < RADCLOCK_LINE_ABSORBED)
			return off + 2 * (usual + known) + RADCLOCK_LINE_SMALL;
		radclock_line_begin(line, tsc, system_time);
		return 0;
	}
	line->is_off = false;
	/* Of a young line not much is usual; never so much that the next has another slope. */
	usual = off < (uint64_t)span >> 6 ? off : (uint64_t)span >> 6;
	if (!line->has_next && span >= RADCLOCK_LINE_SPAN && elapsed < 2 * RADCLOCK_LINE_SPAN &&
	    usual > line->usual[2])
		line->usual[2] = usual;
	if (!line->has_next && (elapsed >= span || elapsed >= RADCLOCK_LINE_SPAN)) {
		line->has_next = true;
		line->tsc[2] = tsc;
		line->system_time[2] = system_time;
	}
	if (line->has_next &&
	    (int64_t)(system_time - line->system_time[2]) >= RADCLOCK_LINE_PROVED) {
		if (span >= RADCLOCK_LINE_SPAN) {
			line->tsc[0] = line->tsc[1];
			line->system_time[0] = line->system_time[1];
			line->usual[0] = line->usual[1];
			line->usual[1] = line->usual[2];
			line->usual[2] = 0;
		}
		line->has_next = false;
		line->tsc[1] = line->tsc[2];
		line->system_time[1] = line->system_time[2];
		if (!radclock_line_known(line))
			radclock_line_begin(line, tsc, system_time);
	}
	return 0;
}

/*
 * How fast a clock that runs by @info leaves the line, relative, 2^-64; all ones
 * if that is a sixteenth and more: no bound grows so fast. 0 without a line.
 */
static inline uint64_t radclock_line_departure(const struct radclock_line *line,
					       const struct radclock_time_info *info)
{
	const uint64_t usual = line->system_time[1] - line->system_time[0];
	const uint64_t counted = radclock_system_time(info, line->tsc[1]) -
				 radclock_system_time(info, line->tsc[0]);
	const uint64_t off = counted > usual ? counted - usual : usual - counted;

	if (!usual)
		return 0;
	if (off >= counted >> 4)
		return ~0ULL;
	return mul_u64_u64_div_u64(off, 1ULL << 63, counted) << 1;
}

#endif /* RADCLOCK_LINE_H */
