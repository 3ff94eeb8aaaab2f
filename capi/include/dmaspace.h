/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * libdmaspace: DMA windows for PCI devices that are passed through to guests, on x86_64 and ppc64le.
 *
 * RESULTS. Each function that returns int returns 0, or a negative errno. dms_error() returns a sentence about the last
 * error of the calling thread, which ends with a remedy where there is a usual one. A function that fails has changed
 * nothing, unless its comment says otherwise.
 *
 * HANDLES. A handle is a pointer to an opaque struct. A function that makes one stores it at its parameter `out`, or
 * NULL there on failure. A function that frees or takes one has a parameter `struct dms_X **`, and stores NULL there;
 * freeing NULL does nothing. All handles may be used by several threads at once, but a handle must not be used while or
 * after it is freed. A NULL handle, and a handle of another kind, is answered with -EINVAL.
 *
 * STRUCTS. A struct that is passed in begins with its size, which must be sizeof(struct); its reserved fields must be
 * zero. Anything else is answered with -EINVAL.
 *
 * TEXTS are UTF-8 and end with a zero. RANGES are a first address and a length; a range that is empty or ends past
 * 2^64-1 is refused.
 *
 * MEMORY that is passed in must stay mapped in this process until no section, target memory, registration or mapping
 * of it is left, and until every domain or space that had it is freed: devices write to it.
 *
 * CALLBACKS may be called by any thread that is inside a function of this library, and must not call the library.
 */
#ifndef DMASPACE_H
#define DMASPACE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct dms_host;   /* a host: its kernel, and the facts about its devices */
struct dms_domain; /* the devices that see one guest bus, with their spaces and the listener */
struct dms_device; /* an open device */
struct dms_update; /* changes of a guest's bus, until they are committed */
struct dms_space;  /* one space without a listener, for callers that map by themselves */

/* The access of devices. */
#define DMS_READ 1u
#define DMS_WRITE 2u

/* The kinds of sections. */
#define DMS_RAM 1u           /* memory that devices must reach; needs address, len, access */
#define DMS_DEVICE_MEMORY 2u /* another device's BAR: best effort; as DMS_RAM */
#define DMS_DISCARDABLE 3u   /* RAM in blocks of page_size, which devices reach once they are populated */
#define DMS_TRANSLATED 4u    /* a guest's window, with entries of page_size bytes */
#define DMS_MSI 5u           /* a write here is an interrupt */
#define DMS_NOTHING 6u       /* emulated MMIO, or a hole */
#define DMS_TARGET 7u        /* RAM behind translated windows: iova is its address in the guest's memory */

/* The flags of sections. */
#define DMS_READ_ONLY_HERE 1u /* this process itself may only read the memory */

/* The guest's bus, for dms_domain_new. */
#define DMS_FRONT_END_PLAIN 0u
#define DMS_FRONT_END_PC 1u /* a PC: mappings are cut where its firmware changes shadow RAM */

/* A part of a guest's bus. */
struct dms_section {
    uint32_t size; /* sizeof(struct dms_section) */
    uint32_t kind;
    const char *name; /* for reports; may be NULL */
    uint64_t iova;    /* the first bus address */
    uint64_t len;
    void *address;      /* the memory; ignored without */
    uint32_t access;    /* DMS_READ | DMS_WRITE */
    int32_t fd;         /* the file that is mapped, shared, at address, or a dma-buf; -1 for none. It is duplicated. */
    uint64_t fd_offset; /* the offset of address in the file */
    uint64_t page_size; /* the block, the entry, or the pages that back the memory; 0 for the host's pages */
    uint64_t flags;
    uint64_t reserved[6];
};

/* A range of bus addresses in which memory can be mapped. */
struct dms_window {
    uint64_t first;
    uint64_t last;       /* inside the window */
    uint64_t page_sizes; /* bit n: pages of 2^n bytes */
    uint64_t reserved[5];
};

/* --- Errors and hosts ------------------------------------------------------------------------------------------ */

