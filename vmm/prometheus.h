/* Statistics in Prometheus's text exposition format 0.0.4. */
#ifndef VMM_PROMETHEUS_H
#define VMM_PROMETHEUS_H

#include <jansson.h>

/* Print a host's statistics (stats.h) on standard output. */
void prometheus_print(const json_t *stats);

#endif
