#include <stddef.h>
void *memcpy(void *to, const void *from, size_t count);
void *memset(void *at, int value, size_t count);
