/* Cancellation of a long call, by a signal handler or by another of its threads. */
#pragma once

#define TL_CANCEL_INTERVAL 65536 /* classes between two checks */

/* All threads of a call share the flag. `poll`, NULL or called every 50 ms at most, stops them by returning 1. */
typedef struct {
    int (*poll)(void *);
    void *argument;
    volatile int *stopped;
    double last_poll;
} tl_cancel;

/* Whether the call was canceled: results are not to be used then. */
int tl_canceled(tl_cancel *cancel);
