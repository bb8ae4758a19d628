#include "guest/bare/vcon.h"
#include "guest/bare/vio.h"
#include <string.h>

#define OUT_MAX 512
#define IN_MAX  256

static struct {
	struct vio_queue receive, transmit;
	char out[OUT_MAX], in[IN_MAX];
	bool sending; /* out is the device's */
	uint32_t in_at,
		in_n; /* what isn't read yet of in, which is the device's when all is read */
} vcon;

static void offer(void)
{
	vio_begin(&vcon.receive);
	vio_add(&vcon.receive, &(struct vio_piece){vcon.in, IN_MAX, true}, 1);
	vio_kick(&vcon.receive);
}

bool vcon_open(void)
{
	uint64_t features, regs = vio_find(VIO_ID_CONSOLE, 0);
	if (regs == 0 || vio_open(regs, 0, &features) != NULL ||
	    vio_queue_open(&vcon.receive, regs, 0) != NULL ||
	    vio_queue_open(&vcon.transmit, regs, 1) != NULL)
		return false;
	vio_go(regs);
	offer();
	return true;
}

void vcon_drain(void)
{
	uint32_t id, len;
	if (vcon.sending)
		vio_wait(&vcon.transmit, &id, &len);
	vcon.sending = false;
}

void vcon_write(const char *bytes, size_t n)
{
	while (n > 0) {
		size_t now = n < OUT_MAX ? n : OUT_MAX;
		vcon_drain();
		memcpy(vcon.out, bytes, now);
		vio_begin(&vcon.transmit);
		vio_add(&vcon.transmit, &(struct vio_piece){vcon.out, (uint32_t)now, false}, 1);
		vio_kick(&vcon.transmit);
		vcon.sending = true;
		bytes += now;
		n -= now;
	}
}

size_t vcon_read(char *out, size_t size)
{
	uint32_t id;
	size_t n = 0;
	if (vcon.in_at == vcon.in_n) {
		if (!vio_poll(&vcon.receive, &id, &vcon.in_n))
			return 0;
		if (vcon.in_n > IN_MAX)
			vcon.in_n = IN_MAX;
		vcon.in_at = 0;
	}
	while (n < size && vcon.in_at < vcon.in_n)
		out[n++] = vcon.in[vcon.in_at++];
	if (vcon.in_at == vcon.in_n) {
		vcon.in_at = vcon.in_n = 0;
		offer();
	}
	return n;
}
