// SPDX-License-Identifier: GPL-2.0
/*
 * Frontend of the XenBus device "radclock": the clock that Dom0 shares.
 *
 * It maps the backend's page (parameters over Xen system time), composes it with
 * the vCPUs' time records (guest TSC to Xen system time), and keeps the result
 * in a page of its own, /dev/vmclock0, for every process to map. Protocol and
 * page: radclockif.h; arithmetic: radclock_compose.h and radclock_line.h. It sets
 * no clock and decides nothing: what a program does with the time is the program's
 * business.
 *
 * Page and device exist from load to unload, whether a backend is there or not.
 *
 * Contexts: XenBus callbacks, the work, the PM callbacks and read() all run in
 * process context and take radclock.lock; the event channel's handler only
 * queues the work. docs/driver.md has the whole table.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/completion.h>
#include <linux/cpuhotplug.h>
#include <linux/device.h>
#include <linux/fs.h>
#include <linux/math64.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/platform_device.h>
#include <linux/random.h>
#include <linux/ratelimit.h>
#include <linux/rcupdate.h>
#include <linux/slab.h>
#include <linux/timekeeping.h>
#include <linux/uaccess.h>
#include <linux/version.h>
#include <linux/workqueue.h>

#include <asm/msr.h>
#include <asm/pvclock.h>
#include <asm/tsc.h>
#include <asm/xen/hypercall.h>

#include <xen/events.h>
#include <xen/grant_table.h>
#include <xen/interface/hvm/hvm_op.h>
#include <xen/interface/vcpu.h>
#include <xen/xen-ops.h>
#include <xen/xen.h>
#include <xen/xenbus.h>

#include "radclock_compose.h"
#include "radclock_line.h"

/* Xen's public/hvm/hvm_op.h; the kernel's copy of it lacks this one. */
#define RADCLOCK_HVMOP_GET_TIME	10

struct radclock_hvm_get_time {
	u64 now;	/* Xen system time, ns */
};

/*
 * How far the published page may run away from the vCPUs' records between two
 * looks at them, ns, and how often to look at most and at least.
 */
#define TARGET_DRIFT_NS		200
#define MIN_INTERVAL_NS		(4 * NSEC_PER_MSEC)
#define MAX_INTERVAL_NS		NSEC_PER_SEC

/*
 * What is assumed of steps (ns) and of the scale's wander (2^-64; here 100 ppm)
 * until observation has replaced it: both maxima decay by half in 6 s.
 */
#define INITIAL_STEP_NS		1000
#define INITIAL_WANDER		1844674407370955ULL
#define DECAY_SHIFT		33
/* The most that two scales count as different by: half. */
#define MAX_WANDER		(1ULL << 63)
/* Shifts further apart than this are of that kind. */
#define MAX_SHIFT_DIFF		8

/*
 * A bound that nobody has renewed in time grows faster by 2^-20, 1 ppm: temperature
 * takes an oscillator where it has never been.
 */
#define FREE_SHIFT		20

/* An update takes the backend a microsecond; it may lose its CPU in the midst. */
#define WIRE_TRIES		1000
#define WIRE_STUCK		HZ

/* Xen holds a record's version odd for some stores only. */
#define RECORD_TRIES		100
/* Looks in a row, MIN_INTERVAL_NS apart, that may find no record. */
#define MAX_BLIND_LOOKS		10

/* All of the page that either side uses, in words. */
#define PAGE_WORDS		((RADCLOCK_EXTENSION_OFFSET + \
				  sizeof(struct radclock_extension)) / sizeof(u64))

#define FRONTEND_DIR		"device/radclock/0"

/* The steps from a resume, or the load, to the clock: resume_timing. */
enum radclock_phase {
	RADCLOCK_WOKEN,		/* the first callback */
	RADCLOCK_NODES,		/* the backend's nodes read */
	RADCLOCK_MAPPED,
	RADCLOCK_PUBLISHED,	/* parameters in the page that processes see */
	RADCLOCK_BOUND,		/* the event channel */
	RADCLOCK_CONNECTED,	/* the backend told */
	RADCLOCK_PHASES
};

/* One consistent look at a vCPU's record. */
struct radclock_sample {
	struct radclock_time_info info;
	u64 tsc;
	u64 system_time;	/* by info, at tsc */
	u64 disagreement;	/* with HVMOP_get_time, ns */
};

struct radclock {
	struct mutex lock;	/* what follows, and writing to page */
	struct delayed_work work;
	struct work_struct resume_work;
	struct platform_device *pdev;
	enum cpuhp_state cpuhp;

	/* The page that processes see, and what was composed last. */
	struct radclock_page *page;
	u64 disruption_marker;
	bool published;
	struct radclock_time_info info;
	u64 tsc;
	unsigned int blind_looks;

	/* Decaying maxima of what was observed. */
	u64 step;		/* ns */
	u64 wander;		/* 2^-64 */

	/* How system time usually runs by the TSC, since the last suspend. */
	struct radclock_line line;

	/* XenBus. */
	struct xenbus_device *xdev;
	bool suspended;		/* nothing is to be mapped */
	bool resumed;		/* xdev is to be looked after */

	unsigned int resumes;	/* or suspends that failed */
	u64 resume_start;	/* by ktime_get_raw_ns() */
	u64 phases[RADCLOCK_PHASES];	/* ns from there, 0: not reached */

	/* The connection; mapping is NULL without one. */
	struct page *mapping;
	grant_handle_t handle;
	u32 page_ref;
	u32 port;
	int irq;
	bool event;		/* set by the handler: an EOI is due */

	/* The last good copy of the wire page; outlives the connection. */
	struct radclock_page wire;
	struct radclock_page scratch;
	bool have_wire;		/* wire may be used */
	bool taken;		/* wire is from this mapping */
	enum radclock_page_fault fault;
	bool stuck;
	unsigned long stuck_since;
};

static struct radclock radclock;

/* Xen writes the record of each vCPU here, or where the kernel already has it. */
static DEFINE_PER_CPU_ALIGNED(struct pvclock_vcpu_time_info, radclock_time_area);
static DEFINE_PER_CPU(struct pvclock_vcpu_time_info *, radclock_time);

