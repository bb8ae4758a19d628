/* Devices that stand still, and go on in two processes. */
#include "virtio_fake.h"
#include <criterion/criterion.h>
#include <linux/virtio_mmio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define ALL     UINT64_MAX
#define SECTORS 4096u
#define HEADERS 0x80000u  /* a page of headers and one of status bytes */
#define DATA    0x100000u /* READ bytes each */
#define READ    16384u
#define READS   30u

static void disk(struct drv *t, bool read_only)
{
	drv_init(t);
	struct virtio_blk_config c = {
		.fd = temp_file(SECTORS * 512, false), .read_only = read_only, .serial = "pause"};
	cr_assert_eq(virtio_blk_create(&t->dev, &t->env, &c), 0);
	drv_start(t, ALL, 1);
}

/* Read number i made available. */
static void add_read(struct drv *t, unsigned i)
{
	uint64_t header = HEADERS + i * 16, data = DATA + i * READ, status = HEADERS + 0x1000 + i;
	uint8_t none = 0xee;
	drv_blk_header(t, header, 0, i * (READ / 512));
	fake_put(&t->mem, status, &none, 1);
	struct seg s[3] = {{header, 16, false}, {data, READ, true}, {status, 1, true}};
	drv_add(t, 0, s, 3, 0);
}

/* Has read i been done, and rightly? */
static bool was_read(struct drv *t, unsigned i)
{
	static uint8_t got[READ];
	uint8_t status;
	fake_get(&t->mem, HEADERS + 0x1000 + i, &status, 1);
	fake_get(&t->mem, DATA + i * READ, got, READ);
	for (unsigned at = 0; at < READ; at++)
		if (got[at] != fill_byte((uint64_t)i * READ + at))
			return false;
	return status == 0;
}

static unsigned count_used(struct drv *t)
{
	unsigned n = 0;
	while (drv_used(t, 0, NULL, NULL))
		n++;
	return n;
}

/* As to a KVM that knows of no line that is high: the fake minds being told of what it knows. */
static void resume(struct drv *t)
{
	atomic_store(&t->irq, false);
	virtio_resume(t->dev);
}

Test(virtio_pause, io_in_flight_is_done_and_told_first)
{
	struct drv t;
	disk(&t, true);
	for (unsigned round = 0; round < 20; round++) {
		for (unsigned i = 0; i < READS; i++)
			add_read(&t, i);
		drv_kick(&t, 0);
		loop_step(t.loop, NULL, 0); /* submits some or all */
		virtio_pause(t.dev);
		cr_assert_eq(atomic_load(&t.mem.pinned), 0, "I/O is in flight still");
		unsigned n = count_used(&t);
		for (unsigned i = 0; i < n; i++)
			cr_assert(was_read(&t, i), "read %u of %u", i, n);
		/* Nothing happens until it goes on. */
		uint64_t maps = t.mem.maps;
		drv_kick(&t, 0);
		for (int i = 0; i < 5; i++)
			loop_step(t.loop, NULL, 1);
		cr_assert_eq(count_used(&t), 0);
		cr_assert_eq(t.mem.maps, maps, "a paused device looks at guest memory");
		resume(&t);
		for (int tries = 0; n < READS && tries < 1000; tries++) {
			loop_step(t.loop, NULL, 10);
			n += count_used(&t);
		}
		cr_assert_eq(n, READS);
		for (unsigned i = 0; i < READS; i++)
			cr_assert(was_read(&t, i));
		drv_wr(&t, VIRTIO_MMIO_INTERRUPT_ACK, 1);
	}
	drv_fini(&t);
}

