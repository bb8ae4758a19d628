/* The VM's end of its balloon (virtio/balloon.c): what the guest gives is given back to the pool, and the host is told. */
#include "vmm/clock.h"
#include "vmm/vm.h"
#include <errno.h>
#include <string.h>

_Static_assert(MAILBOX_NUMBERS == VIRTIO_BALLOON_NUMBERS, "the mailbox has a place for each");

/* Freeing a MiB takes up to a millisecond, and guests report more than a hundred at once: faults are served in between. */
#define STEP  (2 * MiB) /* aligned */
#define SHORT (64 * KiB)

static int give(void *ctx, gpa_t at, uint64_t bytes)
{
	struct vm *vm = ctx;
	if (!machine_bank_of(&vm->config.machine, at, bytes))
		return -EFAULT;
	int rc = 0;
	for (uint64_t n; !rc && bytes; at.v += n, bytes -= n) {
		n = STEP - at.v % STEP < bytes ? STEP - at.v % STEP : bytes;
		rc = memory_give(&vm->memory, gpa_gfn(at), n >> PAGE_SHIFT);
		if (n >= SHORT)
			vm_serve_faults(vm);
	}
	if (rc)
		vm_end(vm, END_HOST_ERROR, "giving back left a page without its mapping: %s%s",
		       strerror(-rc), rc == -ENOMEM ? " (raise vm.max_map_count)" : "");
	return 0;
}

static void news(void *ctx, const struct virtio_balloon_stats *now)
{
	struct vm *vm = ctx;
	struct mailbox_balloon *b = &vm->links.mailbox->balloon;
	bool tell =
		b->driver != now->driver || b->target != now->target || b->actual != now->actual;
	b->reports = now->reports;
	b->target = now->target;
	b->actual = now->actual;
	b->driver = now->driver;
	b->inflated = now->inflated;
	b->deflated = now->deflated;
	b->reported = now->reported;
	b->refused = now->refused;
	for (unsigned i = 0; i < MAILBOX_NUMBERS; i++)
		b->number[i] = now->number[i];
	b->known = now->known;
	if (b->times != now->times)
		b->numbers_ns = clock_ns();
	b->times = now->times;
	if (tell)
		vm_tell_host(vm);
}

int balloon_create(struct vm *vm, const struct virtio_env *env, struct virtio_dev **out)
{
	const struct virtio_balloon_config c = {.give = give, .news = news, .ctx = vm};
	return virtio_balloon_create(out, env, &c);
}

void balloon_obey(struct vm *vm)
{
	virtio_balloon_resize(vm->balloon, vm->links.mailbox->balloon_wanted);
}

void balloon_tell(struct vm *vm)
{
	struct virtio_balloon_stats now;
	virtio_balloon_stats(vm->balloon, &now);
	vm->links.mailbox->balloon_wanted = now.target;
	news(vm, &now);
}