/*
 * The vCPUs' time records
 */

/*
 * A vCPU has one place besides vcpu_info to which Xen copies its record. The
 * kernel takes that of CPU 0 for the vDSO if the TSC is stable; it is read there
 * then, because registering another would stop the vDSO's clock.
 */
static void radclock_register_time_area(unsigned int cpu)
{
	struct pvclock_vcpu_time_info *info = per_cpu_ptr(&radclock_time_area, cpu);
	struct vcpu_register_time_memory_area area = { .addr.v = info };
	struct pvclock_vsyscall_time_info *vdso = pvclock_get_pvti_cpu0_va();
	int err;

	if (cpu == 0 && vdso) {
		per_cpu(radclock_time, cpu) = &vdso->pvti;
		return;
	}
	err = HYPERVISOR_vcpu_op(VCPUOP_register_vcpu_time_memory_area, xen_vcpu_nr(cpu), &area);
	if (err)
		pr_warn_once("Xen gives no time record for CPU %u (%d): it is left out\n", cpu, err);
	per_cpu(radclock_time, cpu) = err ? NULL : info;
}

static int radclock_cpu_online(unsigned int cpu)
{
	radclock_register_time_area(cpu);
	return 0;
}

static int radclock_cpu_offline(unsigned int cpu)
{
	struct vcpu_register_time_memory_area none = { .addr.v = NULL };

	if (per_cpu(radclock_time, cpu) == per_cpu_ptr(&radclock_time_area, cpu))
		HYPERVISOR_vcpu_op(VCPUOP_register_vcpu_time_memory_area, xen_vcpu_nr(cpu), &none);
	per_cpu(radclock_time, cpu) = NULL;
	return 0;
}

static struct radclock_time_info radclock_copy_info(const struct pvclock_vcpu_time_info *src)
{
	return (struct radclock_time_info) {
		.tsc_timestamp = src->tsc_timestamp,
		.system_time = src->system_time,
		.tsc_to_system_mul = src->tsc_to_system_mul,
		.tsc_shift = src->tsc_shift,
	};
}

/* The record of any vCPU, as it stands. */
static bool radclock_read_info(unsigned int cpu, struct radclock_time_info *info)
{
	const struct pvclock_vcpu_time_info *src = READ_ONCE(per_cpu(radclock_time, cpu));
	unsigned int version, try;

	for (try = 0; src && try < RECORD_TRIES; try++) {
		version = pvclock_read_begin(src);
		*info = radclock_copy_info(src);
		if (!pvclock_read_retry(src, version))
			return version && radclock_time_info_valid(info);
	}
	return false;
}

/*
 * The record of this vCPU with the TSC that belongs to it. Xen brings it up to
 * date whenever it lets the vCPU run, so it is the newest there is; but the copy
 * can fail when it happens in user mode with the kernel's pages unmapped (PTI in
 * PVH), so it is held against Xen's own answer.
 */
static bool radclock_sample(struct radclock_sample *sample)
{
	const struct pvclock_vcpu_time_info *src;
	struct radclock_hvm_get_time xen;
	unsigned int version, try;
	bool valid = false;
	u64 before, early;
	int err;

	preempt_disable();
	src = this_cpu_read(radclock_time);
	for (try = 0; src && !valid && try < RECORD_TRIES; try++) {
		version = pvclock_read_begin(src);
		sample->info = radclock_copy_info(src);
		before = rdtsc_ordered();
		err = HYPERVISOR_hvm_op(RADCLOCK_HVMOP_GET_TIME, &xen);
		sample->tsc = rdtsc_ordered();
		valid = version && !pvclock_read_retry(src, version);
	}
	preempt_enable();

	if (!valid || !radclock_time_info_valid(&sample->info))
		return false;
	early = radclock_system_time(&sample->info, before);
	sample->system_time = radclock_system_time(&sample->info, sample->tsc);
	sample->disagreement = 0;
	if (!err && (s64)(early - xen.now) > 0)
		sample->disagreement = early - xen.now;
	else if (!err && (s64)(xen.now - sample->system_time) > 0)
		sample->disagreement = xen.now - sample->system_time;
	return true;
}

/*
 * How long a resume takes
 */

static void radclock_start_timing(struct radclock *rc, u64 start)
{
	rc->resume_start = start;
	memset(rc->phases, 0, sizeof(rc->phases));
}

/* A phase counts the first time that it is reached. */
static void radclock_reached(struct radclock *rc, enum radclock_phase phase)
{
	if (!rc->phases[phase])
		rc->phases[phase] = ktime_get_raw_ns() - rc->resume_start;
}

/* When vCPU 0 ran first in a domain that was made by a restore. */
static u64 radclock_domain_start(void)
{
	struct vcpu_runstate_info state;
	u64 now = ktime_get_raw_ns();

	if (HYPERVISOR_vcpu_op(VCPUOP_get_runstate_info, xen_vcpu_nr(0), &state))
		return now;
	return now - state.time[RUNSTATE_running] - state.time[RUNSTATE_runnable] -
	       state.time[RUNSTATE_blocked];
}

/*
 * The bound's share of the driver
 */

static void radclock_reset_observations(struct radclock *rc)
{
	rc->published = false;
	rc->step = INITIAL_STEP_NS;
	rc->wander = INITIAL_WANDER;
}

static u64 radclock_abs_diff(u64 a, u64 b)
{
	return (s64)(a - b) < 0 ? b - a : a - b;
}

/* The relative difference of two scales in 2^-64, at most MAX_WANDER. */
static u64 radclock_scale_diff(const struct radclock_time_info *a,
			       const struct radclock_time_info *b)
{
	int shift = min(a->tsc_shift, b->tsc_shift);
	u64 new, old, diff;

	if (max(a->tsc_shift, b->tsc_shift) - shift > MAX_SHIFT_DIFF)
		return MAX_WANDER;
	new = (u64)a->tsc_to_system_mul << (a->tsc_shift - shift);
	old = (u64)b->tsc_to_system_mul << (b->tsc_shift - shift);
	diff = radclock_abs_diff(new, old);
	if (diff >= old / 2)
		return MAX_WANDER;
	return 2 * mul_u64_u64_div_u64(diff, 1ULL << 63, old);
}

