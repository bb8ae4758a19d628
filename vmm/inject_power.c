/*
 * A power cut, as disks with a volatile cache see it (virtio/undo.h): what the guest wrote and did not flush is lost, or not,
 * sector by sector. The same seed, with the same writes before, takes the same.
 */
#include "vmm/inject.h"
#include "vmm/vm.h"
#include <stdio.h>
#include <string.h>

struct draw {
	uint64_t seed;
	unsigned disk;
};

static uint64_t draw(void *ctx, uint64_t sector, unsigned what, uint64_t below)
{
	const struct draw *d = ctx;
	return chance_below(d->seed, d->disk, sector, what, below);
}

void inject_power_cut(struct vm *vm, const struct inject *f, struct inject_loss *loss,
		      char words[INJECT_WORDS])
{
	struct draw d = {.seed = f->seed};
	const struct virtio_blk_cut how = {
		.lose = f->lose == INJECT_LOSE_NONE     ? VIRTIO_BLK_LOSE_NONE
			: f->lose == INJECT_LOSE_RANDOM ? VIRTIO_BLK_LOSE_RANDOM
							: VIRTIO_BLK_LOSE_ALL,
		.draw = draw,
		.ctx = &d};
	uint64_t evicted = 0;
	char why[64] = "";
	*loss = (struct inject_loss){.disks = 0};
	for (unsigned i = 0; i < vm->config.disks; i++) {
		struct virtio_blk_loss one;
		if (!vm->config.disk[i].is_volatile)
			continue;
		d.disk = i;
		virtio_blk_cut(vm->disk[i], &how, &one);
		loss->disks++;
		loss->writes += one.writes;
		loss->bytes += one.bytes;
		loss->lost_writes += one.lost_writes;
		loss->lost_bytes += one.lost_bytes;
		evicted += one.evicted;
		if (one.error)
			snprintf(why, sizeof why, "; disk%u kept some that were to be lost: %s", i,
				 strerror(-one.error));
	}
	if (!loss->disks)
		return;
	int n = snprintf(words, INJECT_WORDS,
			 "lost %llu of %llu KiB that were not flushed, of %llu of %llu writes%s",
			 (unsigned long long)(loss->lost_bytes + KiB - 1) / KiB,
			 (unsigned long long)(loss->bytes + KiB - 1) / KiB,
			 (unsigned long long)loss->lost_writes, (unsigned long long)loss->writes,
			 why);
	if (evicted && n > 0 && n < INJECT_WORDS)
		snprintf(words + n, INJECT_WORDS - (size_t)n, "; the cache was too small for %llu",
			 (unsigned long long)evicted);
}
