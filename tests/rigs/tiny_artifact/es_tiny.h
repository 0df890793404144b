/* Hand-written artifact in the shape the C back end generates: input 8x8x1 -> 3x3 convolution, 4 channels -> 3 sums. */
#ifndef ES_TINY_H
#define ES_TINY_H
#include <stdint.h>
#define ES_TINY_ARENA_BYTES 211
#ifndef ES_TINY_ARENA_CAPACITY
#define ES_TINY_ARENA_CAPACITY ES_TINY_ARENA_BYTES
#endif
int8_t *es_tiny_input(void);
const int8_t *es_tiny_output(void);
void es_tiny_run(void);
#endif
