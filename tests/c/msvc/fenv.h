typedef struct {
    unsigned long control, status;
} fenv_t;
#define FE_DFL_ENV ((const fenv_t *)1)
int fegetenv(fenv_t *at);
int fesetenv(const fenv_t *at);
