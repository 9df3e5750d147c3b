/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * As much of the kernel as the driver uses, for user space: two CPUs, one guest, one XenStore directory on each side.
 * What it does not model: interrupts and preemption. A work runs when the fuzzer says so.
 */
#ifndef FUZZ_KERNEL_H
#define FUZZ_KERNEL_H

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef int64_t s64;
typedef uint64_t u64;
typedef unsigned int grant_handle_t;
typedef int irqreturn_t;
typedef int cpuhp_state_t;

#define KBUILD_MODNAME "xen_radclockfront"
#define PAGE_SIZE 4096
#define HZ 250
#define NSEC_PER_MSEC 1000000L
#define NSEC_PER_SEC 1000000000L
#define GFP_KERNEL 0
#define __init __attribute__((unused))
#define __exit __attribute__((unused))
#define __user
#define THIS_MODULE NULL
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#define LINUX_VERSION_CODE KERNEL_VERSION(6, 12, 0)
#define BUILD_BUG_ON(condition) _Static_assert(!(condition), #condition)
#define module_init(function)
#define module_exit(function)
#define MODULE_DESCRIPTION(text)
#define MODULE_AUTHOR(text)
#define MODULE_LICENSE(text)
#define MODULE_ALIAS(text)

/* Like the kernel's BUG(): whatever must not be. */
#define KERNEL_BUG_ON(condition)                                                            \
	do {                                                                               \
		if (condition) {                                                           \
			fprintf(stderr, "%s:%d: %s\n", __func__, __LINE__, #condition);    \
			abort();                                                           \
		}                                                                          \
	} while (0)

/* Formats are checked, lines go nowhere. */
#define kernel_log(...) ((void)snprintf(NULL, 0, __VA_ARGS__))
#define pr_warn(...) kernel_log(__VA_ARGS__)
#define pr_warn_once(...) kernel_log(__VA_ARGS__)
#define pr_warn_ratelimited(...) kernel_log(__VA_ARGS__)
#define dev_info_ratelimited(dev, ...) kernel_log(__VA_ARGS__)
#define dev_warn(dev, ...) kernel_log(__VA_ARGS__)

/* Nothing is held back. */
#define DEFINE_RATELIMIT_STATE(name, interval, burst) bool name = true
#define __ratelimit(state) (*(state))

#define READ_ONCE(x) (*(const volatile __typeof__(x) *)&(x))
#define WRITE_ONCE(x, value) (*(volatile __typeof__(x) *)&(x) = (value))
#define xchg(at, value) __atomic_exchange_n(at, value, __ATOMIC_SEQ_CST)
#define smp_wmb() __atomic_thread_fence(__ATOMIC_RELEASE)
#define virt_rmb() __atomic_thread_fence(__ATOMIC_ACQUIRE)
/* The other side writes while this one waits. */
void cpu_relax(void);

#define min(a, b) ({ __typeof__(a) a_ = (a); __typeof__(b) b_ = (b); a_ < b_ ? a_ : b_; })
#define max(a, b) ({ __typeof__(a) a_ = (a); __typeof__(b) b_ = (b); a_ > b_ ? a_ : b_; })
#define clamp(x, low, high) min(max(x, low), high)

static inline u64 mul_u64_u64_shr(u64 a, u64 b, unsigned int shift)
{
	return (u64)((unsigned __int128)a * b >> shift);
}

/* The kernel's traps if the quotient does not fit. */
static inline u64 mul_u64_u64_div_u64(u64 a, u64 b, u64 divisor)
{
	KERNEL_BUG_ON(!divisor || (unsigned __int128)a * b / divisor >> 64);
	return (u64)((unsigned __int128)a * b / divisor);
}

static inline u64 div64_u64(u64 a, u64 b)
{
	KERNEL_BUG_ON(!b);
	return a / b;
}

/* Time */

extern u64 kernel_tsc, kernel_raw_ns;
extern unsigned long jiffies;
#define time_after(a, b) ((long)((b) - (a)) < 0)
#define nsecs_to_jiffies(nanos) ((nanos) / (NSEC_PER_SEC / HZ))
static inline u64 ktime_get_raw_ns(void)
{
	return kernel_raw_ns++;
}
static inline u64 rdtsc_ordered(void)
{
	return kernel_tsc++;
}
static inline u64 get_random_u64(void)
{
	return 0x123456789abcdef0;
}

/* CPUs */

#define NR_CPUS 2
#define nr_cpu_ids NR_CPUS
extern unsigned int kernel_cpu;
#define CPUHP_AP_ONLINE_DYN 0
enum cpuhp_state { CPUHP_DUMMY };
#define DEFINE_PER_CPU(type, name) __typeof__(type) name[NR_CPUS]
#define DEFINE_PER_CPU_ALIGNED(type, name) DEFINE_PER_CPU(type, name)
#define per_cpu(name, cpu) ((name)[cpu])
#define per_cpu_ptr(name, cpu) (&(*(name))[cpu])
#define this_cpu_read(name) ((name)[kernel_cpu])
#define raw_smp_processor_id() kernel_cpu
#define for_each_online_cpu(cpu) for ((cpu) = 0; (cpu) < NR_CPUS; (cpu)++)
#define cpu_online_mask NULL
#define cpumask_next(cpu, mask) ((cpu) + 1)
#define cpumask_first(mask) 0
#define cpus_read_lock() ((void)0)
#define cpus_read_unlock() ((void)0)
#define preempt_disable() ((void)0)
#define preempt_enable() ((void)0)
static inline int cpuhp_setup_state(int state, const char *name, int (*online)(unsigned int),
				    int (*offline)(unsigned int))
{
	for (unsigned int cpu = 0; cpu < NR_CPUS; cpu++)
		online(cpu);
	return 1;
}
#define cpuhp_remove_state(state) ((void)0)

/* Xen's time records */

struct pvclock_vcpu_time_info {
	u32 version;
	u32 pad0;
	u64 tsc_timestamp;
	u64 system_time;
	u32 tsc_to_system_mul;
	signed char tsc_shift;
	u8 flags;
	u8 pad[2];
};
struct pvclock_vsyscall_time_info {
	struct pvclock_vcpu_time_info pvti;
};
#define pvclock_get_pvti_cpu0_va() ((struct pvclock_vsyscall_time_info *)NULL)
#define pvclock_read_begin(src) ((src)->version & ~1U)
#define pvclock_read_retry(src, seen) ((src)->version != (seen))
struct vcpu_register_time_memory_area {
	union {
		void *v;
	} addr;
};
struct vcpu_runstate_info {
	u64 time[4];
};
enum { RUNSTATE_running, RUNSTATE_runnable, RUNSTATE_blocked };
enum { VCPUOP_register_vcpu_time_memory_area, VCPUOP_get_runstate_info };
#define xen_vcpu_nr(cpu) (cpu)
#define xen_domain() true
int HYPERVISOR_vcpu_op(int op, unsigned int vcpu, void *argument);
int HYPERVISOR_hvm_op(int op, void *argument);

/* Locks and works */

struct completion {
	bool done;
};
#define DECLARE_COMPLETION(name) struct completion name
#define complete(completion) ((completion)->done = true)
/* There is one thread: what has not happened by now never will. */
#define wait_for_completion_state(completion, state)                                       \
	do {                                                                               \
		KERNEL_BUG_ON(!(completion)->done);                                        \
		(completion)->done = false;                                                \
	} while (0)
#define synchronize_rcu_tasks() ((void)0)

struct mutex {
	bool locked;
};
#define mutex_init(mutex) ((mutex)->locked = false)
#define mutex_lock(mutex)                                                                  \
	do {                                                                               \
		KERNEL_BUG_ON((mutex)->locked);                                            \
		(mutex)->locked = true;                                                    \
	} while (0)
#define mutex_unlock(mutex) ((mutex)->locked = false)
struct work_struct {
	void (*function)(struct work_struct *work);
	bool pending;
};
struct delayed_work {
	struct work_struct work;
};
#define INIT_WORK(at, what) (*(at) = (struct work_struct) { .function = what })
#define INIT_DELAYED_WORK(at, what) INIT_WORK(&(at)->work, what)
#define mod_delayed_work(queue, delayed, delay) ((void)((delayed)->work.pending = true))
#define queue_delayed_work_on(cpu, queue, delayed, delay) \
	((void)((delayed)->work.pending = true, kernel_cpu = (cpu)))
#define queue_work(queue, at) ((void)((at)->pending = true))
static inline void flush_work(struct work_struct *work)
{
	if (work->pending) {
		work->pending = false;
		work->function(work);
	}
}
#define cancel_work_sync(at) ((void)((at)->pending = false))
#define cancel_delayed_work_sync(at) ((void)((at)->work.pending = false))

/* Devices */

struct device_driver {
	const char *name;
	const void *pm;
	bool suppress_bind_attrs;
};
struct device {
	struct device_driver *driver;
	bool locked;
};
struct platform_device {
	struct device dev;
};
struct platform_driver {
	struct device_driver driver;
};
struct dev_pm_ops {
	int (*suspend)(struct device *), (*freeze)(struct device *), (*poweroff)(struct device *);
	int (*resume_early)(struct device *), (*thaw_early)(struct device *);
	int (*restore_early)(struct device *);
	int (*resume)(struct device *), (*thaw)(struct device *), (*restore)(struct device *);
};
#define pm_sleep_ptr(pointer) (pointer)
#define platform_driver_register(driver) ((void)(driver), 0)
#define platform_driver_unregister(driver) ((void)0)
#define PLATFORM_DEVID_NONE (-1)
extern struct platform_device kernel_platform_device;
#define platform_device_register_simple(name, id, resources, count) (&kernel_platform_device)
#define platform_device_unregister(device) ((void)0)
#define IS_ERR(pointer) ((unsigned long)(pointer) >= (unsigned long)-4095)
#define PTR_ERR(pointer) ((long)(pointer))
#define ERR_PTR(error) ((void *)(long)(error))
#define get_device(device) ((void)0)
#define put_device(device) ((void)0)
#define device_lock(device)                                                                \
	do {                                                                               \
		KERNEL_BUG_ON((device)->locked);                                           \
		(device)->locked = true;                                                   \
	} while (0)
#define device_unlock(device) ((device)->locked = false)
int device_reprobe(struct device *device);
struct device_attribute {
	ssize_t (*show)(struct device *, struct device_attribute *, char *);
};
struct attribute {
	int none;
};
#define DEVICE_ATTR_RO(name) \
	struct { struct attribute attr; struct device_attribute show; } dev_attr_##name = { \
		.show.show = name##_show }
#define ATTRIBUTE_GROUPS(name) \
	static const struct attribute **const name##_groups[] __attribute__((unused)) = { \
		(const struct attribute **)name##_attrs, NULL }
#define sysfs_emit(buffer, ...) snprintf(buffer, PAGE_SIZE, __VA_ARGS__)
#define sysfs_emit_at(buffer, at, ...) snprintf((buffer) + (at), PAGE_SIZE - (at), __VA_ARGS__)

/* Files and memory: /dev/vmclock0 is not under test here. */

struct file;
struct vm_area_struct {
	unsigned long vm_start, vm_end, vm_pgoff, vm_flags;
};
enum { VM_WRITE = 1, VM_EXEC = 2, VM_DONTEXPAND = 4, VM_MAYWRITE = 8, VM_MAYEXEC = 16 };
#define vm_flags_mod(vma, set, clear) ((vma)->vm_flags = ((vma)->vm_flags | (set)) & ~(clear))
#define virt_to_page(address) (address)
#define vm_insert_page(vma, start, page) 0
struct file_operations {
	void *owner;
	ssize_t (*read)(struct file *, char *, size_t, loff_t *);
	int (*mmap)(struct file *, struct vm_area_struct *);
	void *llseek;
};
#define default_llseek NULL
#define simple_read_from_buffer(to, count, at, from, size) 0
#define MISC_DYNAMIC_MINOR 0
struct miscdevice {
	int minor;
	const char *name;
	int mode;
	const struct file_operations *fops;
	const void *groups;
};
#define misc_register(device) ((void)(device), 0)
#define misc_deregister(device) ((void)0)
static inline unsigned long get_zeroed_page(int flags)
{
	void *page = aligned_alloc(PAGE_SIZE, PAGE_SIZE);

	return (unsigned long)memset(page, 0, PAGE_SIZE);
}
#define free_page(address) free((void *)(address))
#define kmalloc(size, flags) malloc(size)
#define kfree(pointer) free((void *)(pointer))

/* XenBus */

enum xenbus_state {
	XenbusStateUnknown,
	XenbusStateInitialising,
	XenbusStateInitWait,
	XenbusStateInitialised,
	XenbusStateConnected,
	XenbusStateClosing,
	XenbusStateClosed,
	XenbusStateReconfiguring,
	XenbusStateReconfigured,
};
struct xenbus_device {
	const char *nodename;
	const char *otherend;
	int otherend_id;
	enum xenbus_state state;
	struct device dev;
};
struct xenbus_device_id {
	char devicetype[32];
};
struct xenbus_driver {
	const char *name;
	const struct xenbus_device_id *ids;
	bool allow_rebind;
	bool not_essential;
	int (*probe)(struct xenbus_device *, const struct xenbus_device_id *);
	void (*remove)(struct xenbus_device *);
	void (*otherend_changed)(struct xenbus_device *, enum xenbus_state);
	struct device_driver driver;
};
struct xenbus_watch {
	const char *node;
	void (*callback)(struct xenbus_watch *, const char *, const char *);
};
#define XBT_NIL 0
static inline int register_xenbus_watch(struct xenbus_watch *watch)
{
	watch->callback(watch, watch->node, "");
	return 0;
}
#define unregister_xenbus_watch(watch) ((void)0)
#define __xenbus_register_frontend(driver, owner, name) ((void)(driver), 0)
#define xenbus_unregister_driver(driver) ((void)0)
#define xenbus_dev_error(xdev, err, ...) kernel_log(__VA_ARGS__)
#define xenbus_printf(transaction, dir, node, ...) (snprintf(NULL, 0, __VA_ARGS__), 0)
int xenbus_gather(int transaction, const char *dir, ...);
void *xenbus_read(int transaction, const char *dir, const char *node, unsigned int *length);
bool xenbus_exists(int transaction, const char *dir, const char *node);
unsigned int xenbus_read_unsigned(const char *dir, const char *node, unsigned int otherwise);
int xenbus_switch_state(struct xenbus_device *xdev, enum xenbus_state state);
#define xenbus_frontend_closed(xdev) xenbus_switch_state(xdev, XenbusStateClosed)

/* Grants and event channels */

struct page {
	void *memory;
};
#define page_address(page) ((page)->memory)
struct gnttab_map_grant_ref {
	unsigned long address;
	u32 flags, ref;
	int domid;
	short status;
	grant_handle_t handle;
};
struct gnttab_unmap_grant_ref {
	unsigned long address;
	grant_handle_t handle;
	short status;
};
enum { GNTMAP_host_map = 2, GNTMAP_readonly = 4, GNTST_okay = 0 };
int gnttab_alloc_pages(int count, struct page **pages);
void gnttab_free_pages(int count, struct page **pages);
void gnttab_set_map_op(struct gnttab_map_grant_ref *op, unsigned long address, u32 flags, u32 ref,
		       int domid);
void gnttab_set_unmap_op(struct gnttab_unmap_grant_ref *op, unsigned long address, u32 flags,
			 grant_handle_t handle);
int gnttab_map_refs(struct gnttab_map_grant_ref *op, void *kernel_ops, struct page **pages,
		    int count);
int gnttab_unmap_refs(struct gnttab_unmap_grant_ref *op, void *kernel_ops, struct page **pages,
		      int count);
enum { IRQ_HANDLED = 1, XEN_EOI_FLAG_SPURIOUS = 1 };
int bind_interdomain_evtchn_to_irqhandler_lateeoi(struct xenbus_device *xdev, u32 port,
						  irqreturn_t (*handler)(int, void *),
						  unsigned long flags, const char *name, void *data);
void unbind_from_irqhandler(int irq, void *data);
void xen_irq_lateeoi(int irq, unsigned int flags);

#endif
