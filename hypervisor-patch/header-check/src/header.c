/* What the patches add to Xen's public/platform.h, as figures. */
#include <stddef.h>
#include <stdint.h>

#define DEFINE_XEN_GUEST_HANDLE(name) struct name
#include "counters.h"

#define FIELD(field) \
	offsetof(struct xenpf_counters, field), sizeof(((struct xenpf_counters *)0)->field)

const uint64_t check_counters[] = {
	sizeof(struct xenpf_counters),
	FIELD(timer), FIELD(flags), FIELD(tsc), FIELD(count), FIELD(tsc_end), FIELD(system_time),
	FIELD(frequency), FIELD(width), FIELD(cpu), FIELD(name),
	XENPF_get_counters, XENPF_COUNTERS_PLATFORM, XENPF_COUNTERS_HPET, XENPF_COUNTERS_ACPI_PM,
};
const uint64_t check_counters_len = sizeof(check_counters) / sizeof(check_counters[0]);
