/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* The answers to arguments that no call can take, and a space without a listener. */
#include <dmaspace.h>

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPECT(call, wanted)                                                                                           \
    do {                                                                                                               \
        int got = (call);                                                                                              \
        if (got != (wanted)) {                                                                                         \
            printf("%s:%d: %s returned %d, expected %d: %s\n", __FILE__, __LINE__, #call, got, (wanted), dms_error()); \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

#define SAYS(part)                                                                          \
    do {                                                                                    \
        if (!strstr(dms_error(), part)) {                                                   \
            printf("%s:%d: '%s' is not in '%s'\n", __FILE__, __LINE__, part, dms_error()); \
            exit(1);                                                                        \
        }                                                                                   \
    } while (0)

#define MIB (1ull << 20)

static void *another_thread(void *domain)
{
    EXPECT(dms_error()[0], '\0');
    EXPECT(dms_domain_sync(domain), 0);
    EXPECT(dms_domain_sync(NULL), -EINVAL);
    SAYS("dms_domain is NULL");
    return NULL;
}

static void hosts(struct dms_host **host)
{
    EXPECT(dms_host_open(NULL, "soft:vtd", 0), -EINVAL);
    EXPECT(dms_host_open(host, "hard:vtd", 0), -EINVAL);
    SAYS("is no host");
    EXPECT(dms_host_open(host, "soft:none", 0), -EINVAL);
    EXPECT(dms_host_open(host, "\xff\xfe", 0), -EINVAL);
    SAYS("UTF-8");
    EXPECT(dms_host_open(host, "soft:vtd", 4), -EINVAL);
    EXPECT(*host == NULL, 1);
    dms_host_free(NULL);
    dms_host_free(host);
    EXPECT(dms_host_open(host, "soft:vtd", 0), 0);
    EXPECT(*host != NULL, 1);
}

static void domains(struct dms_host *host, struct dms_domain **domain)
{
    EXPECT(dms_domain_new(domain, NULL, NULL, 0), -EINVAL);
    EXPECT(dms_domain_new(domain, host, "type9", 0), -EINVAL);
    EXPECT(dms_domain_new(domain, host, NULL, 9), -EINVAL);
    EXPECT(dms_domain_new(NULL, host, NULL, 0), -EINVAL);
    EXPECT(dms_domain_new(domain, host, "type1", DMS_FRONT_END_PC), 0);
    /* A handle of another kind. */
    EXPECT(dms_domain_sync((struct dms_domain *)host), -EINVAL);
    SAYS("no dms_domain is there");
    /* A pointer that is not aligned. */
    EXPECT(dms_domain_sync((struct dms_domain *)((char *)*domain + 1)), -EINVAL);
    SAYS("not aligned");
}

static void sections(struct dms_domain *domain, void *memory)
{
    struct dms_section section = {
        .size = sizeof(section), .kind = DMS_RAM, .iova = 0, .len = MIB,
        .address = memory, .access = DMS_READ | DMS_WRITE, .fd = -1,
    };
    struct dms_update *update = NULL;
    struct dms_section bad;
    uint64_t pending = 7;

    EXPECT(dms_update_new(NULL), -EINVAL);
    EXPECT(dms_update_new(&update), 0);
    EXPECT(dms_update_add(update, NULL), -EINVAL);
    EXPECT(dms_update_add(NULL, &section), -EINVAL);
#define BAD(field, value)                             \
    bad = section, bad.field = (value);               \
    EXPECT(dms_update_add(update, &bad), -EINVAL)
    BAD(size, 8);
    SAYS("has 8 bytes");
    BAD(size, sizeof(bad) + 8);
    BAD(size, 0);
    BAD(kind, 0);
    BAD(kind, 99);
    BAD(name, "\xff");
    BAD(len, 0);
    BAD(iova, UINT64_MAX);
    BAD(address, NULL);
    BAD(access, 8);
    BAD(flags, 2);
    BAD(reserved[5], 1);
    BAD(page_size, 3);
    BAD(fd, 0); /* the standard input is no memory */
    bad = section, bad.fd = 1 << 20;
    EXPECT(dms_update_add(update, &bad), -EBADF);
    bad = section, bad.kind = DMS_TRANSLATED;
    EXPECT(dms_update_add(update, &bad), -EINVAL);
    EXPECT(dms_update_remove(update, 0, 0), -EINVAL);
    EXPECT(dms_update_remove_target(update, UINT64_MAX, 2), -EINVAL);
    EXPECT(dms_update_add(update, &section), 0);
    EXPECT(dms_commit(NULL, &update, NULL), -EINVAL);
    EXPECT(update != NULL, 1);
    EXPECT(dms_commit(domain, NULL, NULL), -EINVAL);
    EXPECT(dms_commit(domain, &update, &pending), 0);
    EXPECT((int)pending, 1);
    EXPECT(update == NULL, 1);
    EXPECT(dms_commit(domain, &update, NULL), -EINVAL);
    /* The same again overlaps. */
    EXPECT(dms_update_new(&update), 0);
    EXPECT(dms_update_add(update, &section), 0);
    EXPECT(dms_commit(domain, &update, NULL), -EEXIST);
    EXPECT(update == NULL, 1);
    /* A part of a section cannot go. */
    EXPECT(dms_update_new(&update), 0);
    EXPECT(dms_update_remove(update, 0, 4096), 0);
    EXPECT(dms_commit(domain, &update, NULL), -EINVAL);
    SAYS("holds only a part");
}

static void entries(struct dms_host *host, void *memory)
{
    struct dms_section window = {
        .size = sizeof(window), .kind = DMS_TRANSLATED, .iova = 0, .len = 1ull << 30, .page_size = 4096, .fd = -1,
    };
    struct dms_section target = {
        .size = sizeof(target), .kind = DMS_TARGET, .iova = 0, .len = MIB, .address = memory, .fd = -1,
    };
    struct dms_section blocks = {
        .size = sizeof(blocks), .kind = DMS_DISCARDABLE, .iova = 4ull << 30, .len = MIB,
        .address = (char *)memory + MIB, .access = DMS_READ | DMS_WRITE, .page_size = 65536, .fd = -1,
    };
    struct dms_domain *domain = NULL;
    struct dms_device *device = NULL;
    struct dms_update *update = NULL;
    void *behind = NULL;
    uint64_t bytes = 0;

    EXPECT(dms_domain_new(&domain, host, "iommufd", 0), 0);
    EXPECT(dms_domain_add(domain, "0000:00:03.0", &device), 0);
    EXPECT(dms_update_new(&update), 0);
    EXPECT(dms_update_add(update, &window), 0);
    EXPECT(dms_update_add(update, &target), 0);
    EXPECT(dms_update_add(update, &blocks), 0);
    EXPECT(dms_commit(domain, &update, NULL), 0);
    EXPECT(dms_put(domain, 8ull << 30, 0, 4096, DMS_READ), -ENODEV);
    EXPECT(dms_put(domain, 0x5000, 2 * MIB, 4096, DMS_READ), -EFAULT);
    EXPECT(dms_put(domain, 0x5000, 0x2000, 8192, DMS_READ), 0);
    EXPECT(dms_translate(domain, 0x6000, &behind, NULL), 0);
    EXPECT(behind == (char *)memory + 0x3000, 1);
    EXPECT(dms_replace(domain, 0x5000, 0x8000, 4096, DMS_READ | DMS_WRITE), 0);
    EXPECT(dms_clear(domain, 0, 1ull << 30, &bytes), 0);
    EXPECT((int)bytes, 8192);
    EXPECT(dms_populate(domain, blocks.iova, 65536), 0);
    EXPECT(dms_may_discard(domain, (char *)memory + MIB, 4096), -EBUSY);
    EXPECT(dms_discard(domain, blocks.iova, 65536), 0);
    EXPECT(dms_may_discard(domain, (char *)memory + MIB, 4096), 0);
    EXPECT(dms_populate(domain, 8ull << 30, 65536), -ENODEV);
    EXPECT(dms_update_new(&update), 0);
    EXPECT(dms_update_remove(update, 0, 8ull << 30), 0);
    EXPECT(dms_update_remove_target(update, 0, MIB), 0);
    EXPECT(dms_commit(domain, &update, NULL), 0);
    EXPECT(dms_domain_remove(domain, &device), 0);
    dms_domain_free(&domain);
}

static void spaces(struct dms_host *host, void *memory)
{
    struct dms_space *space = NULL;
    struct dms_device *device = NULL;
    struct dms_window windows[8];
    size_t count = 0;
    uint64_t bytes = 0;
    int fd = -1;

    EXPECT(dms_space_open(&space, host, NULL), -EINVAL);
    EXPECT(dms_space_of_fd(&space, host, "type1", -1), -EBADF);
    EXPECT(dms_space_open(&space, host, "type1"), 0);
    EXPECT(dms_space_add(space, "nonsense", &device), -EINVAL);
    EXPECT(dms_space_add(space, "0000:00:1e.0", &device), -ENODEV);
    EXPECT(dms_space_add(space, "/sys/bus/mdev/devices/none", &device), -ENODEV);
    EXPECT(dms_space_add_fd(space, -1, "none", &device), -EBADF);
    EXPECT(dms_space_add(space, "0000:00:03.0", &device), 0);
    EXPECT(dms_device_fd(device, NULL), -EINVAL);
    EXPECT(dms_device_fd(device, &fd), -EBADF);
    EXPECT(dms_space_windows(space, NULL, &count), -EMSGSIZE);
    EXPECT(count > 0 && count <= 8, 1);
    EXPECT(dms_space_windows(space, windows, &count), 0);
    EXPECT(dms_map(space, 0, NULL, MIB, DMS_READ, 0), -EINVAL);
    EXPECT(dms_map(space, 0, memory, 0, DMS_READ, 0), -EINVAL);
    EXPECT(dms_map(space, 0, memory, MIB, DMS_READ, 3), -EINVAL);
    EXPECT(dms_map(space, 0, memory, MIB, DMS_READ | DMS_WRITE, 0), 0);
    EXPECT(dms_map(space, 0, memory, MIB, DMS_READ, 0), -EEXIST);
    EXPECT(dms_unmap(space, 0, 4096, NULL), -EINVAL);
    EXPECT(dms_unmap(space, 0, MIB, &bytes), 0);
    EXPECT(bytes == MIB, 1);
    EXPECT(dms_register(space, memory, MIB), -EOPNOTSUPP);
    EXPECT(dms_unregister(space, memory, MIB), -EOPNOTSUPP);
    EXPECT(dms_window_create(space, 0, MIB, 4096, NULL), -EOPNOTSUPP);
    EXPECT(dms_window_remove(space, 0), -EOPNOTSUPP);
    EXPECT(dms_space_remove(space, &device), 0);
    EXPECT(dms_space_remove(space, &device), -EINVAL);
    dms_space_free(&space);
    dms_space_free(&space);
}

static void windows_of_power(void *memory)
{
    struct dms_host *host = NULL;
    struct dms_space *space = NULL;
    struct dms_device *device = NULL;
    struct dms_window granted;

    EXPECT(dms_host_open(&host, "soft:powernv9", 0), 0);
    EXPECT(dms_space_open(&space, host, "spapr"), 0);
    EXPECT(dms_space_add(space, "0000:01:00.0", &device), 0);
    EXPECT(dms_register(space, memory, MIB), 0);
    /* The kernel chooses the place of the first window, and the library refuses another. */
    EXPECT(dms_window_create(space, 1ull << 59, 1ull << 30, 4096, NULL), -EINVAL);
    EXPECT(dms_window_create(space, 0, 1ull << 30, 4096, &granted), 0);
    EXPECT(granted.first == 0 && granted.page_sizes == 1u << 12, 1);
    EXPECT(dms_map(space, 0, memory, MIB, DMS_READ, 4096), 0);
    EXPECT(dms_unmap(space, 0, MIB, NULL), 0);
    EXPECT(dms_window_remove(space, 0), 0);
    EXPECT(dms_window_remove(space, 0), -ENOENT);
    EXPECT(dms_unregister(space, memory, MIB), 0);
    EXPECT(dms_space_remove(space, &device), 0);
    dms_space_free(&space);
    dms_host_free(&host);
}

int main(void)
{
    struct dms_host *host = NULL;
    struct dms_domain *domain = NULL;
    struct dms_device *device = NULL;
    char small[4];
    size_t size = sizeof(small);
    pthread_t thread;
    void *memory = aligned_alloc(MIB, 2 * MIB);

    if (!memory)
        return 1;
    memset(memory, 0, 2 * MIB);
    hosts(&host);
    domains(host, &domain);
    sections(domain, memory);
    EXPECT(dms_domain_add(domain, NULL, &device), -EINVAL);
    EXPECT(dms_domain_add(domain, "0000:00:1e.0", &device), -ENODEV);
    EXPECT(device == NULL, 1);
    EXPECT(dms_domain_remove(domain, &device), -EINVAL);
    EXPECT(dms_domain_windows(domain, 0, NULL, &size), -ENOENT);
    size = sizeof(small);
    EXPECT(dms_domain_state(domain, small, &size), -EMSGSIZE);
    EXPECT(size > sizeof(small), 1);
    EXPECT(dms_domain_report(domain, NULL, NULL), -EINVAL);
    EXPECT(dms_track_dirty(domain, NULL, NULL), -EINVAL);
    EXPECT(dms_device_fd(NULL, NULL), -EINVAL);
    EXPECT(pthread_create(&thread, NULL, another_thread, domain), 0);
    EXPECT(pthread_join(thread, NULL), 0);
    entries(host, memory);
    dms_domain_free(&domain);
    spaces(host, memory);
    dms_host_free(&host);
    windows_of_power(memory);
    EXPECT(strcmp(dms_version(), "0.1.0"), 0);
    free(memory);
    puts("all answered");
    return 0;
}
