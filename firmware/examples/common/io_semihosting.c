/* The example's files on an Arm Cortex-M, through semihosting: QEMU with -semihosting, or a debug probe, opens them
 * on the workstation. Arm, "Semihosting for AArch32 and AArch64". */
#include "io.h"

#include <stdint.h>

enum { SYS_OPEN = 0x01, SYS_CLOSE = 0x02, SYS_WRITE0 = 0x04, SYS_WRITE = 0x05, SYS_READ = 0x06, SYS_EXIT_EXTENDED = 0x20 };
enum { MODE_READ_BINARY = 1, MODE_WRITE_BINARY = 5, STOPPED_APPLICATION_EXIT = 0x20026 };

static uintptr_t input_handle, output_handle;

/* One read from the workstation serves many calls of io_read. */
static uint8_t buffer[256];
static size_t buffered, used;

static uintptr_t call(uintptr_t operation, const void *arguments)
{
    register uintptr_t r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = arguments;
    __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

static uintptr_t open_file(const char *name, uintptr_t mode)
{
    uintptr_t arguments[3] = {(uintptr_t)name, mode, 0};
    while (name[arguments[2]] != '\0') {
        arguments[2]++;
    }
    const uintptr_t handle = call(SYS_OPEN, arguments);
    if (handle == UINTPTR_MAX) {
        (void)call(SYS_WRITE0, name);
        (void)call(SYS_WRITE0, ": cannot be opened\n");
        io_exit(2);
    }
    return handle;
}

void io_open(const char *input, const char *output)
{
    input_handle = open_file(input, MODE_READ_BINARY);
    output_handle = open_file(output, MODE_WRITE_BINARY);
}

size_t io_read(void *to, size_t bytes)
{
    uint8_t *out = (uint8_t *)to;
    size_t done = 0;
    while (done < bytes) {
        if (used == buffered) {
            const uintptr_t arguments[3] = {input_handle, (uintptr_t)buffer, sizeof buffer};
            buffered = sizeof buffer - call(SYS_READ, arguments); /* the call returns what it did not read */
            used = 0;
            if (buffered == 0) {
                break;
            }
        }
        out[done++] = buffer[used++];
    }
    return done;
}

void io_write(const void *from, size_t bytes)
{
    const uintptr_t arguments[3] = {output_handle, (uintptr_t)from, bytes};
    if (call(SYS_WRITE, arguments) != 0) {
        io_exit(2);
    }
}

void io_exit(int status)
{
    const uintptr_t arguments[2] = {STOPPED_APPLICATION_EXIT, (uintptr_t)status};
    if (output_handle != 0) {
        (void)call(SYS_CLOSE, &output_handle);
    }
    (void)call(SYS_EXIT_EXTENDED, arguments);
    for (;;) {
    }
}
