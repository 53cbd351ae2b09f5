#define INFINITY __builtin_huge_valf()
#define NAN __builtin_nanf("")