/*
 * What the page that is about to be replaced was wrong by, and how the records
 * differ among each other.
 */
static void radclock_observe(struct radclock *rc, const struct radclock_sample *now)
{
	u64 elapsed, step = now->disagreement, wander = 0;
	struct radclock_time_info other;
	unsigned int cpu;

	if (rc->published) {
		u64 then = radclock_system_time(&rc->info, rc->tsc);
		u64 predicted = radclock_system_time(&rc->info, now->tsc);

		step = max(step, radclock_abs_diff(now->system_time, predicted));
		wander = radclock_scale_diff(&now->info, &rc->info);

		elapsed = radclock_abs_diff(now->system_time, then);
		elapsed = min(elapsed, 1ULL << DECAY_SHIFT);
		rc->step -= mul_u64_u64_shr(rc->step, elapsed, DECAY_SHIFT);
		rc->wander -= mul_u64_u64_shr(rc->wander, elapsed, DECAY_SHIFT);
	}
	rc->wander = max(rc->wander, wander);

	/*
	 * The record of a vCPU that has not run for a while is as old as that, and
	 * renewed before it runs again: what its age explains does not count.
	 */
	for_each_online_cpu(cpu) {
		u64 spread, age, explained;

		if (!radclock_read_info(cpu, &other))
			continue;
		spread = radclock_abs_diff(radclock_system_time(&other, now->tsc),
					   now->system_time);
		age = radclock_abs_diff(now->system_time, other.system_time);
		explained = mul_u64_u64_shr(rc->wander, age, 64);
		if (spread > explained)
			step = max(step, spread - explained);
	}
	rc->step = max(rc->step, step);
}

/* When to look again at a clock that may drift by @rate, ns. */
static u64 radclock_interval(u64 rate)
{
	u64 interval = div64_u64((u64)TARGET_DRIFT_NS << 56, (rate >> 8) + 1);

	return clamp(interval, (u64)MIN_INTERVAL_NS, (u64)MAX_INTERVAL_NS);
}

/*
 * The page that processes see
 */

/* What stands in the page whatever happens; seq_count does not cover it. */
static void radclock_init_page(struct radclock_page *page)
{
	page->abi.magic = RADCLOCK_VMCLOCK_MAGIC;
	page->abi.size = RADCLOCK_PAGE_SIZE;
	page->abi.version = RADCLOCK_VMCLOCK_VERSION;
	page->abi.counter_id = RADCLOCK_COUNTER_X86_TSC;
	page->abi.time_type = RADCLOCK_TIME_UTC;
	page->abi.clock_status = RADCLOCK_STATUS_INITIALIZING;
	page->ext.magic = RADCLOCK_EXTENSION_MAGIC;
	page->ext.version = RADCLOCK_EXTENSION_VERSION;
}

/*
 * Publishes @clock with what else stands in the wire page; or, without a clock,
 * only @status and warnings: nothing that could be taken for parameters stays in
 * the page.
 */
static void radclock_publish(struct radclock *rc, u8 status, const struct radclock_params *clock,
			     u64 valid_nanos)
{
	static const struct radclock_params none;
	const u64 warnings = RADCLOCK_FLAG_DISRUPTION_SOON | RADCLOCK_FLAG_DISRUPTION_IMMINENT;
	struct radclock_vmclock *abi = &rc->page->abi;
	struct radclock_extension *ext = &rc->page->ext;
	const struct radclock_page *wire = &rc->wire;
	u32 seq = abi->seq_count;

	/* Pairs with the reader's barrier after it has read an even seq_count. */
	WRITE_ONCE(abi->seq_count, seq + 1);
	smp_wmb();

	abi->disruption_marker = rc->disruption_marker;
	abi->clock_status = status;
	abi->flags = rc->have_wire ? wire->abi.flags & warnings : 0;
	if (clock)
		abi->flags |= (wire->abi.flags & RADCLOCK_FLAG_TAI_OFFSET_VALID) |
			      RADCLOCK_FLAG_PERIOD_MAXERROR_VALID |
			      RADCLOCK_FLAG_TIME_MAXERROR_VALID;
	else
		clock = &none;
	abi->leap_second_smearing_hint = wire->abi.leap_second_smearing_hint;
	abi->tai_offset_sec = wire->abi.tai_offset_sec;
	abi->leap_indicator = wire->abi.leap_indicator;
	abi->counter_period_shift = clock->counter_period_shift;
	abi->counter_value = clock->counter_value;
	abi->counter_period_frac_sec = clock->counter_period_frac_sec;
	abi->counter_period_maxerror_rate_frac_sec = clock->counter_period_maxerror_rate_frac_sec;
	abi->time_sec = clock->time_sec;
	abi->time_frac_sec = clock->time_frac_sec;
	abi->time_maxerror_nanosec = clock->time_maxerror_nanosec;
	memcpy(ext->host_id, wire->ext.host_id, sizeof(ext->host_id));
	ext->generation = wire->ext.generation;
	ext->valid_nanos = valid_nanos;
	ext->leap_sec = wire->ext.leap_sec;

	/* Pairs with the reader's barrier before it reads seq_count again. */
	smp_wmb();
	WRITE_ONCE(abi->seq_count, seq + 2);
}

/* No parameters from before count from now on. */
static void radclock_disrupt(struct radclock *rc)
{
	rc->have_wire = false;
	rc->disruption_marker++;
	radclock_reset_observations(rc);
	radclock_publish(rc, RADCLOCK_STATUS_UNRELIABLE, NULL, 0);
}

/*
 * The backend's page
 */

