/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * A guest's memory for a device: committed, put in force when the device is plugged, grown, and taken back.
 *
 *   cc guest.c $(pkg-config --cflags --libs libdmaspace) -o guest && ./guest soft:vtd 0000:00:03.0
 *
 * The first argument is a host, "this" for this one; the second is a device of it.
 */
#include <dmaspace.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIB (1ull << 20)

static int failed(const char *call, int result)
{
    fprintf(stderr, "%s: %d: %s\n", call, result, dms_error());
    return 1;
}

static void dirty(void *opaque, void *address, uint64_t len)
{
    (void)address;
    *(uint64_t *)opaque += len;
}

/* Commits RAM at iova. */
static int add_ram(struct dms_domain *domain, uint64_t iova, void *memory, uint64_t len, uint64_t *pending)
{
    struct dms_section ram = {
        .size = sizeof(ram), .kind = DMS_RAM, .name = "ram", .iova = iova, .len = len,
        .address = memory, .access = DMS_READ | DMS_WRITE, .fd = -1,
    };
    struct dms_update *update;
    int result = dms_update_new(&update);

    if (result == 0)
        result = dms_update_add(update, &ram);
    if (result == 0)
        result = dms_commit(domain, &update, pending);
    dms_update_free(&update);
    return result;
}

int main(int argc, char **argv)
{
    const char *name = argc > 1 && strcmp(argv[1], "this") != 0 ? argv[1] : NULL;
    const char *address = argc > 2 ? argv[2] : "0000:00:03.0";
    struct dms_host *host = NULL;
    struct dms_domain *domain = NULL;
    struct dms_device *device = NULL;
    struct dms_update *update = NULL;
    struct dms_window windows[8];
    uint64_t pending = 0, written = 0;
    size_t count = 8, size = 0;
    uint32_t access = 0;
    void *behind = NULL;
    char *report;
    int result;
    char *memory = aligned_alloc(MIB, 2 * MIB);

    if (!memory)
        return 1;
    memset(memory, 0, 2 * MIB);

    if ((result = dms_host_open(&host, name, 0)) < 0)
        return failed("dms_host_open", result);
    if ((result = dms_domain_new(&domain, host, NULL, DMS_FRONT_END_PLAIN)) < 0)
        return failed("dms_domain_new", result);
    dms_host_free(&host);

    /* Without a device the memory is pending. */
    if ((result = add_ram(domain, 0, memory, MIB, &pending)) < 0)
        return failed("dms_commit", result);
    printf("%llu pending\n", (unsigned long long)pending);

    if ((result = dms_domain_add(domain, address, &device)) < 0)
        return failed("dms_domain_add", result);
    if ((result = dms_domain_windows(domain, 0, windows, &count)) < 0)
        return failed("dms_domain_windows", result);
    printf("%zu windows, the first from %#llx\n", count, (unsigned long long)windows[0].first);
    if ((result = dms_translate(domain, 0x1000, &behind, &access)) < 0)
        return failed("dms_translate", result);
    printf("0x1000 is byte %#tx of the memory, access %u\n", (char *)behind - memory, access);

    /* Memory is plugged while the device works. */
    if ((result = add_ram(domain, 16 * MIB, memory + MIB, MIB, &pending)) < 0)
        return failed("dms_commit", result);
    if ((result = dms_domain_report(domain, NULL, &size)) == 0 || !(report = malloc(size)))
        return 1;
    if ((result = dms_domain_report(domain, report, &size)) < 0)
        return failed("dms_domain_report", result);
    fputs(report, stdout);
    free(report);

    if ((result = dms_track_dirty(domain, dirty, &written)) < 0)
        return failed("dms_track_dirty", result);
    if ((result = dms_sync_dirty(domain)) < 0)
        return failed("dms_sync_dirty", result);
    dms_stop_tracking(domain);
    printf("%llu bytes may be dirty\n", (unsigned long long)written);

    /* All memory leaves, and then the device. */
    if ((result = dms_update_new(&update)) < 0 || (result = dms_update_remove(update, 0, 64 * MIB)) < 0 ||
        (result = dms_commit(domain, &update, NULL)) < 0)
        return failed("dms_commit", result);
    result = dms_translate(domain, 0x1000, NULL, NULL);
    printf("translate: %d: %s\n", result, dms_error());
    if ((result = dms_domain_remove(domain, &device)) < 0)
        return failed("dms_domain_remove", result);
    dms_domain_free(&domain);
    free(memory);
    puts("done");
    return 0;
}
