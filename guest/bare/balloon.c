#include "guest/bare/balloon.h"
#include "guest/bare/region.h"
#include "guest/bare/vio.h"
#include <stdbool.h>

#define F_REPORTING   (UINT64_C(1) << 5)
#define CONFIG_TARGET 0
#define CONFIG_ACTUAL 4
#define REPORTING     4 /* its queue */
#define PFNS          256
#define PIECE_PAGES   512

static struct {
	struct vio_queue inflate, deflate, reporting;
	uint64_t regs;
	uint32_t actual;
	uint32_t pfn[PFNS];
} balloon;

static const char *open_balloon(void)
{
	uint64_t regs = balloon.regs ? balloon.regs : vio_find(VIO_ID_BALLOON, 0), features;
	if (regs == 0)
		return "no balloon";
	if (balloon.regs != 0)
		return NULL;
	const char *wrong = vio_open(regs, F_REPORTING, &features);
	if (wrong == NULL && (features & F_REPORTING) == 0)
		wrong = "the balloon takes no reports";
	if (wrong == NULL)
		wrong = vio_queue_open(&balloon.inflate, regs, 0);
	if (wrong == NULL)
		wrong = vio_queue_open(&balloon.deflate, regs, 1);
	if (wrong == NULL)
		wrong = vio_queue_open(&balloon.reporting, regs, REPORTING);
	if (wrong != NULL)
		return wrong;
	vio_go(regs);
	balloon.regs = regs;
	return NULL;
}

const char *balloon_sizes(struct balloon_sizes *out)
{
	const char *wrong = open_balloon();
	if (wrong != NULL)
		return wrong;
	out->target = vio_config32(balloon.regs, CONFIG_TARGET);
	out->actual = vio_config32(balloon.regs, CONFIG_ACTUAL);
	return NULL;
}

static const char *send(struct vio_queue *q)
{
	uint32_t id, len;
	vio_kick(q);
	return vio_wait(q, &id, &len) ? NULL : "no answer from the balloon";
}

static const char *name_pages(struct vio_queue *q, uint64_t base, uint64_t pages)
{
	const char *wrong = NULL;
	for (uint64_t n; pages > 0 && wrong == NULL; pages -= n) {
		n = pages < PFNS ? pages : PFNS;
		for (uint64_t i = 0; i < n; i++)
			balloon.pfn[i] = (uint32_t)(base / REGION_PAGE + pages - 1 - i);
		const struct vio_piece piece = {balloon.pfn, (uint32_t)(n * 4), false};
		vio_begin(q);
		vio_add(q, &piece, 1);
		wrong = send(q);
	}
	return wrong;
}

const char *balloon_inflate(uint64_t base, uint64_t pages)
{
	const char *wrong = open_balloon();
	if (wrong == NULL)
		wrong = name_pages(&balloon.inflate, base, pages);
	if (wrong == NULL) {
		balloon.actual += (uint32_t)pages;
		vio_config_write32(balloon.regs, CONFIG_ACTUAL, balloon.actual);
	}
	return wrong;
}

const char *balloon_deflate(uint64_t base, uint64_t pages)
{
	const char *wrong = open_balloon();
	if (wrong == NULL)
		wrong = name_pages(&balloon.deflate, base, pages);
	if (wrong == NULL) {
		balloon.actual -= (uint32_t)pages;
		vio_config_write32(balloon.regs, CONFIG_ACTUAL, balloon.actual);
	}
	return wrong;
}

const char *balloon_report(uint64_t base, uint64_t pages)
{
	const char *wrong = open_balloon();
	while (pages > 0 && wrong == NULL) {
		struct vio_piece piece[VIO_QUEUE_MAX];
		unsigned n = 0;
		for (; n < VIO_QUEUE_MAX && pages > 0; n++) {
			uint64_t some = pages < PIECE_PAGES ? pages : PIECE_PAGES;
			piece[n] = (struct vio_piece){(const void *)(uintptr_t)base,
						      (uint32_t)(some * REGION_PAGE), true};
			base += some * REGION_PAGE;
			pages -= some;
		}
		vio_begin(&balloon.reporting);
		vio_add(&balloon.reporting, piece, n);
		wrong = send(&balloon.reporting);
	}
	return wrong;
}