static const char *radclock_fault_text(enum radclock_page_fault fault)
{
	switch (fault) {
	case RADCLOCK_PAGE_LAYOUT:
		return "not a page of this version";
	case RADCLOCK_PAGE_COUNTER:
		return "not over Xen system time, or not in UTC";
	case RADCLOCK_PAGE_STATUS:
		return "unknown status";
	case RADCLOCK_PAGE_NO_BOUND:
		return "no bound on the error";
	case RADCLOCK_PAGE_PERIOD:
		return "impossible period of the counter";
	case RADCLOCK_PAGE_TIME:
		return "impossible time";
	case RADCLOCK_PAGE_OK:
		break;
	}
	return "fine";
}

/* Copies the wire page to scratch in one piece. Each word is read once. */
static bool radclock_copy_wire(struct radclock *rc)
{
	const u64 *src = page_address(rc->mapping);
	const struct radclock_page *wire = (const void *)src;
	u64 *dst = (u64 *)&rc->scratch;
	unsigned int try, i;
	u32 seq;

	for (try = 0; try < WIRE_TRIES; try++, cpu_relax()) {
		seq = READ_ONCE(wire->abi.seq_count);
		if (seq & 1)
			continue;
		/* Pairs with the backend's barrier after an odd seq_count. */
		virt_rmb();
		for (i = 0; i < PAGE_WORDS; i++)
			dst[i] = READ_ONCE(src[i]);
		/* Pairs with the backend's barrier before an even seq_count. */
		virt_rmb();
		if (READ_ONCE(wire->abi.seq_count) == seq) {
			rc->scratch.abi.seq_count = seq;
			return true;
		}
	}
	return false;
}

/* Whether a page speaks of the same undisturbed counter as the one before it. */
static bool radclock_same_counter(const struct radclock_page *old, const struct radclock_page *new)
{
	return old->abi.disruption_marker == new->abi.disruption_marker &&
	       !memcmp(old->ext.host_id, new->ext.host_id, sizeof(old->ext.host_id));
}

/* Takes over what the backend has written. True if that is another page. */
static bool radclock_refresh_wire(struct radclock *rc)
{
	const struct radclock_page *new = &rc->scratch;
	enum radclock_page_fault fault;

	if (!radclock_copy_wire(rc)) {
		if (!rc->stuck) {
			rc->stuck = true;
			rc->stuck_since = jiffies;
		} else if (rc->have_wire && time_after(jiffies, rc->stuck_since + WIRE_STUCK)) {
			pr_warn_ratelimited("the backend's page is stuck in an update: unreliable\n");
			radclock_disrupt(rc);
		}
		return false;
	}
	rc->stuck = false;

	if (rc->taken && new->abi.seq_count == rc->wire.abi.seq_count)
		return false;
	fault = radclock_check_wire(new);
	if (fault) {
		if (rc->have_wire || fault != rc->fault) {
			pr_warn_ratelimited("the backend's page is unusable (%s): unreliable\n",
					    radclock_fault_text(fault));
			radclock_disrupt(rc);
		}
		rc->fault = fault;
		rc->taken = false;
		return false;
	}
	rc->fault = RADCLOCK_PAGE_OK;

	if (rc->have_wire && !radclock_same_counter(&rc->wire, new))
		radclock_disrupt(rc);
	/*
	 * A daemon that was started anew has no clock yet. Its predecessor's stays
	 * right to within its bound until then.
	 */
	if (rc->have_wire && !rc->taken && radclock_readable(rc->wire.abi.clock_status) &&
	    new->abi.clock_status <= RADCLOCK_STATUS_INITIALIZING) {
		rc->wire.abi.clock_status = RADCLOCK_STATUS_FREERUNNING;
		/* What that one announced, nobody would take back. */
		rc->wire.abi.flags &= ~(RADCLOCK_FLAG_DISRUPTION_SOON |
					RADCLOCK_FLAG_DISRUPTION_IMMINENT);
		return false;
	}
	rc->wire = *new;
	rc->have_wire = true;
	rc->taken = true;
	return true;
}

/* No clock for now. What comes after it must not be taken for the same one. */
static void radclock_give_up(struct radclock *rc)
{
	if (rc->published)
		rc->disruption_marker++;
	radclock_reset_observations(rc);
	radclock_publish(rc, RADCLOCK_STATUS_UNRELIABLE, NULL, 0);
}

/* Composes and publishes. When to do it again, ns; 0: at the next event. */
static u64 radclock_update(struct radclock *rc)
{
	const struct radclock_page *wire = &rc->wire;
	struct radclock_params params, clock;
	struct radclock_sample now;
	struct radclock_added added;
	u8 status = wire->abi.clock_status;
	u64 valid, off, departure, beyond;

	if (!rc->have_wire)
		return rc->mapping ? MAX_INTERVAL_NS : 0;
	if (!radclock_readable(status)) {
		radclock_publish(rc, status, NULL, 0);
		return MAX_INTERVAL_NS;
	}
	if (!radclock_sample(&now)) {
		/*
		 * A vCPU that comes online has no record for a moment. The page stands,
		 * with a bound that grows, and the next look is on another vCPU.
		 */
		if (rc->published && rc->blind_looks++ < MAX_BLIND_LOOKS)
			return MIN_INTERVAL_NS;
		radclock_give_up(rc);
		return MAX_INTERVAL_NS;
	}
	rc->blind_looks = 0;

	params = radclock_page_params(wire);
	valid = radclock_valid_left(wire->ext.valid_nanos, params.counter_value, &now.info,
				    now.tsc);
	if (!valid)
		status = RADCLOCK_STATUS_FREERUNNING;

	radclock_observe(rc, &now);
	off = radclock_line_look(&rc->line, now.tsc, now.system_time, params.counter_value);
	departure = radclock_line_departure(&rc->line, &now.info);
	if (departure == ~0ULL) {
		if (rc->published)
			pr_warn_ratelimited("Xen's system time has lost its pace: unreliable\n");
		radclock_give_up(rc);
		return MIN_INTERVAL_NS;
	}
	added.nanos = rc->step + off;
	added.rate = rc->wander + departure;
	/* Who would have let the bound grow faster, and said so by a validity of 0, is gone. */
	if (!valid && wire->ext.valid_nanos) {
		beyond = now.system_time - params.counter_value;
		beyond -= min(beyond, wire->ext.valid_nanos);
		added.nanos += beyond >> FREE_SHIFT;
		added.rate += 1ULL << (64 - FREE_SHIFT);
	}
	if (!radclock_compose(&params, &now.info, now.tsc, &added, &clock)) {
		pr_warn_ratelimited("the backend's parameters do not fit: unreliable\n");
		radclock_disrupt(rc);
		return MAX_INTERVAL_NS;
	}
	radclock_publish(rc, status, &clock, valid);
	radclock_reached(rc, RADCLOCK_PUBLISHED);
	rc->published = true;
	rc->info = now.info;
	rc->tsc = now.tsc;
	return radclock_interval(off ? added.rate : rc->wander);
}

