/*
 * A guest's DMA program: lets QEMU's device edu (1234:11e8) read a page of RAM into its buffer and write the buffer to
 * another page, and compares the two. Prints DATA EQUAL or DATA DIFFER. With an argument, the other page is one at this
 * guest-physical address or above.
 */
#include <fcntl.h>
#include <glob.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define BUFFER 0x40000 /* the address of the device's buffer, for the device */

static void fail(const char *step)
{
    perror(step);
    printf("DATA UNKNOWN: %s failed\n", step);
    exit(2);
}

/* The guest-physical address of a page of this process. */
static uint64_t physical(const void *page)
{
    uint64_t entry = 0;
    int map = open("/proc/self/pagemap", O_RDONLY);

    if (map < 0 || pread(map, &entry, sizeof entry, (uintptr_t)page / 4096 * sizeof entry) != sizeof entry)
        fail("/proc/self/pagemap");
    close(map);
    return (entry & ((1ull << 55) - 1)) * 4096;
}

/* A page of this process at a guest-physical address or above, of memory that the kernel has plenty of. */
static uint8_t *page_above(uint64_t least)
{
    size_t size = 64 << 20, at;
    uint8_t *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

    if (memory == MAP_FAILED)
        fail("mmap of 64 MiB");
    for (at = 0; at < size; at += 4096)
        if (physical(memory + at) >= least)
            return memory + at;
    fail("the search for a page");
    return NULL;
}

static void transfer(volatile uint8_t *bar, uint64_t from, uint64_t to, uint32_t command)
{
    int tries = 600;

    *(volatile uint64_t *)(bar + 0x80) = from;
    *(volatile uint64_t *)(bar + 0x88) = to;
    *(volatile uint64_t *)(bar + 0x90) = 4096;
    *(volatile uint64_t *)(bar + 0x98) = command;
    while ((*(volatile uint64_t *)(bar + 0x98) & 1) && tries-- > 0)
        usleep(50000);
    if (tries <= 0)
        fail("the end of the transfer");
}

/* The folder of the first edu device in sysfs. */
static const char *device(void)
{
    glob_t found;
    size_t i;

    glob("/sys/bus/pci/devices/*", 0, NULL, &found);
    for (i = 0; i < found.gl_pathc; i++) {
        char path[256], id[16] = "";
        int file;

        snprintf(path, sizeof path, "%s/vendor", found.gl_pathv[i]);
        file = open(path, O_RDONLY);
        if (file >= 0 && read(file, id, 6) == 6 && !strcmp(id, "0x1234")) {
            close(file);
            return found.gl_pathv[i];
        }
        close(file);
    }
    fail("the search for the device");
    return NULL;
}

static int opened(const char *folder, const char *name)
{
    char path[256];
    int file;

    snprintf(path, sizeof path, "%s/%s", folder, name);
    file = open(path, O_RDWR | O_SYNC);
    if (file < 0)
        fail(path);
    return file;
}

int main(int count, char **arguments)
{
    const char *folder = device();
    int config = opened(folder, "config"), resource = opened(folder, "resource0");
    uint16_t command;
    volatile uint8_t *bar;
    uint8_t *pages, *other;
    int i;

    if (pread(config, &command, 2, 4) != 2)
        fail("the command register");
    command |= 6; /* memory and bus master */
    if (pwrite(config, &command, 2, 4) != 2)
        fail("the command register");
    bar = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, resource, 0);
    pages = mmap(NULL, 2 * 4096, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE | MAP_LOCKED, -1, 0);
    if (bar == MAP_FAILED || pages == MAP_FAILED)
        fail("mmap");
    other = count > 1 ? page_above(strtoull(arguments[1], NULL, 0)) : pages + 4096;
    for (i = 0; i < 4096; i++)
        pages[i] = i * 7 + i / 256 + 1;
    printf("edu %08x: %#llx -> device -> %#llx\n", *(volatile uint32_t *)bar, (unsigned long long)physical(pages),
           (unsigned long long)physical(other));
    transfer(bar, physical(pages), BUFFER, 1);
    transfer(bar, BUFFER, physical(other), 3);
    puts(memcmp(pages, other, 4096) ? "DATA DIFFER" : "DATA EQUAL");
    return 0;
}
