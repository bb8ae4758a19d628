/* Eventfds and timerfds, non-blocking: ringing one, and taking what it counted. */
#ifndef VMM_EVENT_H
#define VMM_EVENT_H

#include <stdint.h>
#include <unistd.h>

/* Fails only where the counter is full, and a full counter rings too. */
static inline void event_ring(int fd)
{
	uint64_t one = 1;
	ssize_t n = write(fd, &one, sizeof one);
	(void)n;
}

/* What rang is found out otherwise (orders, expiry), so the count is dropped. */
static inline void event_drain(int fd)
{
	uint64_t n;
	ssize_t got = read(fd, &n, sizeof n);
	(void)got;
}

#endif