/*
 * The connection
 */

static irqreturn_t radclock_event(int irq, void *data)
{
	struct radclock *rc = data;

	/* The EOI comes from the work, so that a backend cannot flood us. */
	WRITE_ONCE(rc->event, true);
	mod_delayed_work(system_freezable_wq, &rc->work, 0);
	return IRQ_HANDLED;
}

static int radclock_map(struct radclock *rc, u32 page_ref)
{
	struct gnttab_map_grant_ref op;
	struct page *page;
	int err;

	err = gnttab_alloc_pages(1, &page);
	if (err)
		return err;
	gnttab_set_map_op(&op, (unsigned long)page_address(page),
			  GNTMAP_host_map | GNTMAP_readonly, page_ref, rc->xdev->otherend_id);
	err = gnttab_map_refs(&op, NULL, &page, 1);
	if (!err && op.status != GNTST_okay)
		err = -EINVAL;
	if (err) {
		gnttab_free_pages(1, &page);
		return err;
	}
	rc->mapping = page;
	rc->handle = op.handle;
	rc->page_ref = page_ref;
	rc->stuck = false;
	rc->taken = false;
	rc->fault = RADCLOCK_PAGE_OK;
	return 0;
}

static void radclock_disconnect(struct radclock *rc)
{
	struct gnttab_unmap_grant_ref op;

	if (rc->irq)
		unbind_from_irqhandler(rc->irq, rc);
	rc->irq = 0;
	rc->event = false;

	if (!rc->mapping)
		return;
	gnttab_set_unmap_op(&op, (unsigned long)page_address(rc->mapping),
			    GNTMAP_host_map | GNTMAP_readonly, rc->handle);
	if (gnttab_unmap_refs(&op, NULL, &rc->mapping, 1) || op.status != GNTST_okay)
		pr_warn("cannot unmap the backend's page (%d): it is leaked\n", op.status);
	else
		gnttab_free_pages(1, &rc->mapping);
	rc->mapping = NULL;
}

/* Whether there is a page and a port in this state of the backend. */
static bool radclock_offered(enum xenbus_state state)
{
	return state == XenbusStateInitWait || state == XenbusStateInitialised ||
	       state == XenbusStateConnected;
}

/* What a backend can bring about as often as it likes is not said as often. */
static DEFINE_RATELIMIT_STATE(radclock_errors, DEFAULT_RATELIMIT_INTERVAL, DEFAULT_RATELIMIT_BURST);

