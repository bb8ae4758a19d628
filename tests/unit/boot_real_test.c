/* The loaders on the images this project makes (make guest): Debian's kernel and the bare guest. */
#include "tests/unit/boot_fake.h"

#include <asm/bootparam.h>
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define BZIMAGE "build/guest/bzImage"
#define VMLINUX "build/guest/vmlinux"
#define INITRD  "build/guest/initrd"
#define BARE    "build/guest/bare.elf"

static struct boot_image image;
static struct boot_memory memory;
static struct boot_plan plan;
static char error[BOOT_ERROR_MAX];

static void open_image(const char *kernel, const char *initrd)
{
	if (access(kernel, R_OK) || (initrd && access(initrd, R_OK)))
		cr_skip_test("build/guest is incomplete: run `make guest`");
	cr_assert_eq(boot_image_open(&image, kernel, initrd, error), 0, "%s", error);
}

static void load(uint64_t bytes)
{
	boot_memory_init(&memory, bytes, 2, 4, "console=ttyS0");
	cr_assert_eq(boot_load(&image, &memory.machine, &memory.gmem, &plan, error), 0, "%s",
		     error);
	for (unsigned i = 0; i < image.segments; i++) {
		const struct boot_segment *s = &image.segment[i];
		cr_assert_eq(memcmp(boot_memory_at(&memory, s->at.v, s->mem_bytes),
				    image.kernel + s->offset, s->bytes),
			     0);
	}
	if (image.initrd) {
		uint64_t at = (memory.machine.mem_bytes - image.initrd_bytes) & ~PAGE_MASK;
		cr_assert_eq(memcmp(boot_memory_at(&memory, at, image.initrd_bytes), image.initrd,
				    image.initrd_bytes),
			     0);
	}
}

Test(boot_real, bzimage)
{
	open_image(BZIMAGE, INITRD);
	cr_assert_eq(image.kind, BOOT_BZIMAGE);
	cr_assert_eq(image.segments, 1);
	load(256 * MiB);
	cr_assert_eq(plan.cpu[0].regs.rip, image.segment[0].at.v + 0x200);
	struct boot_params *p = (void *)boot_memory_at(&memory, BOOT_INFO, sizeof(*p));
	/* The payload is where the header says it is. */
	const uint8_t *payload = boot_memory_at(
		&memory, image.segment[0].at.v + p->hdr.payload_offset, p->hdr.payload_length);
	cr_assert(payload[0] != 0);
}

Test(boot_real, pvh)
{
	open_image(VMLINUX, INITRD);
	cr_assert_eq(image.kind, BOOT_PVH);
	load(256 * MiB);
	cr_assert_eq(plan.cpu[0].regs.rip, image.entry);
	/* pvh_start_xen begins with cld. */
	cr_assert_eq(*boot_memory_at(&memory, image.entry, 1), 0xfc);
}

Test(boot_real, bare)
{
	open_image(BARE, NULL);
	cr_assert_eq(image.kind, BOOT_BARE);
	load(16 * MiB);
	cr_assert(plan.cpu[1].runs);
}

/* Cut short anywhere, and with its header changed: refused or loaded, never a crash. */
Test(boot_real, bzimage_broken)
{
	open_image(BZIMAGE, NULL);
	struct boot_buffer b;
	uint64_t seed = 11;
	boot_memory_init(&memory, 128 * MiB, 1, 0, "");
	for (unsigned i = 0; i < 40; i++) {
		boot_buffer_init(&b, 1 + boot_random(&seed) % (image.kernel_bytes - 1));
		memcpy(b.bytes, image.kernel, b.size);
		struct boot_image cut;
		int err = boot_buffer_check(&b, &cut, error);
		/* Debian's image has a signature behind what its header counts. */
		if (!err)
			cr_assert_leq(cut.segment[0].offset + cut.segment[0].bytes, b.size);
		else
			cr_assert_eq(err, -ENOEXEC);
		boot_buffer_free(&b);
	}
	boot_buffer_init(&b, image.kernel_bytes);
	memcpy(b.bytes, image.kernel, b.size);
	for (unsigned i = 0; i < 4000; i++) {
		struct boot_image other;
		for (unsigned n = boot_random(&seed) % 4; n < 4; n++)
			b.bytes[0x1f1 + boot_random(&seed) % 0x7b] = (uint8_t)boot_random(&seed);
		int err = boot_buffer_check(&b, &other, error);
		if (!err)
			cr_assert_leq(other.segment[0].bytes, b.size - other.segment[0].offset);
		memcpy(b.bytes + 0x1f1, image.kernel + 0x1f1, 0x80);
	}
	boot_buffer_free(&b);
	boot_image_close(&image);
}
