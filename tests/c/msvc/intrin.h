void __cpuidex(int registers[4], int leaf, int subleaf);
unsigned long long _xgetbv(unsigned which);
long long _InterlockedCompareExchange64(long long volatile *at, long long value, long long expected);
