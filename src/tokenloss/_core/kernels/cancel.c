#include "cancel.h"

#include "platform.h"

#define POLL_SECONDS 0.05

int tl_canceled(tl_cancel *cancel) {
    if (!tl_flag_get(cancel->stopped) && cancel->poll) {
        double now = tl_seconds(); /* by a clock that may be set back, which must not stop the polling */
        if (now - cancel->last_poll > POLL_SECONDS || now < cancel->last_poll) {
            cancel->last_poll = now;
            if (cancel->poll(cancel->argument))
                tl_flag_set(cancel->stopped);
        }
    }
    return tl_flag_get(cancel->stopped);
}
