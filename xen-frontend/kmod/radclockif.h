/* SPDX-License-Identifier: MIT */
/*
 * radclockif.h
 *
 * A clock that Dom0 shares with its guests: the XenBus device "radclock".
 *
 * The backend (radclockd, in Dom0) keeps a clock over Xen system time and
 * writes its parameters into one page that it grants read-only to each guest.
 * The frontend (a driver in the guest) reads Xen system time by itself and turns
 * it into time with these parameters. Nothing flows from the guest to the
 * backend but the XenBus state.
 *
 * This header compiles in the kernel and in user space. It describes x86: all
 * fields are little-endian and are declared as native integers.
 */
#ifndef RADCLOCKIF_H
#define RADCLOCKIF_H

#ifdef __KERNEL__
#include <linux/types.h>
#else
#include <stdint.h>
#endif

/*
 * Feature and parameter negotiation
 * =================================
 *
 * All values are strings; numbers are decimal. A guest has at most one device,
 * number 0.
 *
 *------------------ Backend Device (Written by Backend) ------------------
 *
 *  /local/domain/0/backend/radclock/<frontend-id>/0/
 *
 * frontend
 *      Values:         path of the frontend's directory
 *
 * frontend-id
 *      Values:         <domid>
 *
 * online
 *      Values:         "0" or "1"
 *
 *      "0" when the device is being taken away for good: the frontend is not
 *      to wait for another offer.
 *
 * state
 *      Values:         XenbusState
 *
 * version
 *      Values:         "1"
 *
 *      The version of this protocol. A frontend that does not know it leaves
 *      the device alone (Closed).
 *
 * page-ref
 *      Values:         <grant reference>
 *
 *      One page, granted read-only: struct radclock_page. Valid while the
 *      backend is in InitWait, Initialised or Connected.
 *
 * event-channel
 *      Values:         <port>
 *
 *      An unbound port of the backend's domain, for the frontend to bind. The
 *      backend notifies it after each update of the page. The frontend never
 *      notifies.
 *
 * host-id
 *      Values:         32 hexadecimal digits, lower case
 *
 *      New at each boot of the host; the same as in the page. Two offers with
 *      the same host-id speak of the same counter.
 *
 * time-domain
 *      Values:         a name: 1 to 64 letters, digits, dots, dashes or underscores
 *
 *      Hosts that name the same time domain follow the same reference time.
 *      For people and tools, the frontend does not evaluate it.
 *
 *------------------ Frontend Device (Written by Backend) ------------------
 *
 *  /local/domain/<domid>/device/radclock/0/
 *
 * backend
 *      Values:         path of the backend's directory
 *
 * backend-id
 *      Values:         <domid>
 *
 *------------------ Frontend Device (Written by Frontend) -----------------
 *
 * state
 *      Values:         XenbusState
 *
 *      Created as Initialising by the backend, written by the frontend from
 *      then on. The backend writes it once more, Initialising, when it offers
 *      the device again to a frontend that closed it.
 *
 * version
 *      Values:         "1"
 *
 *      The version of this protocol that the frontend speaks; written before
 *      it goes Connected.
 *
 * State Machine
 * =============
 *
 *   Frontend                             Backend
 *   =================================    =====================================
 *   Initialising (by the backend)        InitWait
 *   o Created with the device.           o Page granted, port allocated,
 *                                          page-ref and event-channel written.
 *   Connected
 *   o Page mapped, port bound,
 *     version written.
 *                                        Connected
 *                                        o The clock is in use.
 *
 *   The backend ends (daemon stopped, domain detached):
 *                                        Closing
 *   o Page unmapped, port unbound.
 *   Closed
 *                                        Closed
 *                                        o Grant and port ended; the nodes of
 *                                          both sides are removed.
 *
 *   The frontend ends (driver unloaded, guest shut down):
 *   Closing
 *   o Page unmapped, port unbound.
 *                                        Closing
 *                                        o A guest that shuts down waits for
 *                                          this.
 *   Closed
 *                                        Closed
 *                                        o Grant and port ended.
 *                                        InitWait
 *                                        o New page-ref and event-channel; the
 *                                          frontend's state is set back to
 *                                          Initialising, for the next driver.
 *
 *   The backend died and was started anew:
 *   Connected                            Connected (stale)
 *                                        InitWait
 *                                        o New page-ref and event-channel.
 *   Initialising
 *   o Old page unmapped and port
 *     unbound, new ones taken.
 *   Connected
 *                                        Connected
 *
 *   InitWait after Connected always means: drop what you have and connect
 *   anew. The page of a dead backend stays readable, and its parameters stay
 *   right to within their growing bound.
 *
 * Suspend and migration
 * =====================
 *
 *   A frontend unmaps the page before it is suspended (a PV domain with a
 *   foreign page in its page tables cannot be saved). After a cancelled
 *   suspend it maps the same page-ref and binds the same event-channel again,
 *   and writes Connected again, from which the backend learns that the guest
 *   goes on: the backend leaves page and port as they are for as long as it is
 *   Connected. After a resume in another domain or on another host the device
 *   exists once that host's backend has written it.
 */