#define radclock_error(xdev, err, fmt, ...)					\
	do {									\
		if (__ratelimit(&radclock_errors))				\
			xenbus_dev_error(xdev, err, fmt, ##__VA_ARGS__);	\
	} while (0)

/*
 * Takes what the backend in @dir offers, unless it is what we have. Processes get
 * the clock from the page alone, which says its version itself, so that comes
 * first: each question to XenStore takes a while.
 */
static void radclock_connect(struct radclock *rc, const char *dir)
{
	struct xenbus_device *xdev = rc->xdev;
	u32 version, page_ref, port;
	int err;

	err = xenbus_gather(XBT_NIL, dir, "page-ref", "%u", &page_ref, NULL);
	if (err) {
		radclock_error(xdev, err, "reading page-ref");
		return;
	}
	if (rc->mapping) {
		port = xenbus_read_unsigned(dir, "event-channel", 0);
		if (page_ref == rc->page_ref && port == rc->port)
			return;
		/* The page goes on from the last copy meanwhile. */
		radclock_disconnect(rc);
		xenbus_switch_state(xdev, XenbusStateInitialising);
	}
	radclock_reached(rc, RADCLOCK_NODES);

	err = radclock_map(rc, page_ref);
	if (err) {
		radclock_error(xdev, err, "mapping page-ref %u", page_ref);
		return;
	}
	radclock_reached(rc, RADCLOCK_MAPPED);
	radclock_refresh_wire(rc);
	radclock_update(rc);

	err = xenbus_gather(XBT_NIL, dir, "version", "%u", &version, "event-channel", "%u", &port,
			    NULL);
	if (err) {
		radclock_error(xdev, err, "reading version and event-channel");
		radclock_disconnect(rc);
		goto queue;
	}
	if (version != RADCLOCK_PROTOCOL_VERSION) {
		radclock_error(xdev, -EPROTO, "protocol version %u, only %u is known", version,
			       RADCLOCK_PROTOCOL_VERSION);
		radclock_disconnect(rc);
		radclock_disrupt(rc);
		xenbus_switch_state(xdev, XenbusStateClosed);
		return;
	}
	err = bind_interdomain_evtchn_to_irqhandler_lateeoi(xdev, port, radclock_event, 0,
							    "radclock", rc);
	if (err < 0) {
		radclock_error(xdev, err, "binding event-channel %u", port);
		radclock_disconnect(rc);
		goto queue;
	}
	rc->irq = err;
	rc->port = port;
	radclock_reached(rc, RADCLOCK_BOUND);

	err = xenbus_printf(XBT_NIL, xdev->nodename, "version", "%u", RADCLOCK_PROTOCOL_VERSION);
	if (err)
		radclock_error(xdev, err, "writing version");
	/*
	 * Written even if it stands there, after a suspend that was cancelled: it
	 * tells the backend that the guest goes on.
	 */
	xdev->state = XenbusStateInitialising;
	xenbus_switch_state(xdev, XenbusStateConnected);
	radclock_reached(rc, RADCLOCK_CONNECTED);
	dev_info_ratelimited(&xdev->dev, "connected to domain %d\n", xdev->otherend_id);
queue:
	/* What the backend wrote before the port was bound came without an event. */
	mod_delayed_work(system_freezable_wq, &rc->work, 0);
}

/*
 * XenBus
 */

static void radclock_backend_changed(struct xenbus_device *xdev, enum xenbus_state state)
{
	struct radclock *rc = &radclock;

	mutex_lock(&rc->lock);
	if (rc->xdev != xdev || rc->suspended)
		goto out;

	if (radclock_offered(state)) {
		radclock_connect(rc, xdev->otherend);
	} else if (state == XenbusStateUnknown || state == XenbusStateClosing ||
		   state == XenbusStateClosed) {
		if (rc->mapping) {
			dev_info_ratelimited(&xdev->dev, "the backend closes\n");
			radclock_disconnect(rc);
		}
		if (rc->have_wire)
			radclock_disrupt(rc);
		if (state != XenbusStateUnknown)
			xenbus_frontend_closed(xdev);
	}
out:
	mutex_unlock(&rc->lock);
}

static int radclock_probe(struct xenbus_device *xdev, const struct xenbus_device_id *id)
{
	struct radclock *rc = &radclock;

	mutex_lock(&rc->lock);
	if (rc->xdev) {
		mutex_unlock(&rc->lock);
		return -EBUSY;
	}
	rc->xdev = xdev;
	/*
	 * insmod waits in XenBus for devices whose state comes before Connected, for
	 * half a minute and without freezing, which no suspend survives. Nobody needs
	 * it to, the page is there without a backend. radclock_connect() writes what
	 * is true.
	 */
	xdev->state = XenbusStateClosed;
	mutex_unlock(&rc->lock);
	/* The watch on the backend's state fires at once and does the rest. */
	return 0;
}

static void radclock_remove(struct xenbus_device *xdev)
{
	struct radclock *rc = &radclock;

	mutex_lock(&rc->lock);
	radclock_disconnect(rc);
	if (rc->have_wire)
		radclock_disrupt(rc);
	rc->xdev = NULL;
	/* XenBus goes on to Closed from here, but not if we only bind anew. */
	if (!rc->resumed)
		xenbus_switch_state(xdev, XenbusStateClosing);
	mutex_unlock(&rc->lock);
}

static const struct xenbus_device_id radclock_ids[] = {
	{ "radclock" },
	{ "" }
};

static struct xenbus_driver radclock_driver = {
	.name = "radclock",
	.ids = radclock_ids,
	.probe = radclock_probe,
	.remove = radclock_remove,
	.otherend_changed = radclock_backend_changed,
	.allow_rebind = true,
	.not_essential = true,
};

/*
 * Takes the offer of a backend that attached before this domain ran again, so
 * that processes find the clock when they are thawed. XenBus asks the same, later
 * and device by device; whatever is missing here is left to it.
 */
static void radclock_reconnect(struct radclock *rc)
{
	unsigned int domid;
	char *dir;

	dir = xenbus_read(XBT_NIL, FRONTEND_DIR, "backend", NULL);
	if (IS_ERR(dir))
		return;
	/* The path says what backend-id says, which would be another question. */
	if (sscanf(dir, "/local/domain/%u/", &domid) == 1 && domid == rc->xdev->otherend_id &&
	    radclock_offered(xenbus_read_unsigned(dir, "state", XenbusStateUnknown)))
		radclock_connect(rc, dir);
	kfree(dir);
}

static void radclock_resume_work(struct work_struct *work)
{
	struct radclock *rc = &radclock;
	unsigned int cpu;

	/* Xen does not carry them over to another domain. */
	cpus_read_lock();
	for_each_online_cpu(cpu)
		radclock_register_time_area(cpu);
	cpus_read_unlock();

	mutex_lock(&rc->lock);
	if (rc->suspended) {
		rc->suspended = false;
		WRITE_ONCE(rc->resumed, true);
		if (rc->xdev)
			radclock_reconnect(rc);
	}
	mutex_unlock(&rc->lock);
}

/*
 * After a suspend that was cancelled nobody calls a XenBus driver. After one that
 * was not, the device's directory is missing until the new host's backend has
 * written it, and XenBus has then given up the device for good: it takes a new
 * binding. True if there is nothing left to do.
 */
static bool radclock_after_resume(struct radclock *rc)
{
	struct xenbus_device *xdev;
	bool bound, lost = false;

	mutex_lock(&rc->lock);
	xdev = rc->xdev;
	if (xdev)
		get_device(&xdev->dev);
	mutex_unlock(&rc->lock);
	if (!xdev)
		return true;

	/* Keeps XenBus from changing otherend. */
	device_lock(&xdev->dev);
	bound = xdev->dev.driver == &radclock_driver.driver;
	if (bound && xdev->otherend)
		radclock_backend_changed(xdev, xenbus_read_unsigned(xdev->otherend, "state",
								    XenbusStateUnknown));
	else
		lost = bound;
	device_unlock(&xdev->dev);

	if (lost && xenbus_exists(XBT_NIL, FRONTEND_DIR, "backend")) {
		lost = device_reprobe(&xdev->dev) != 0;
		if (lost)
			dev_warn(&xdev->dev, "cannot be bound anew after the resume\n");
	}
	put_device(&xdev->dev);
	return !lost;
}

/*
 * While the scale wanders, the vCPUs take turns, so that each one's record is
 * looked at while it is current.
 */
static void radclock_requeue(struct radclock *rc, u64 interval)
{
	unsigned int cpu;

	if (!interval)
		return;
	cpus_read_lock();
	cpu = raw_smp_processor_id();
	if (interval < MAX_INTERVAL_NS)
		cpu = cpumask_next(cpu, cpu_online_mask);
	if (cpu >= nr_cpu_ids)
		cpu = cpumask_first(cpu_online_mask);
	/* Not mod_delayed_work(): an event that came meanwhile goes first. */
	queue_delayed_work_on(cpu, system_freezable_wq, &rc->work,
			      max(1UL, nsecs_to_jiffies(interval)));
	cpus_read_unlock();
}

static void radclock_work(struct work_struct *work)
{
	struct radclock *rc = &radclock;
	bool changed = false;
	u64 interval;

	/* Frozen until the end of a suspend: this one failed before it began. */
	if (READ_ONCE(rc->suspended))
		radclock_resume_work(NULL);
	if (READ_ONCE(rc->resumed) && radclock_after_resume(rc))
		WRITE_ONCE(rc->resumed, false);

	mutex_lock(&rc->lock);
	if (rc->mapping)
		changed = radclock_refresh_wire(rc);
	interval = radclock_update(rc);
	if (rc->irq && xchg(&rc->event, false))
		xen_irq_lateeoi(rc->irq, changed ? 0 : XEN_EOI_FLAG_SPURIOUS);
	mutex_unlock(&rc->lock);

	radclock_requeue(rc, interval);
}

/* The directory that radclock_after_resume() may be waiting for has changed. */
static void radclock_frontend_changed(struct xenbus_watch *watch, const char *path,
				      const char *token)
{
	if (READ_ONCE(radclock.resumed))
		mod_delayed_work(system_freezable_wq, &radclock.work, 0);
}

static struct xenbus_watch radclock_watch = {
	.node = FRONTEND_DIR "/backend",
	.callback = radclock_frontend_changed,
};

static void radclock_leave_xenbus(void)
{
	unregister_xenbus_watch(&radclock_watch);
	xenbus_unregister_driver(&radclock_driver);
}

static DECLARE_COMPLETION(radclock_left);

/* A watch is called for the first time as soon as it is registered. */
static void radclock_unload(struct xenbus_watch *watch, const char *path, const char *token)
{
	radclock_leave_xenbus();
	unregister_xenbus_watch(watch);
	complete(&radclock_left);
}

static struct xenbus_watch radclock_unload_watch = {
	.node = FRONTEND_DIR "/backend",
	.callback = radclock_unload,
};

/*
 * XenBus's thread calls the watches and suspends the domain. Whoever takes a
 * watch away waits for it, without freezing, so rmmod and a suspend would wait for
 * each other until the suspend gives up. In that thread nobody waits.
 */
static void radclock_leave_xenbus_in_its_thread(void)
{
	if (register_xenbus_watch(&radclock_unload_watch)) {
		radclock_leave_xenbus();
		return;
	}
	wait_for_completion_state(&radclock_left, TASK_UNINTERRUPTIBLE | TASK_FREEZABLE);
	/* The callback may still be on its way out of this module's text. */
	synchronize_rcu_tasks();
}

/*
 * Suspend
 */

/*
 * A platform device of our own, because its callbacks come for each kind of
 * suspend, also for one that is cancelled, and whether there is a XenBus device
 * or not. Processes and the work are frozen by then.
 */
static int radclock_freeze(struct device *dev)
{
	struct radclock *rc = &radclock;

	mutex_lock(&rc->lock);
	rc->suspended = true;
	radclock_disconnect(rc);
	radclock_disrupt(rc);
	memset(&rc->line, 0, sizeof(rc->line));
	rc->resumes++;
	radclock_start_timing(rc, ktime_get_raw_ns());
	mutex_unlock(&rc->lock);
	/* For when processes run again, whatever becomes of the suspend. */
	mod_delayed_work(system_freezable_wq, &rc->work, 0);
	return 0;
}

/*
 * XenStore cannot be asked yet. The work's first question waits for it, and is
 * then answered while the kernel registers its watches anew and resumes other
 * devices. No lock here: whoever holds it may be waiting for XenStore, and nobody
 * else reaches a phase before the work has run.
 */
static void radclock_wake(struct radclock *rc, u64 start)
{
	radclock_start_timing(rc, start);
	radclock_reached(rc, RADCLOCK_WOKEN);
	queue_work(system_highpri_wq, &rc->resume_work);
}

static int radclock_restore_early(struct device *dev)
{
	radclock_wake(&radclock, radclock_domain_start());
	return 0;
}

static int radclock_thaw_early(struct device *dev)
{
	radclock_wake(&radclock, ktime_get_raw_ns());
	return 0;
}

/* Processes are thawed after this. */
static int radclock_thaw(struct device *dev)
{
	struct radclock *rc = &radclock;

	/* A suspend that ended before its last steps skips the early callbacks. */
	if (READ_ONCE(rc->suspended))
		queue_work(system_highpri_wq, &rc->resume_work);
	flush_work(&rc->resume_work);
	return 0;
}

static const struct dev_pm_ops radclock_pm_ops = {
	.suspend = radclock_freeze,
	.freeze = radclock_freeze,
	.poweroff = radclock_freeze,
	.resume_early = radclock_thaw_early,
	.thaw_early = radclock_thaw_early,
	.restore_early = radclock_restore_early,
	.resume = radclock_thaw,
	.thaw = radclock_thaw,
	.restore = radclock_thaw,
};

static struct platform_driver radclock_platform_driver = {
	.driver = {
		.name = KBUILD_MODNAME,
		.pm = pm_sleep_ptr(&radclock_pm_ops),
		.suppress_bind_attrs = true,
	},
};

/*
 * The device
 */

static ssize_t system_time_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	struct radclock_sample sample;

	if (!radclock_sample(&sample))
		return -ENODATA;
	return sysfs_emit(buf, "%llu %llu\n", sample.tsc, sample.system_time);
}
static DEVICE_ATTR_RO(system_time);

