/*
 * work=rng: bytes from the first entropy device (virtio 1.2, section 5.4).
 */
#include "guest/bare/console.h"
#include "guest/bare/end.h"
#include "guest/bare/team.h"
#include "guest/bare/vio.h"
#include "guest/bare/work.h"
#include <string.h>

static struct vio_queue queue;
static uint8_t buffer[1024];

void rng_run(const struct stage *s)
{
	uint64_t features, got = 0, ones = 0, sum = 0, requests = 0;
	uint64_t regs = vio_find(VIO_ID_RNG, 0);
	const char *wrong;

	if (regs == 0)
		end_fail("rng: no such device");
	wrong = vio_open(regs, 0, &features);
	if (wrong == NULL)
		wrong = vio_queue_open(&queue, regs, 0);
	if (wrong != NULL)
		end_fail("rng: %s", wrong);
	vio_go(regs);
	struct team_time t = team_start();
	while (got < s->bytes) {
		uint32_t want =
			s->bytes - got < sizeof buffer ? (uint32_t)(s->bytes - got) : sizeof buffer;
		uint32_t id, len;
		memset(buffer, 0, want);
		vio_begin(&queue);
		vio_add(&queue, &(struct vio_piece){buffer, want, true}, 1);
		vio_kick(&queue);
		if (!vio_wait(&queue, &id, &len))
			end_fail("rng: no answer");
		if (id != 0 || len == 0 || len > want)
			end_fail("rng: used id %u, %u bytes of %u", id, len, want);
		for (uint32_t i = 0; i < len; i++) {
			for (unsigned b = buffer[i]; b != 0; b &= b - 1)
				ones++;
			sum = sum * 31 + buffer[i];
		}
		got += len;
		requests++;
	}
	team_stop(&t);
	vio_close(regs);
	/* Half of the bits are ones; 64 bytes without that (6 sigma) would be a broken device. */
	if (got >= 64 && (ones * 100 < got * 8 * 36 || ones * 100 > got * 8 * 64))
		end_fail("rng: %lu of %lu bits are ones", ones, got * 8);
	console_say("rng part=%u bytes=%lu requests=%lu ones=%lu sum=0x%lx us=%lu", t.part, got,
		    requests, ones, sum, team_us(t.cycles));
}
