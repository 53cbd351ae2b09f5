#include <stddef.h>
int memcmp(const void *first, const void *second, size_t n);
void *memcpy(void *to, const void *from, size_t count);
void *memset(void *at, int value, size_t count);
