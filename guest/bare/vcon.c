#include "guest/bare/vcon.h"
#include "guest/bare/idle.h"
#include <string.h>

static void offer(struct vcon *v)
{
	vio_begin(&v->receive);
	vio_add(&v->receive, &(struct vio_piece){v->in, VCON_IN_MAX, true}, 1);
	vio_kick(&v->receive);
}

bool vcon_open(struct vcon *v, unsigned k, bool resting)
{
	uint64_t features;
	v->regs = vio_find(VIO_ID_CONSOLE, k);
	if (v->regs == 0 || vio_open(v->regs, 0, &features) != NULL ||
	    vio_queue_open(&v->receive, v->regs, 0) != NULL ||
	    vio_queue_open(&v->transmit, v->regs, 1) != NULL)
		return false;
	v->resting = resting;
	vio_go(v->regs);
	offer(v);
	return true;
}

/* Interrupts are on only while vCPU 0 rests: at other times they would keep the others from it. */
static void rest(struct vcon *v, struct vio_queue *q)
{
	vio_interrupts(q, true);
	if (!vio_pending(q))
		idle_wait();
	vio_interrupts(q, false);
	vio_acknowledge(v->regs);
}

void vcon_rest(struct vcon *v)
{
	rest(v, &v->receive);
}

void vcon_drain(struct vcon *v)
{
	uint32_t id, len;
	if (v->sending && v->resting) {
		while (!vio_poll(&v->transmit, &id, &len))
			rest(v, &v->transmit);
	} else if (v->sending) {
		vio_wait(&v->transmit, &id, &len);
	}
	v->sending = false;
}

void vcon_write(struct vcon *v, const char *bytes, size_t n)
{
	while (n > 0) {
		size_t now = n < VCON_OUT_MAX ? n : VCON_OUT_MAX;
		vcon_drain(v);
		memcpy(v->out, bytes, now);
		vio_begin(&v->transmit);
		vio_add(&v->transmit, &(struct vio_piece){v->out, (uint32_t)now, false}, 1);
		vio_kick(&v->transmit);
		v->sending = true;
		bytes += now;
		n -= now;
	}
}

size_t vcon_read(struct vcon *v, char *out, size_t size)
{
	uint32_t id;
	size_t n = 0;
	if (v->in_at == v->in_n) {
		if (!vio_poll(&v->receive, &id, &v->in_n))
			return 0;
		if (v->in_n > VCON_IN_MAX)
			v->in_n = VCON_IN_MAX;
		v->in_at = 0;
	}
	while (n < size && v->in_at < v->in_n)
		out[n++] = v->in[v->in_at++];
	if (v->in_at == v->in_n) {
		v->in_at = v->in_n = 0;
		offer(v);
	}
	return n;
}
