/* The driver's headers as linkable functions and figures. */
#include "radclock_compose.h"

static inline uint64_t mul_u64_u64_div_u64(uint64_t a, uint64_t b, uint64_t divisor)
{
	const radclock_u128 quotient = (radclock_u128)a * b / divisor;

	/* The kernel's traps, too. */
	if (quotient >> 64)
		__builtin_trap();
	return (uint64_t)quotient;
}

#include "radclock_line.h"

bool check_compose(const struct radclock_params *wire, const struct radclock_time_info *info,
		   uint64_t tsc, const struct radclock_added *added, struct radclock_params *guest)
{
	return radclock_compose(wire, info, tsc, added, guest);
}

uint64_t check_system_time(const struct radclock_time_info *info, uint64_t tsc)
{
	return radclock_system_time(info, tsc);
}

uint64_t check_valid_left(uint64_t valid_nanos, uint64_t wire_counter,
			  const struct radclock_time_info *info, uint64_t tsc)
{
	return radclock_valid_left(valid_nanos, wire_counter, info, tsc);
}

uint64_t check_line_look(struct radclock_line *line, uint64_t tsc, uint64_t system_time,
			 uint64_t heard)
{
	return radclock_line_look(line, tsc, system_time, heard);
}

uint64_t check_line_departure(const struct radclock_line *line,
			      const struct radclock_time_info *info)
{
	return radclock_line_departure(line, info);
}

const uint64_t check_line_size = sizeof(struct radclock_line);

int check_wire(const struct radclock_page *page)
{
	return radclock_check_wire(page);
}

#define FIELD(type, field) \
	__builtin_offsetof(struct type, field), sizeof(((struct type *)0)->field)

const uint64_t check_layout[] = {
	sizeof(struct radclock_vmclock),
	FIELD(radclock_vmclock, magic),
	FIELD(radclock_vmclock, size),
	FIELD(radclock_vmclock, version),
	FIELD(radclock_vmclock, counter_id),
	FIELD(radclock_vmclock, time_type),
	FIELD(radclock_vmclock, seq_count),
	FIELD(radclock_vmclock, disruption_marker),
	FIELD(radclock_vmclock, flags),
	FIELD(radclock_vmclock, pad),
	FIELD(radclock_vmclock, clock_status),
	FIELD(radclock_vmclock, leap_second_smearing_hint),
	FIELD(radclock_vmclock, tai_offset_sec),
	FIELD(radclock_vmclock, leap_indicator),
	FIELD(radclock_vmclock, counter_period_shift),
	FIELD(radclock_vmclock, counter_value),
	FIELD(radclock_vmclock, counter_period_frac_sec),
	FIELD(radclock_vmclock, counter_period_esterror_rate_frac_sec),
	FIELD(radclock_vmclock, counter_period_maxerror_rate_frac_sec),
	FIELD(radclock_vmclock, time_sec),
	FIELD(radclock_vmclock, time_frac_sec),
	FIELD(radclock_vmclock, time_esterror_nanosec),
	FIELD(radclock_vmclock, time_maxerror_nanosec),
	FIELD(radclock_vmclock, vm_generation_counter),
	sizeof(struct radclock_extension),
	FIELD(radclock_extension, magic),
	FIELD(radclock_extension, version),
	FIELD(radclock_extension, pad),
	FIELD(radclock_extension, host_id),
	FIELD(radclock_extension, generation),
	FIELD(radclock_extension, valid_nanos),
	FIELD(radclock_extension, leap_sec),
	sizeof(struct radclock_page),
	FIELD(radclock_page, abi),
	FIELD(radclock_page, ext),
};
const uint64_t check_layout_len = sizeof(check_layout) / sizeof(check_layout[0]);

const uint64_t check_values[] = {
	RADCLOCK_PAGE_SIZE,
	RADCLOCK_VMCLOCK_MAGIC,
	RADCLOCK_VMCLOCK_VERSION,
	RADCLOCK_COUNTER_X86_TSC,
	RADCLOCK_COUNTER_XEN_SYSTEM,
	RADCLOCK_COUNTER_MONOTONIC_RAW,
	RADCLOCK_COUNTER_INVALID,
	RADCLOCK_TIME_UTC,
	RADCLOCK_TIME_TAI,
	RADCLOCK_FLAG_TAI_OFFSET_VALID,
	RADCLOCK_FLAG_DISRUPTION_SOON,
	RADCLOCK_FLAG_DISRUPTION_IMMINENT,
	RADCLOCK_FLAG_PERIOD_ESTERROR_VALID,
	RADCLOCK_FLAG_PERIOD_MAXERROR_VALID,
	RADCLOCK_FLAG_TIME_ESTERROR_VALID,
	RADCLOCK_FLAG_TIME_MAXERROR_VALID,
	RADCLOCK_FLAG_TIME_MONOTONIC,
	RADCLOCK_STATUS_UNKNOWN,
	RADCLOCK_STATUS_INITIALIZING,
	RADCLOCK_STATUS_SYNCHRONIZED,
	RADCLOCK_STATUS_FREERUNNING,
	RADCLOCK_STATUS_UNRELIABLE,
	RADCLOCK_EXTENSION_MAGIC,
	RADCLOCK_EXTENSION_VERSION,
	RADCLOCK_EXTENSION_OFFSET,
};
const uint64_t check_values_len = sizeof(check_values) / sizeof(check_values[0]);