Test(virtio_pause, what_came_meanwhile_is_found)
{
	struct drv t;
	disk(&t, true);
	virtio_pause(t.dev);
	virtio_pause(t.dev);
	add_read(&t, 0); /* its notification was lost with the pause: resume looks by itself */
	resume(&t);
	drv_wait(&t, 0, NULL, NULL);
	cr_assert(was_read(&t, 0));
	/* A line that was high is raised again, for a KVM that has forgotten it. */
	cr_assert(atomic_load(&t.irq));
	virtio_pause(t.dev);
	resume(&t);
	cr_assert(atomic_load(&t.irq));
	drv_wr(&t, VIRTIO_MMIO_INTERRUPT_ACK, 1);
	cr_assert(!atomic_load(&t.irq));
	virtio_pause(t.dev);
	resume(&t);
	cr_assert(!atomic_load(&t.irq));
	/* A reset while paused, and a pause of what is not started. */
	virtio_pause(t.dev);
	add_read(&t, 1);
	drv_reset(&t);
	resume(&t);
	loop_step(t.loop, NULL, 1);
	drv_start(&t, ALL, 1);
	cr_assert_eq(drv_blk(&t, 0, 3, DATA, 512), 0);
	drv_fini(&t);
}

static size_t sink(void *ctx, const char *bytes, size_t n)
{
	char *out = ctx;
	strncat(out, bytes, n);
	return n;
}

Test(virtio_pause, console_both_ways)
{
	struct drv t;
	char out[64] = "", in[8] = "";
	drv_init(&t);
	cr_assert_eq(virtio_console_create(&t.dev, &t.env, sink, out), 0);
	drv_start(&t, ALL, 2);
	struct seg receive = {DATA, 8, true}, send = {DATA + 64, 5, false};
	fake_put(&t.mem, DATA + 64, "hello", 5);
	virtio_pause(t.dev);
	drv_add(&t, 0, &receive, 1, 0);
	drv_add(&t, 1, &send, 1, 0);
	drv_kick(&t, 0);
	drv_kick(&t, 1);
	cr_assert_eq(virtio_console_input(t.dev, "typed", 5), 5);
	for (int i = 0; i < 5; i++)
		loop_step(t.loop, NULL, 1);
	cr_assert(!*out && !drv_used(&t, 0, NULL, NULL) && !drv_used(&t, 1, NULL, NULL));
	resume(&t);
	drv_wait(&t, 0, NULL, NULL);
	drv_wait(&t, 1, NULL, NULL);
	fake_get(&t.mem, DATA, in, 5);
	cr_assert_str_eq(in, "typed");
	cr_assert_str_eq(out, "hello");
	drv_fini(&t);
}

/* All reads from `first` on, until done: what a process with its own loop makes of the device. No assertions, for a
 * forked child. */
static bool goes_on(struct drv *t, unsigned first)
{
	resume(t);
	for (int tries = 0; first < READS && tries < 1000; tries++) {
		if (loop_step(t->loop, NULL, 10))
			return false;
		first += count_used(t);
	}
	for (unsigned i = 0; i < READS; i++)
		if (!was_read(t, i))
			return false;
	add_read(t, 0);
	drv_kick(t, 0);
	for (int tries = 0; tries < 1000; tries++) {
		loop_step(t->loop, NULL, 10);
		if (count_used(t))
			return was_read(t, 0);
	}
	return false;
}

Test(virtio_pause, a_device_goes_on_in_two_processes, .timeout = 60)
{
	for (unsigned round = 0; round < 10; round++) {
		struct drv t;
		int status;
		disk(&t, true);
		for (unsigned i = 0; i < READS; i++)
			add_read(&t, i);
		drv_kick(&t, 0);
		if (round % 2)
			loop_step(t.loop, NULL, 0);
		/* In every second round the notification is posted work, which the child has too. */
		virtio_pause(t.dev);
		unsigned done = count_used(&t);
		pid_t child = fork();
		if (!child) {
			alarm(30);
			loop_forget(t.loop);
			if (loop_renew(t.loop, 16))
				_exit(2);
			_exit(goes_on(&t, done) ? 0 : 3);
		}
		cr_assert(goes_on(&t, done), "the parent");
		cr_assert_eq(waitpid(child, &status, 0), child);
		cr_assert_eq(status, 0, "the child: 0x%x", status);
		drv_fini(&t);
	}
}