static ssize_t resume_timing_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	static const char * const names[RADCLOCK_PHASES] = {
		[RADCLOCK_WOKEN] = "woken",
		[RADCLOCK_NODES] = "nodes",
		[RADCLOCK_MAPPED] = "mapped",
		[RADCLOCK_PUBLISHED] = "published",
		[RADCLOCK_BOUND] = "bound",
		[RADCLOCK_CONNECTED] = "connected",
	};
	struct radclock *rc = &radclock;
	unsigned int i;
	int len;

	mutex_lock(&rc->lock);
	len = sysfs_emit(buf, "resumes %u\nstarted %llu\n", rc->resumes, rc->resume_start);
	for (i = 0; i < RADCLOCK_PHASES; i++) {
		if (rc->phases[i])
			len += sysfs_emit_at(buf, len, "%s %llu\n", names[i], rc->phases[i]);
	}
	mutex_unlock(&rc->lock);
	return len;
}
static DEVICE_ATTR_RO(resume_timing);

static struct attribute *radclock_attrs[] = {
	&dev_attr_system_time.attr,
	&dev_attr_resume_timing.attr,
	NULL
};
ATTRIBUTE_GROUPS(radclock);

static ssize_t radclock_read(struct file *file, char __user *buf, size_t count, loff_t *pos)
{
	struct radclock *rc = &radclock;
	ssize_t ret;
	void *copy;

	/* Not copied to the process under the lock: that may take as long as it likes. */
	copy = kmalloc(RADCLOCK_PAGE_SIZE, GFP_KERNEL);
	if (!copy)
		return -ENOMEM;
	mutex_lock(&rc->lock);
	memcpy(copy, rc->page, RADCLOCK_PAGE_SIZE);
	mutex_unlock(&rc->lock);
	ret = simple_read_from_buffer(buf, count, pos, copy, RADCLOCK_PAGE_SIZE);
	kfree(copy);
	return ret;
}

