/* What harness.c shares with the assembly of each architecture. */
#ifndef ES_HARNESS_H
#define ES_HARNESS_H

/* Bytes of stack for the harness itself, in its own memory. */
#define ES_HARNESS_STACK_BYTES 512

#endif
