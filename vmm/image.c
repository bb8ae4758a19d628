/*
 * Kernel and initrd files: opened, mapped, told apart and checked, once for all VMs.
 */
#include "ipt/fail.h"
#include "vmm/boot_parts.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* Keep a path for messages: whole if it fits, or its end. */
static void keep_name(char out[BOOT_NAME_MAX], const char *path)
{
	size_t n = strlen(path);
	if (n < BOOT_NAME_MAX)
		memcpy(out, path, n + 1);
	else
		snprintf(out, BOOT_NAME_MAX, "...%s", path + n - (BOOT_NAME_MAX - 4));
}

static const char *kind_of_file(mode_t mode)
{
	if (S_ISDIR(mode))
		return "a directory";
	if (S_ISFIFO(mode))
		return "a pipe";
	if (S_ISSOCK(mode))
		return "a socket";
	return "a device";
}

/* Map a regular file read-only. `what` and `option` are for messages: "kernel", "--kernel". */
static int map_file(const char *path, const char *what, const char *option, const uint8_t **out,
		    size_t *bytes, char name[BOOT_NAME_MAX], char error[BOOT_ERROR_MAX])
{
	keep_name(name, path);
	/* O_NONBLOCK: opening a FIFO must not wait for a writer. */
	int fd = fail_call(IMAGE_OPEN, open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
	if (fd < 0 && errno == ENOENT)
		return errorf(error, -ENOENT, "%s %s doesn't exist: check %s", what, name, option);
	if (fd < 0)
		return errorf(error, -errno, "can't open %s %s: %s: check %s", what, name,
			      strerror(errno), option);
	struct stat st;
	int err = 0;
	void *map = MAP_FAILED;
	if (fstat(fd, &st)) {
		err = errorf(error, -errno, "can't read %s %s: %s", what, name, strerror(errno));
	} else if (!S_ISREG(st.st_mode)) {
		err = errorf(error, S_ISDIR(st.st_mode) ? -EISDIR : -EINVAL,
			     "%s %s is %s: give a regular file with %s", what, name,
			     kind_of_file(st.st_mode), option);
	} else if (!st.st_size) {
		err = errorf(error, -ENOEXEC, "%s %s is empty: give another with %s", what, name,
			     option);
	} else {
		map = fail_call(IMAGE_MAP,
				mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0));
		if (map == MAP_FAILED)
			err = errorf(error, -errno, "can't map %s %s: %s", what, name,
				     strerror(errno));
	}
	close(fd);
	if (err)
		return err;
	*out = map;
	*bytes = (size_t)st.st_size;
	return 0;
}

/* What a file that is no kernel of ours looks like, to say what to do about it. */
static int refuse(const struct boot_image *image, char error[BOOT_ERROR_MAX])
{
	static const struct {
		const char *magic;
		size_t len;
		const char *words;
	} known[] = {
		{"\x1f\x8b", 2, "is compressed with gzip: unpack it, or give the bzImage"},
		{"\xfd"
		 "7zXZ",
		 5, "is compressed with xz: unpack it, or give the bzImage"},
		{"\x28\xb5\x2f\xfd", 4, "is compressed with zstd: unpack it, or give the bzImage"},
		{"070701", 6, "is a cpio archive: is it the initrd?"},
		{"MZ", 2, "is an EFI program without a Linux/x86 boot header"},
	};
	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (image->kernel_bytes >= known[i].len &&
		    !memcmp(image->kernel, known[i].magic, known[i].len))
			return errorf(error, -ENOEXEC, "kernel %s %s", image->kernel_name,
				      known[i].words);
	return errorf(error, -ENOEXEC,
		      "kernel %s is no kernel this can boot: give a Linux bzImage or a 64-bit "
		      "ELF vmlinux",
		      image->kernel_name);
}

int boot_image_check(struct boot_image *image, char error[BOOT_ERROR_MAX])
{
	image->segments = 0;
	image->initrd_end = MACHINE_LOW_END;
	image->cmdline_max = MACHINE_CMDLINE_MAX - 1;
	int err = boot_elf_is(image)       ? boot_elf_check(image, error)
		  : boot_bzimage_is(image) ? boot_bzimage_check(image, error)
					   : refuse(image, error);
	if (err)
		return err;
	image->min_bytes = boot_round_up(image->end, PAGE_SIZE);
	if (image->initrd) {
		uint64_t room = image->initrd_end > image->min_bytes
					? image->initrd_end - image->min_bytes
					: 0;
		if (image->initrd_bytes > room)
			return errorf(error, -EFBIG,
				      "initrd %s has %zu MiB: kernel %s can take at most "
				      "%" PRIu64 " MiB",
				      image->initrd_name, image->initrd_bytes / MiB,
				      image->kernel_name, room / MiB);
		image->min_bytes += boot_round_up(image->initrd_bytes, PAGE_SIZE);
	}
	return 0;
}

int boot_image_open(struct boot_image *out, const char *kernel_path, const char *initrd_path,
		    char error[BOOT_ERROR_MAX])
{
	memset(out, 0, sizeof(*out));
	int err = map_file(kernel_path, "kernel", "--kernel", &out->kernel, &out->kernel_bytes,
			   out->kernel_name, error);
	if (!err && initrd_path)
		err = map_file(initrd_path, "initrd", "--initrd", &out->initrd, &out->initrd_bytes,
			       out->initrd_name, error);
	if (!err)
		err = boot_image_check(out, error);
	if (err)
		boot_image_close(out);
	return err;
}

void boot_image_close(struct boot_image *image)
{
	if (image->kernel)
		munmap((void *)(uintptr_t)image->kernel, image->kernel_bytes);
	if (image->initrd)
		munmap((void *)(uintptr_t)image->initrd, image->initrd_bytes);
	memset(image, 0, sizeof(*image));
}
