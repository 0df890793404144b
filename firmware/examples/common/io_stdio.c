/* The example's files on a workstation. */
#include "io.h"

#include <stdio.h>
#include <stdlib.h>

static FILE *input_file, *output_file;

static FILE *open_file(const char *name, const char *mode)
{
    FILE *file = fopen(name, mode);
    if (file == NULL) {
        perror(name);
        exit(2);
    }
    return file;
}

void io_open(const char *input, const char *output)
{
    input_file = open_file(input, "rb");
    output_file = open_file(output, "wb");
}

size_t io_read(void *to, size_t bytes)
{
    return fread(to, 1, bytes, input_file);
}

void io_write(const void *from, size_t bytes)
{
    if (fwrite(from, 1, bytes, output_file) != bytes) {
        io_exit(2);
    }
}

void io_exit(int status)
{
    if (output_file != NULL && fclose(output_file) != 0) {
        perror("output");
        status = 2;
    }
    exit(status);
}