/* The sentence about the last error of this thread, "" before the first. It is valid until the thread's next error. */
const char *dms_error(void);

/* The version of the library: "0.1.0". */
const char *dms_version(void);

/*
 * Opens a host: this one for a NULL name, or one in software, such as "soft:vtd" (-EOPNOTSUPP if the library was built
 * without those). flags must be 0.
 */
int dms_host_open(struct dms_host **out, const char *name, uint32_t flags);

/* Frees a host. Domains and spaces made of it stay. */
void dms_host_free(struct dms_host **place);

/* --- Domains --------------------------------------------------------------------------------------------------- */

/*
 * Makes a domain without devices. backend is "iommufd", "type1", "type1-on-iommufd", "spapr" or "spapr-v1", or NULL for
 * the best one of each device. Without a device, commits are accepted and their sections are pending.
 */
int dms_domain_new(struct dms_domain **out, struct dms_host *host, const char *backend, uint32_t front_end);

/* Frees a domain and closes its spaces, except for those that a device keeps open. */
void dms_domain_free(struct dms_domain **place);

/*
 * Opens the device at a PCI address ("0000:01:00.0"), attaches it, and maps all of the guest's memory for it; or fails
 * with everything as it was.
 */
int dms_domain_add(struct dms_domain *domain, const char *address, struct dms_device **out);

/*
 * Detaches a device and closes it; *device is NULL afterwards, on failure too. A device that the kernel refuses to
 * detach stays attached until dms_domain_sync succeeds or the domain is freed.
 */
int dms_domain_remove(struct dms_domain *domain, struct dms_device **device);

/* Tries again what failed before: devices to detach, spaces to close, best-effort sections. */
int dms_domain_sync(struct dms_domain *domain);

/*
 * Copies the windows of the domain's space number `space`, from 0. *count is the room at out, and becomes the number of
 * windows: -EMSGSIZE if the room was too small, -ENOENT if there is no such space.
 */
int dms_domain_windows(struct dms_domain *domain, size_t space, struct dms_window *out, size_t *count);

/*
 * Copies the outcome of each section in the last commit, or everything in force, as a text with its zero. *size is the
 * room at out, and becomes the size needed: -EMSGSIZE if the room was too small.
 */
int dms_domain_report(struct dms_domain *domain, char *out, size_t *size);
int dms_domain_state(struct dms_domain *domain, char *out, size_t *size);

/* The memory and the access behind a bus address: -ENOENT if nothing is mapped there. address, access may be NULL. */
int dms_translate(struct dms_domain *domain, uint64_t iova, void **address, uint32_t *access);

/* --- Devices --------------------------------------------------------------------------------------------------- */

/*
 * The descriptor of a device, for its regions and interrupts. It stays the device's: do not close it, and duplicate it
 * to use it longer. -EBADF on a host in software.
 */
int dms_device_fd(struct dms_device *device, int *fd);

/* Closes a device without detaching it: its group or node stays attached until its space is closed. */
void dms_device_free(struct dms_device **place);

/* --- Updates --------------------------------------------------------------------------------------------------- */

int dms_update_new(struct dms_update **out);
void dms_update_free(struct dms_update **place);

/* Adds a section, or target memory. */
int dms_update_add(struct dms_update *update, const struct dms_section *section);

/* Removes all sections in a range, before any is added. A section that lies in it only in part fails the commit. */
int dms_update_remove(struct dms_update *update, uint64_t iova, uint64_t len);

/* Removes all target memory in a range of the guest's memory. */
int dms_update_remove_target(struct dms_update *update, uint64_t address, uint64_t len);

/*
 * Makes an update true on every space, or on none; *update is NULL afterwards, on failure too. *pending, which may be
 * NULL, becomes the number of sections that the guest needs and that wait for a device.
 */
int dms_commit(struct dms_domain *domain, struct dms_update **update, uint64_t *pending);

/* --- Entries, blocks and dirty pages --------------------------------------------------------------------------- */

