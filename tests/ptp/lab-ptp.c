// SPDX-License-Identifier: GPL-2.0
/*
 * A PTP hardware clock for Dom0 in the lab, where neither the kernel (ptp_mock,
 * ptp_kvm) nor QEMU has one: the TSC on a line that whoever loads it gives. The
 * lab knows what the build machine's clock says at a TSC value, so it can give the
 * true one. Nobody can set or adjust it.
 */
#include <linux/err.h>
#include <linux/math64.h>
#include <linux/module.h>
#include <linux/ptp_clock_kernel.h>

#include <asm/msr.h>

static unsigned long long tsc;
module_param(tsc, ullong, 0444);
MODULE_PARM_DESC(tsc, "a value of this domain's TSC");

static unsigned long long nanos;
module_param(nanos, ullong, 0444);
MODULE_PARM_DESC(nanos, "what the clock says at it, ns since 1970");

static unsigned long long period;
module_param(period, ullong, 0444);
MODULE_PARM_DESC(period, "how much a count is, 2^-32 ns");

static struct ptp_clock *lab_ptp_clock;

static int lab_ptp_gettimex(struct ptp_clock_info *info, struct timespec64 *time,
			    struct ptp_system_timestamp *system)
{
	u64 counts;

	ptp_read_system_prets(system);
	counts = rdtsc_ordered() - tsc;
	ptp_read_system_postts(system);
	*time = ns_to_timespec64(nanos + mul_u64_u64_shr(counts, period, 32));
	return 0;
}

/* The PTP core calls these without asking whether they are there. */

static int lab_ptp_settime(struct ptp_clock_info *info, const struct timespec64 *time)
{
	return -EOPNOTSUPP;
}

static int lab_ptp_adjtime(struct ptp_clock_info *info, s64 delta)
{
	return -EOPNOTSUPP;
}

static int lab_ptp_adjfine(struct ptp_clock_info *info, long scaled_ppm)
{
	return -EOPNOTSUPP;
}

static struct ptp_clock_info lab_ptp_info = {
	.owner = THIS_MODULE,
	.name = "lab",
	.gettimex64 = lab_ptp_gettimex,
	.settime64 = lab_ptp_settime,
	.adjtime = lab_ptp_adjtime,
	.adjfine = lab_ptp_adjfine,
};

static int __init lab_ptp_init(void)
{
	if (!period)
		return -EINVAL;
	lab_ptp_clock = ptp_clock_register(&lab_ptp_info, NULL);
	return PTR_ERR_OR_ZERO(lab_ptp_clock);
}

static void __exit lab_ptp_exit(void)
{
	ptp_clock_unregister(lab_ptp_clock);
}

module_init(lab_ptp_init);
module_exit(lab_ptp_exit);

MODULE_DESCRIPTION("PTP hardware clock of the Xen RADclock lab");
MODULE_AUTHOR("The Xen RADclock authors");
MODULE_LICENSE("GPL");
