/*
 * work=pmem: persistent memory (virtio 1.2, section 5.19): loads and stores, and a flush by polling.
 */
#include "guest/bare/console.h"
#include "guest/bare/end.h"
#include "guest/bare/region.h"
#include "guest/bare/team.h"
#include "guest/bare/vio.h"
#include "guest/bare/work.h"

enum { REQUEST_FLUSH = 0 };

#define CONFIG_START 0
#define CONFIG_SIZE  8

static struct {
	struct vio_queue queue;
	uint32_t type, ret;
	const struct stage *stage;
	struct region order; /* for its permutation of pages only */
	unsigned number;
	uint64_t start, pages; /* of the device */
	uint64_t from, count;  /* pages worked on */
	uint64_t hash;
} pmem;

static void flush(uint64_t times)
{
	struct team_time t = team_start();
	for (uint64_t i = 0; i < times; i++) {
		const struct vio_piece piece[2] = {{&pmem.type, sizeof pmem.type, false},
						   {&pmem.ret, sizeof pmem.ret, true}};
		uint32_t id, len;
		pmem.type = REQUEST_FLUSH;
		pmem.ret = UINT32_MAX;
		vio_begin(&pmem.queue);
		vio_add(&pmem.queue, piece, 2);
		vio_kick(&pmem.queue);
		if (!vio_wait(&pmem.queue, &id, &len))
			end_fail("pmem %u: no answer to a flush", pmem.number);
		if (len != sizeof pmem.ret || pmem.ret != 0)
			end_fail("pmem %u: flush refused, ret=%u", pmem.number, pmem.ret);
	}
	team_stop(&t);
	console_say("pmem %u flush part=%u times=%lu us=%lu", pmem.number, t.part, times,
		    team_us(t.cycles));
}

/* A vCPU's part of the pages, in the stage's order: written, or held against what they must be, or only
 * read, which comes to a hash that doesn't depend on the order. */
static void slice(void *arg, unsigned cpu, unsigned cpus)
{
	enum words_mode mode = *(const enum words_mode *)arg;
	uint64_t i, to, hash = 0;
	team_slice(pmem.count, cpu, cpus, &i, &to);
	for (; i < to; i++) {
		uint64_t page = pmem.from + region_order(&pmem.order, i);
		volatile uint64_t *w = region_word_at(pmem.start + page * REGION_PAGE);
		for (uint64_t j = 0; j < pmem.stage->words; j++) {
			uint64_t number = page * REGION_PAGE_WORDS + j;
			uint64_t word = region_word(pmem.stage->seed, number);
			if (mode == MODE_WRITE)
				w[j] = word;
			else if (mode == MODE_READ)
				hash += region_word(w[j], number);
			else if (w[j] != word)
				end_fail("pmem %u: page %lu byte %lu: expected 0x%016lx, found "
					 "0x%016lx",
					 pmem.number, page, j * 8, word, w[j]);
		}
	}
	__atomic_fetch_add(&pmem.hash, hash, __ATOMIC_RELAXED);
}

static void each_page(enum words_mode mode, const char *what)
{
	pmem.hash = 0;
	struct team_time t = team_do(slice, &mode, pmem.stage->smp);
	console_say("pmem %u %s part=%u pages=%lu us=%lu hash=0x%016lx", pmem.number, what, t.part,
		    pmem.count, team_us(t.cycles), pmem.hash);
}

static void open_pmem(const struct stage *s, uint64_t regs)
{
	uint64_t features;
	if (regs == 0)
		end_fail("pmem %u: no such device", pmem.number);
	const char *wrong = vio_open(regs, 0, &features);
	if (wrong == NULL)
		wrong = vio_queue_open(&pmem.queue, regs, 0);
	if (wrong != NULL)
		end_fail("pmem %u: %s", pmem.number, wrong);
	vio_go(regs);
	pmem.start = vio_config64(regs, CONFIG_START);
	pmem.pages = vio_config64(regs, CONFIG_SIZE) / REGION_PAGE;
	console_say("pmem %u start=0x%lx pages=%lu", pmem.number, pmem.start, pmem.pages);
	pmem.from = s->from;
	pmem.count = s->pages;
	if (pmem.count == WORDS_UNSET)
		pmem.count = pmem.from < pmem.pages ? pmem.pages - pmem.from : 0;
	if (pmem.count == 0 || pmem.from > pmem.pages || pmem.count > pmem.pages - pmem.from)
		end_fail("pmem %u: has %lu pages, not %lu from %lu on", pmem.number, pmem.pages,
			 pmem.count, pmem.from);
	if (s->words == 0 || s->words > REGION_PAGE_WORDS)
		end_fail("pmem: words= is 1 to %u", REGION_PAGE_WORDS);
	region_order_make(&pmem.order, s, pmem.count);
}

bool pmem_has(uint64_t at, uint64_t bytes)
{
	uint64_t regs;
	for (unsigned i = 0; (regs = vio_find(VIO_ID_PMEM, i)) != 0; i++) {
		uint64_t from = vio_config64(regs, CONFIG_START);
		uint64_t len = vio_config64(regs, CONFIG_SIZE);
		if (at >= from && at - from < len && bytes <= len - (at - from))
			return true;
	}
	return false;
}

void pmem_run(const struct stage *s)
{
	pmem.stage = s;
	pmem.number = (unsigned)s->pmem;
	uint64_t regs = vio_find(VIO_ID_PMEM, pmem.number);
	open_pmem(s, regs);
	switch (s->mode) {
	case MODE_READ:
		each_page(MODE_READ, "read");
		break;
	case MODE_WRITE:
		each_page(MODE_WRITE, "write");
		break;
	case MODE_CHECK:
		each_page(MODE_CHECK, "check");
		break;
	case MODE_FLUSH:
		flush(s->passes != WORDS_UNSET ? s->passes : 1);
		break;
	case MODE_RW:
		each_page(MODE_WRITE, "write");
		flush(1);
		each_page(MODE_CHECK, "check");
		break;
	case MODE_INFO:
		break;
	default:
		end_fail("pmem: mode= is rw, read, write, check, flush or info");
	}
	vio_close(regs);
}