/* Puts, replaces or clears entries of a translated window. *bytes, which may be NULL, becomes the live bytes cleared. */
int dms_put(struct dms_domain *domain, uint64_t iova, uint64_t target, uint64_t len, uint32_t access);
int dms_replace(struct dms_domain *domain, uint64_t iova, uint64_t target, uint64_t len, uint32_t access);
int dms_clear(struct dms_domain *domain, uint64_t iova, uint64_t len, uint64_t *bytes);

/* Lets devices reach the blocks of a range, whose memory must be there; or keeps them from it, so that it may go. */
int dms_populate(struct dms_domain *domain, uint64_t iova, uint64_t len);
int dms_discard(struct dms_domain *domain, uint64_t iova, uint64_t len);

/* 0 if memory may be discarded (a balloon), -EBUSY if devices may reach it. */
int dms_may_discard(struct dms_domain *domain, void *address, uint64_t len);

/*
 * Calls mark(opaque, address, len) from now on for memory that devices may have written: at each dms_sync_dirty, and
 * whenever memory is unmapped. opaque must stay valid until dms_stop_tracking returns or the domain is freed.
 */
int dms_track_dirty(struct dms_domain *domain, void (*mark)(void *opaque, void *address, uint64_t len), void *opaque);
int dms_sync_dirty(struct dms_domain *domain);
int dms_stop_tracking(struct dms_domain *domain);

/* --- Spaces without a listener --------------------------------------------------------------------------------- */

/* Opens a space without a device. */
int dms_space_open(struct dms_space **out, struct dms_host *host, const char *backend);

/*
 * Makes a space of an open container or iommufd. The descriptor is duplicated, and must not be used from now on to map
 * memory or to attach devices.
 */
int dms_space_of_fd(struct dms_space **out, struct dms_host *host, const char *backend, int fd);

/* Frees a space: everything in it is unmapped and closed, unless a device keeps it open. */
void dms_space_free(struct dms_space **place);

/* Opens a device by its PCI address, or by its path in sysfs ("/sys/bus/mdev/devices/<uuid>"), and attaches it. */
int dms_space_add(struct dms_space *space, const char *address, struct dms_device **out);

/* Attaches an open device with a node of its own. The descriptor is duplicated; name stands for it in errors. */
int dms_space_add_fd(struct dms_space *space, int fd, const char *name, struct dms_device **out);

/* Detaches a device and closes it; *device is NULL afterwards, on failure too. */
int dms_space_remove(struct dms_space *space, struct dms_device **device);

/* Copies the windows, as dms_domain_windows does. They change when devices are attached or detached. */
int dms_space_windows(struct dms_space *space, struct dms_window *out, size_t *count);

/*
 * Maps memory. unit is the size of the parts in which it may be unmapped, or 0 if it is unmapped whole. Overlap with
 * anything live is -EEXIST.
 */
int dms_map(struct dms_space *space, uint64_t iova, void *address, uint64_t len, uint32_t access, uint64_t unit);

/* Unmaps all whole units in a range. *bytes, which may be NULL, becomes the bytes that were mapped. */
int dms_unmap(struct dms_space *space, uint64_t iova, uint64_t len, uint64_t *bytes);

/* Registers memory before it is mapped, where the backend asks for it (spapr); elsewhere -EOPNOTSUPP. */
int dms_register(struct dms_space *space, void *address, uint64_t len);
int dms_unregister(struct dms_space *space, void *address, uint64_t len);

/*
 * Creates a window, where the backend can (spapr); elsewhere -EOPNOTSUPP. *granted, which may be NULL, becomes the
 * window that the kernel gave. A window is removed by its first address.
 */
int dms_window_create(struct dms_space *space, uint64_t first, uint64_t len, uint64_t page_size,
                      struct dms_window *granted);
int dms_window_remove(struct dms_space *space, uint64_t first);

#ifdef __cplusplus
}
#endif

#endif /* DMASPACE_H */
