// SPDX-License-Identifier: GPL-2.0
/*
 * The driver, whole, in user space, and what a backend and Xen do to it: the fuzzer (targets/driver.rs) calls these, and they
 * abort on what a kernel would not survive, or would not forgive (a page mapped twice, an event channel that stays bound).
 */
#include "kernel.h"

#include "xen-radclockfront.c"

#define NODE_LENGTH 64

unsigned int kernel_cpu;
u64 kernel_tsc, kernel_raw_ns;
unsigned long jiffies;
struct platform_device kernel_platform_device;

/* The backend's directory: page-ref, event-channel, version, state; and the frontend's node "backend". Not there if 0. */
static const char *const names[] = { "page-ref", "event-channel", "version", "state", "backend" };
static char nodes[5][NODE_LENGTH];
static bool exists[5];

static const char backend_dir[] = "/local/domain/0/backend/radclock/7/0";
static struct xenbus_device device;
static struct pvclock_vcpu_time_info *records[NR_CPUS];
/* What Xen says of the time, and by how much that is off the records. */
static struct radclock_time_info truth;
static s64 xens_error;
static bool refuse_grant, refuse_port, refuse_time;

static struct page wire_page;
static unsigned int mapped, bound, due_eoi;
static u32 toggles;

/* XenStore */

static const char *node(const char *dir, const char *name)
{
	for (int i = 0; i < 5; i++)
		if (!strcmp(names[i], name))
			return exists[i] ? nodes[i] : NULL;
	return NULL;
}

/* Like the kernel's sscanf() with %u: digits, what follows is left, what is too long wraps around. */
static bool scan(const char *text, unsigned int *value)
{
	u64 number = 0;

	if (!text || *text < '0' || *text > '9')
		return false;
	for (; *text >= '0' && *text <= '9'; text++)
		number = number * 10 + (u64)(*text - '0');
	*value = (unsigned int)number;
	return true;
}

int xenbus_gather(int transaction, const char *dir, ...)
{
	const char *name;
	va_list list;
	int err = 0;

	va_start(list, dir);
	while (!err && (name = va_arg(list, const char *))) {
		const char *format = va_arg(list, const char *);
		unsigned int *value = va_arg(list, unsigned int *);
		const char *text = node(dir, name);

		KERNEL_BUG_ON(strcmp(format, "%u"));
		if (!text)
			err = -ENOENT;
		else if (!scan(text, value))
			err = -EINVAL;
	}
	va_end(list);
	return err;
}

void *xenbus_read(int transaction, const char *dir, const char *name, unsigned int *length)
{
	const char *text = node(dir, name);

	return text ? strdup(text) : ERR_PTR(-ENOENT);
}

bool xenbus_exists(int transaction, const char *dir, const char *name)
{
	return node(dir, name);
}

unsigned int xenbus_read_unsigned(const char *dir, const char *name, unsigned int otherwise)
{
	unsigned int value;

	return scan(node(dir, name), &value) ? value : otherwise;
}

int xenbus_switch_state(struct xenbus_device *xdev, enum xenbus_state state)
{
	xdev->state = state;
	return 0;
}

int device_reprobe(struct device *dev)
{
	radclock_remove(&device);
	device.otherend = backend_dir;
	return radclock_probe(&device, radclock_ids);
}

/* Grants and event channels */

int gnttab_alloc_pages(int count, struct page **pages)
{
	*pages = &wire_page;
	return 0;
}

void gnttab_free_pages(int count, struct page **pages)
{
}

void gnttab_set_map_op(struct gnttab_map_grant_ref *op, unsigned long address, u32 flags, u32 ref,
		       int domid)
{
	KERNEL_BUG_ON(!(flags & GNTMAP_readonly));
	*op = (struct gnttab_map_grant_ref) { .address = address, .flags = flags, .ref = ref };
}

int gnttab_map_refs(struct gnttab_map_grant_ref *op, void *kernel_ops, struct page **pages,
		    int count)
{
	op->status = refuse_grant ? -3 : GNTST_okay;
	if (!refuse_grant) {
		KERNEL_BUG_ON(mapped);
		mapped++;
	}
	return 0;
}

void gnttab_set_unmap_op(struct gnttab_unmap_grant_ref *op, unsigned long address, u32 flags,
			 grant_handle_t handle)
{
	*op = (struct gnttab_unmap_grant_ref) { .address = address, .handle = handle };
}

int gnttab_unmap_refs(struct gnttab_unmap_grant_ref *op, void *kernel_ops, struct page **pages,
		      int count)
{
	KERNEL_BUG_ON(mapped != 1);
	mapped = 0;
	return 0;
}

int bind_interdomain_evtchn_to_irqhandler_lateeoi(struct xenbus_device *xdev, u32 port,
						  irqreturn_t (*handler)(int, void *),
						  unsigned long flags, const char *name, void *data)
{
	if (refuse_port)
		return -EINVAL;
	KERNEL_BUG_ON(bound);
	bound = 1;
	due_eoi = 0;
	return 9;
}

void unbind_from_irqhandler(int irq, void *data)
{
	KERNEL_BUG_ON(!bound || irq != 9);
	bound = 0;
}

void xen_irq_lateeoi(int irq, unsigned int flags)
{
	KERNEL_BUG_ON(!bound || !due_eoi);
	due_eoi = 0;
}

/* Xen */

int HYPERVISOR_vcpu_op(int op, unsigned int vcpu, void *argument)
{
	if (op == VCPUOP_get_runstate_info) {
		memset(argument, 0, sizeof(struct vcpu_runstate_info));
		return 0;
	}
	records[vcpu] = ((struct vcpu_register_time_memory_area *)argument)->addr.v;
	return 0;
}