/* The only version of the protocol, for both version nodes. */
#define RADCLOCK_PROTOCOL_VERSION	1

/* The page is always of this size, whatever the kernel's page size is. */
#define RADCLOCK_PAGE_SIZE		4096

/* Values of struct radclock_vmclock. */
#define RADCLOCK_VMCLOCK_MAGIC		0x4b4c4356U	/* "VCLK" */
#define RADCLOCK_VMCLOCK_VERSION	1

#define RADCLOCK_COUNTER_X86_TSC	0x01
#define RADCLOCK_COUNTER_XEN_SYSTEM	0xe0	/* private: Xen system time, ns */
#define RADCLOCK_COUNTER_MONOTONIC_RAW	0xe1	/* private: CLOCK_MONOTONIC_RAW, ns */
#define RADCLOCK_COUNTER_INVALID	0xff

#define RADCLOCK_TIME_UTC		0
#define RADCLOCK_TIME_TAI		1

#define RADCLOCK_FLAG_TAI_OFFSET_VALID		(1ULL << 0)
#define RADCLOCK_FLAG_DISRUPTION_SOON		(1ULL << 1)
#define RADCLOCK_FLAG_DISRUPTION_IMMINENT	(1ULL << 2)
#define RADCLOCK_FLAG_PERIOD_ESTERROR_VALID	(1ULL << 3)
#define RADCLOCK_FLAG_PERIOD_MAXERROR_VALID	(1ULL << 4)
#define RADCLOCK_FLAG_TIME_ESTERROR_VALID	(1ULL << 5)
#define RADCLOCK_FLAG_TIME_MAXERROR_VALID	(1ULL << 6)
#define RADCLOCK_FLAG_TIME_MONOTONIC		(1ULL << 7)

#define RADCLOCK_STATUS_UNKNOWN		0
#define RADCLOCK_STATUS_INITIALIZING	1
#define RADCLOCK_STATUS_SYNCHRONIZED	2
#define RADCLOCK_STATUS_FREERUNNING	3
#define RADCLOCK_STATUS_UNRELIABLE	4

/*
 * Version 1 of Linux's struct vmclock_abi (include/uapi/linux/vmclock-abi.h,
 * since 6.13), under a name of its own because older kernels lack that header
 * and newer ones have it.
 *
 * At counter value N the time is
 *   time + (N - counter_value) * counter_period_frac_sec
 *                                        / 2^(64 + counter_period_shift) s
 * wrong by at most time_maxerror_nanosec plus
 *   |N - counter_value| * counter_period_maxerror_rate_frac_sec
 *                                        / 2^(64 + counter_period_shift) s.
 */
