/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Prints the time with its bound, three times in a row: once read, once from a
 * counter value taken before, and once converted by hand from the parameters.
 *
 *   cc now.c $(pkg-config --cflags --libs radclock) -o now
 *   ./now [DEVICE]
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include <radclock.h>

static int fail(enum radclock_error error)
{
	fprintf(stderr, "now: %s", radclock_strerror(error));
	if (error == RADCLOCK_ERR_IO)
		fprintf(stderr, ": %s", strerror(errno));
	fputc('\n', stderr);
	return 1;
}

static void print(const char *what, const struct radclock_reading *reading)
{
	printf("%s %lld.%09ld +- %" PRIu64 " ns %s\n", what, (long long)reading->time.tv_sec,
	       reading->time.tv_nsec, reading->max_error_ns,
	       reading->status == RADCLOCK_SYNCHRONIZED ? "synchronized" : "freerunning");
}

int main(int argc, char **argv)
{
	struct radclock *clock;
	struct radclock_sample sample;
	struct radclock_reading now, earlier;
	struct radclock_parameters parameters;
	enum radclock_warning warning;
	enum radclock_error error;

	error = radclock_open(argc > 1 ? argv[1] : NULL, &clock);
	if (error)
		return fail(error);

	error = radclock_sample_now(clock, &sample);
	if (!error)
		error = radclock_now(clock, &now);
	if (!error)
		error = radclock_time_of(clock, sample, &earlier);
	if (!error)
		error = radclock_get_parameters(clock, &parameters);
	if (!error)
		error = radclock_get_warning(clock, &warning);
	radclock_close(clock);
	if (error)
		return fail(error);

	print("sample", &earlier);
	print("now", &now);

	if (parameters.disruption_marker == now.sample.disruption_marker) {
		/* Good to some 100 ns an hour from the reference: a double has 53 bits. */
		double seconds = (double)(int64_t)(now.sample.counter - parameters.counter) *
				 (double)parameters.period_frac / 18446744073709551616.0;

		for (int i = 0; i < parameters.period_shift; i++)
			seconds /= 2;
		seconds += (double)parameters.time_frac / 18446744073709551616.0;
		if (parameters.leap_at && parameters.time_sec + seconds >= parameters.leap_at)
			seconds += parameters.leap_adjustment;
		printf("by hand %" PRIu64 " s + %.9f s\n", parameters.time_sec, seconds);
	}
	if (warning != RADCLOCK_NO_WARNING)
		printf("the clock will be disrupted within %s\n",
		       warning == RADCLOCK_DISRUPTION_SOON ? "a day" : "an hour");
	if (now.tai_offset_known)
		printf("TAI is %d s ahead of UTC\n", (int)now.tai_offset);
	return 0;
}