int HYPERVISOR_hvm_op(int op, void *argument)
{
	struct radclock_hvm_get_time *time = argument;

	if (refuse_time || !radclock_time_info_valid(&truth))
		return -ENOSYS;
	time->now = radclock_system_time(&truth, kernel_tsc) + (u64)xens_error;
	return 0;
}

void cpu_relax(void)
{
	struct radclock_page *page = wire_page.memory;

	if (toggles) {
		toggles--;
		page->abi.seq_count++;
	}
}

/* What the fuzzer does */

void fuzz_start(void)
{
	kernel_cpu = 0;
	kernel_tsc = 1000000;
	kernel_raw_ns = jiffies = 0;
	memset(exists, 0, sizeof(exists));
	memset(records, 0, sizeof(records));
	memset(&truth, 0, sizeof(truth));
	memset(&radclock, 0, sizeof(radclock));
	memset(radclock_time_area, 0, sizeof(radclock_time_area));
	xens_error = 0;
	refuse_grant = refuse_port = refuse_time = false;
	mapped = bound = due_eoi = toggles = 0;
	if (!wire_page.memory)
		wire_page.memory = (void *)get_zeroed_page(GFP_KERNEL);
	memset(wire_page.memory, 0, PAGE_SIZE);
	device = (struct xenbus_device) {
		.nodename = "device/radclock/0",
		.otherend = backend_dir,
		.state = XenbusStateInitialising,
		.dev.driver = &radclock_driver.driver,
	};
	KERNEL_BUG_ON(radclock_init());
	KERNEL_BUG_ON(radclock_probe(&device, radclock_ids));
}

void fuzz_stop(void)
{
	radclock_remove(&device);
	KERNEL_BUG_ON(mapped || bound || radclock.lock.locked);
	radclock_exit();
}

void fuzz_node(unsigned int which, const char *text, size_t length, bool there)
{
	length = min(length, (size_t)NODE_LENGTH - 1);
	memcpy(nodes[which % 5], text, length);
	nodes[which % 5][length] = 0;
	exists[which % 5] = there;
}

/* The state is what XenBus read; it hands on whatever number stands there. */
void fuzz_backend_state(unsigned int state)
{
	if (!radclock.suspended && device.otherend)
		radclock_backend_changed(&device, state);
}

struct radclock_page *fuzz_wire(void)
{
	return wire_page.memory;
}

void fuzz_busy(u32 times)
{
	toggles = times;
}

/* The record of a CPU, and time passing. */
void fuzz_time(unsigned int cpu, const struct radclock_time_info *info, u64 tsc, bool odd, bool is_true)
{
	struct pvclock_vcpu_time_info *record = records[cpu % NR_CPUS];

	kernel_tsc = tsc;
	jiffies += HZ / 2;
	kernel_raw_ns += NSEC_PER_SEC / 2;
	if (is_true)
		truth = *info;
	if (!record)
		return;
	record->version += 2;
	record->version = (record->version & ~1U) | odd;
	record->tsc_timestamp = info->tsc_timestamp;
	record->system_time = info->system_time;
	record->tsc_to_system_mul = info->tsc_to_system_mul;
	record->tsc_shift = info->tsc_shift;
}

void fuzz_refuse(bool grant, bool port, bool time, s64 error)
{
	refuse_grant = grant;
	refuse_port = port;
	refuse_time = time;
	xens_error = error;
}

void fuzz_event(void)
{
	/* Masked from one to the EOI. */
	if (bound && !due_eoi) {
		due_eoi = 1;
		radclock_event(9, &radclock);
	}
}

void fuzz_work(void)
{
	if (!radclock.suspended)
		flush_work(&radclock.work.work);
}

void fuzz_suspend(bool early, bool restored, bool lost)
{
	radclock_freeze(NULL);
	KERNEL_BUG_ON(mapped || bound);
	if (lost)
		device.otherend = NULL;
	if (early)
		restored ? radclock_restore_early(NULL) : radclock_thaw_early(NULL);
	radclock_thaw(NULL);
	if (!lost)
		device.otherend = backend_dir;
	fuzz_work();
}

void fuzz_frontend_node_changed(void)
{
	radclock_frontend_changed(&radclock_watch, FRONTEND_DIR "/backend", "");
}

void fuzz_rebind(void)
{
	radclock_remove(&device);
	device.otherend = backend_dir;
	KERNEL_BUG_ON(radclock_probe(&device, radclock_ids));
}

void fuzz_read_attributes(void)
{
	static char buffer[PAGE_SIZE];

	system_time_show(NULL, NULL, buffer);
	resume_timing_show(NULL, NULL, buffer);
}

const struct radclock_page *fuzz_guest_page(void)
{
	KERNEL_BUG_ON(radclock.lock.locked);
	return radclock.page;
}

/* The copy that the page was composed from, and the record. False if there is none. */
bool fuzz_composed(struct radclock_page *wire, struct radclock_time_info *info)
{
	*wire = radclock.wire;
	*info = radclock.info;
	return radclock.have_wire && radclock.published;
}

/* Whether the page still stands for want of a record, whatever the backend has written since. */
bool fuzz_is_blind(void)
{
	return radclock.blind_looks;
}

/* The driver's arithmetic, for the target "page". */

int fuzz_check_wire(const struct radclock_page *page)
{
	return radclock_check_wire(page);
}

bool fuzz_compose(const struct radclock_page *page, const struct radclock_time_info *info, u64 tsc,
		  const struct radclock_added *added, struct radclock_params *guest)
{
	const struct radclock_params wire = radclock_page_params(page);

	return radclock_compose(&wire, info, tsc, added, guest);
}