struct radclock_vmclock {
	uint32_t magic;			/* RADCLOCK_VMCLOCK_MAGIC */
	uint32_t size;			/* RADCLOCK_PAGE_SIZE */
	uint16_t version;		/* RADCLOCK_VMCLOCK_VERSION */
	uint8_t counter_id;		/* RADCLOCK_COUNTER_* */
	uint8_t time_type;		/* RADCLOCK_TIME_UTC on the wire */
	/* All that follows, the extension included, changes under this. */
	uint32_t seq_count;		/* odd while an update is in progress */
	uint64_t disruption_marker;	/* new value: the counter was disrupted */
	uint64_t flags;			/* RADCLOCK_FLAG_* */
	uint8_t pad[2];
	uint8_t clock_status;		/* RADCLOCK_STATUS_* */
	uint8_t leap_second_smearing_hint;
	uint16_t tai_offset_sec;	/* TAI - UTC, s, two's complement */
	uint8_t leap_indicator;		/* VMCLOCK_LEAP_* */
	uint8_t counter_period_shift;
	uint64_t counter_value;		/* the counter at the reference instant */
	uint64_t counter_period_frac_sec;	/* 2^-(64 + shift) s a count */
	uint64_t counter_period_esterror_rate_frac_sec;
	uint64_t counter_period_maxerror_rate_frac_sec;
	uint64_t time_sec;		/* the time at the reference instant */
	uint64_t time_frac_sec;		/* 2^-64 s */
	uint64_t time_esterror_nanosec;
	uint64_t time_maxerror_nanosec;
	uint64_t vm_generation_counter;
};

#define RADCLOCK_EXTENSION_MAGIC	0x4b4c4352U	/* "RCLK" */
#define RADCLOCK_EXTENSION_VERSION	1
#define RADCLOCK_EXTENSION_OFFSET	0x100

/* Behind struct radclock_vmclock, under the same seq_count. */
struct radclock_extension {
	uint32_t magic;			/* RADCLOCK_EXTENSION_MAGIC */
	uint16_t version;		/* RADCLOCK_EXTENSION_VERSION */
	uint16_t pad;
	uint8_t host_id[16];		/* random, new at each boot of the host */
	uint64_t generation;		/* grows by one with each update */
	/*
	 * How long after the reference instant the parameters count as
	 * synchronised, ns. After that the clock is free-running, whatever
	 * clock_status says, and a reader lets its bound grow by 2^-20 (1 ppm)
	 * faster; unless this is 0, for then the bound does so by itself.
	 */
	uint64_t valid_nanos;
	/*
	 * The first second of the month after the leap second that
	 * leap_indicator speaks of, seconds since 1970 in UTC; 0 for none. Who
	 * moves the reference instant on leaves both as they are: the time
	 * then goes on being counted as if no leap second came, and readers
	 * put it right.
	 */
	uint64_t leap_sec;
};

/* The page, on the wire and as a guest's processes see it. */
struct radclock_page {
	struct radclock_vmclock abi;
	uint8_t pad[RADCLOCK_EXTENSION_OFFSET - sizeof(struct radclock_vmclock)];
	struct radclock_extension ext;
	uint8_t rest[RADCLOCK_PAGE_SIZE - RADCLOCK_EXTENSION_OFFSET -
		     sizeof(struct radclock_extension)];
};

_Static_assert(sizeof(struct radclock_vmclock) == 112, "vmclock_abi v1");
_Static_assert(__builtin_offsetof(struct radclock_vmclock, seq_count) == 12, "vmclock_abi v1");
_Static_assert(__builtin_offsetof(struct radclock_vmclock, clock_status) == 34, "vmclock_abi v1");
_Static_assert(__builtin_offsetof(struct radclock_vmclock, counter_value) == 40, "vmclock_abi v1");
_Static_assert(sizeof(struct radclock_extension) == 48, "extension v1");
_Static_assert(__builtin_offsetof(struct radclock_extension, valid_nanos) == 32, "extension v1");
_Static_assert(__builtin_offsetof(struct radclock_extension, leap_sec) == 40, "extension v1");
_Static_assert(__builtin_offsetof(struct radclock_page, ext) == RADCLOCK_EXTENSION_OFFSET, "page");
_Static_assert(sizeof(struct radclock_page) == RADCLOCK_PAGE_SIZE, "page");

#endif /* RADCLOCKIF_H */
