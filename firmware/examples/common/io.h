/* What the example application needs of its platform: io_stdio.c on a workstation, io_semihosting.c on a core. */
#ifndef IO_H
#define IO_H

#include <stddef.h>

/* Opens both files or ends the program. */
void io_open(const char *input, const char *output);

/* Returns how many of `bytes` bytes were read; fewer only at the end of the file. */
size_t io_read(void *to, size_t bytes);

/* Writes all bytes or ends the program. */
void io_write(const void *from, size_t bytes);

/* Ends the program with an exit status, 0 for success. */
void io_exit(int status);

#endif