static int radclock_mmap(struct file *file, struct vm_area_struct *vma)
{
	if (vma->vm_pgoff || vma->vm_end - vma->vm_start != PAGE_SIZE)
		return -EINVAL;
	if (vma->vm_flags & (VM_WRITE | VM_EXEC))
		return -EPERM;
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
	vm_flags_mod(vma, VM_DONTEXPAND, VM_MAYWRITE | VM_MAYEXEC);
#else
	vma->vm_flags &= ~(VM_MAYWRITE | VM_MAYEXEC);
	vma->vm_flags |= VM_DONTEXPAND;
#endif
	return vm_insert_page(vma, vma->vm_start, virt_to_page(radclock.page));
}

static const struct file_operations radclock_fops = {
	.owner = THIS_MODULE,
	.read = radclock_read,
	.mmap = radclock_mmap,
	.llseek = default_llseek,
};

static struct miscdevice radclock_misc = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "vmclock0",
	.mode = 0444,
	.fops = &radclock_fops,
	.groups = radclock_groups,
};

static int __init radclock_init(void)
{
	struct radclock *rc = &radclock;
	int err;

	BUILD_BUG_ON(PAGE_SIZE != RADCLOCK_PAGE_SIZE);
	if (!xen_domain())
		return -ENODEV;

	mutex_init(&rc->lock);
	INIT_DELAYED_WORK(&rc->work, radclock_work);
	INIT_WORK(&rc->resume_work, radclock_resume_work);
	radclock_start_timing(rc, ktime_get_raw_ns());
	rc->page = (struct radclock_page *)get_zeroed_page(GFP_KERNEL);
	if (!rc->page)
		return -ENOMEM;
	radclock_init_page(rc->page);
	/* Another one after each load, for those who keep it. */
	rc->disruption_marker = get_random_u64();
	radclock_reset_observations(rc);
	radclock_publish(rc, RADCLOCK_STATUS_INITIALIZING, NULL, 0);

	err = cpuhp_setup_state(CPUHP_AP_ONLINE_DYN, "xen/radclock:online", radclock_cpu_online,
				radclock_cpu_offline);
	if (err < 0)
		goto free_page;
	rc->cpuhp = err;
	err = platform_driver_register(&radclock_platform_driver);
	if (err)
		goto remove_cpuhp;
	rc->pdev = platform_device_register_simple(KBUILD_MODNAME, PLATFORM_DEVID_NONE, NULL, 0);
	if (IS_ERR(rc->pdev)) {
		err = PTR_ERR(rc->pdev);
		goto unregister_platform_driver;
	}
	err = register_xenbus_watch(&radclock_watch);
	if (err)
		goto unregister_pdev;
	/*
	 * Without an owner: XenBus would hold the module for as long as there is a
	 * device, and it could not be unloaded. Unregistering waits for callbacks.
	 */
	err = __xenbus_register_frontend(&radclock_driver, NULL, KBUILD_MODNAME);
	if (err)
		goto unregister_watch;
	/* Last: a process that has it open keeps nothing of a module that fails to load. */
	err = misc_register(&radclock_misc);
	if (err)
		goto leave_xenbus;
	return 0;

leave_xenbus:
	xenbus_unregister_driver(&radclock_driver);
unregister_watch:
	unregister_xenbus_watch(&radclock_watch);
unregister_pdev:
	platform_device_unregister(rc->pdev);
unregister_platform_driver:
	platform_driver_unregister(&radclock_platform_driver);
remove_cpuhp:
	cancel_work_sync(&rc->resume_work);
	cancel_delayed_work_sync(&rc->work);
	cpuhp_remove_state(rc->cpuhp);
free_page:
	free_page((unsigned long)rc->page);
	return err;
}

static void __exit radclock_exit(void)
{
	struct radclock *rc = &radclock;

	radclock_leave_xenbus_in_its_thread();
	misc_deregister(&radclock_misc);
	platform_device_unregister(rc->pdev);
	platform_driver_unregister(&radclock_platform_driver);
	cancel_work_sync(&rc->resume_work);
	cancel_delayed_work_sync(&rc->work);
	cpuhp_remove_state(rc->cpuhp);
	free_page((unsigned long)rc->page);
}

module_init(radclock_init);
module_exit(radclock_exit);

MODULE_DESCRIPTION("Xen RADclock frontend: Dom0's clock as /dev/vmclock0");
MODULE_AUTHOR("The Xen RADclock authors");
MODULE_LICENSE("GPL");
MODULE_ALIAS("xen:radclock");
