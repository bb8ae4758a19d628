/* Files and regions. */
#include "tests/unit/ipt_help.h"
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static vmid_t file_new(struct ipt *t, const char *name)
{
	vmid_t file = INVALID_VMID;

	cr_assert_eq(ipt_file_add(t, name, &file), 0);
	return file;
}

static bool count_viewer(void *ctx, vmid_t vm, gfn_t g, enum ipt_place_kind how)
{
	(void)vm;
	(void)g;
	*(unsigned *)ctx += how == IPT_FILE_PAGE;
	return true;
}

BOTH_KINDS(ipt_file, one_page_for_all)
{
	struct ipt *t = help_table(kind, 1000);
	vmid_t file = file_new(t, "disk.img"), a = help_vm(t, "a"), b = help_vm(t, "b"), on, clone;
	struct ipt_vm_info info;
	struct ipt_place p;
	frame_t f, g, own;
	uint32_t done;
	unsigned viewers = 0;

	cr_assert_eq(ipt_vm_region(t, a, gfn(1000), 100, file, 0), 0);
	cr_assert_eq(ipt_vm_region(t, b, gfn(5000), 50, file, 10), 0);
	cr_assert_eq(ipt_place(t, a, gfn(1000), 200, &p), 200, "not brought in yet");
	cr_assert_eq(p.kind, IPT_VOID);
	f = help_alloc(t, a, 5);
	cr_assert_eq(ipt_file_map(t, a, file, 8, f, 24, &done), 0);
	cr_assert_eq(done, 24);
	cr_assert_eq(ipt_lookup(t, b, gfn(5000)).v, f.v + 2);
	cr_assert_eq(ipt_place(t, a, gfn(1008), 100, &p), 24);
	cr_assert(p.kind == IPT_FILE_PAGE && p.at.v == a.v && p.frame.v == f.v);
	cr_assert_eq(ipt_vm_info(t, file, &info), 0);
	cr_assert(info.kind == IPT_FILE && info.frames[IPT_PRIVATE] == 24);
	g = help_alloc(t, b, 5);
	cr_assert_eq(ipt_file_map(t, b, file, 32, g, 32, &done), 0);
	cr_assert_eq(ipt_lookup(t, b, gfn(5021)).v, f.v + 23);
	cr_assert_eq(ipt_lookup(t, b, gfn(5022)).v, g.v);

	/* Another was quicker with the second piece. */
	g = help_alloc(t, b, 5);
	cr_assert_eq(ipt_file_map(t, b, file, 60, g, 20, &done), -EEXIST);
	cr_assert_eq(done, 0);
	cr_assert_eq(ipt_file_map(t, b, file, 64, g, 16, &done), 0);
	cr_assert_eq(ipt_file_map(t, a, file, 0, frame_add(f, 24), 8, &done), 0);

	/* A page of one's own; clones; pins. */
	own = help_mapped(t, a, 1008, 0);
	cr_assert_eq(ipt_vm_freeze(t, a, "a@1", &on), 0);
	cr_assert_eq(ipt_vm_add(t, "clone", a, &clone), 0);
	cr_assert_eq(ipt_lookup(t, clone, gfn(1008)).v, own.v);
	cr_assert_eq(ipt_place(t, clone, gfn(1009), 100, &p), 23);
	cr_assert(p.kind == IPT_FILE_PAGE && p.at.v == a.v && p.frame.v == f.v + 1);
	cr_assert_eq(ipt_pin(t, clone, gfn(1010), &own), 0);
	cr_assert_eq(own.v, f.v + 2);
	ipt_unpin(t, own);
	cr_assert_eq(ipt_viewers(t, frame_add(f, 2), count_viewer, &viewers), 0);
	cr_assert_eq(viewers, 4, "a's template, two of its children, b");
	cr_assert_eq(ipt_drop(t, clone, gfn(1010), 1, &done, NULL, NULL),
		     kind == IPT_INDEX ? 0 : -EOPNOTSUPP);
	cr_assert_eq(frame_valid(ipt_lookup(t, clone, gfn(1010))), kind == IPT_RADIX);
	help_audit(t);

	/* The template goes, its region stays. */
	help_reap(t, clone);
	cr_assert_eq(ipt_vm_collapse(t, a, NULL, NULL), 0);
	cr_assert_eq(ipt_lookup(t, on, gfn(1009)).v, f.v + 1);
	cr_assert_eq(ipt_vm_reap(t, file, NULL, NULL), -EBUSY);
	help_reap(t, b);
	cr_assert_eq(ipt_vm_reap(t, file, NULL, NULL), -EBUSY);
	help_reap(t, on);
	help_audit(t);
	help_reap(t, file);
	cr_assert_eq(ipt_free_frames(t), 1000);
	help_audit(t);
	ipt_detach(t);
}

BOTH_KINDS(ipt_file, what_is_refused)
{
	struct ipt *t = help_table(kind, 100);
	vmid_t file = file_new(t, "file"), vm = help_vm(t, "vm"), on, other;
	frame_t f = help_alloc(t, vm, 0);
	uint32_t done;

	cr_assert_eq(ipt_file_add(t, "vm", &other), -EEXIST);
	cr_assert_eq(ipt_vm_add(t, "child", file, &other), -ENOENT);
	cr_assert_eq(ipt_alloc(t, file, 0, NULL, &f), -EPERM);
	cr_assert_eq(ipt_unmap(t, file, gfn(0), 1, NULL, NULL), -EPERM);
	cr_assert_eq(ipt_vm_freeze(t, file, "file@1", &on), -EPERM);
	cr_assert_eq(ipt_vm_collapse(t, file, NULL, NULL), -EPERM);
	cr_assert_eq(ipt_vm_region(t, file, gfn(0), 1, file, 0), -EPERM);
	cr_assert_eq(ipt_vm_region(t, vm, gfn(0), 1, vm, 0), -ENOENT);
	cr_assert_eq(ipt_vm_region(t, vm, gfn(0), 1, vmid(9), 0), -ENOENT);
	cr_assert_eq(ipt_vm_region(t, vm, gfn(0), 0, file, 0), -EINVAL);
	cr_assert_eq(ipt_vm_region(t, vm, gfn(1), IPT_MAX_GFN, file, 0), -EINVAL);
	cr_assert_eq(ipt_vm_region(t, vm, gfn(0), 2, file, IPT_MAX_GFN - 1), -EINVAL);
	cr_assert_eq(ipt_vm_region(t, vm, gfn(0), 2, file, UINT64_MAX), -EINVAL);
	cr_assert_eq(ipt_vm_region(t, vm, gfn(10), 10, file, 0), 0);
	cr_assert_eq(ipt_vm_region(t, vm, gfn(19), 1, file, 0), -EEXIST);
	cr_assert_eq(ipt_vm_region(t, vm, gfn(5), 6, file, 0), -EEXIST);
	for (uint64_t i = 1; i < IPT_MAX_REGIONS; i++)
		cr_assert_eq(ipt_vm_region(t, vm, gfn(10 + i * 10), 10, file, 0), 0);
	cr_assert_eq(ipt_vm_region(t, vm, gfn(0), 1, file, 0), -ENOSPC);
	cr_assert_eq(ipt_file_map(t, vm, vm, 0, f, 1, &done), -ENOENT);
	cr_assert_eq(ipt_file_map(t, file, file, 0, f, 1, &done), -EPERM);
	cr_assert_eq(ipt_file_map(t, vm, file, IPT_MAX_GFN, f, 1, &done), -EINVAL);
	cr_assert_eq(ipt_file_map(t, vm, file, 0, frame(50), 1, &done), -EPERM);
	cr_assert_eq(ipt_vm_freeze(t, vm, "vm@1", &on), 0);
	cr_assert_eq(ipt_vm_region(t, vm, gfn(0), 1, file, 0), -EPERM);
	/* More regions than one VM can have keep two apart. */
	cr_assert_eq(ipt_vm_region(t, on, gfn(0), 1, file, 0), 0);
	cr_assert_eq(ipt_vm_collapse(t, vm, NULL, NULL), -ENOSPC);
	help_audit(t);
	ipt_detach(t);
}

/* ---- death ----------------------------------------------------------------------------------- */

static void act(struct ipt *t, vmid_t vm, vmid_t file, frame_t f)
{
	uint32_t done;
	vmid_t second;

	if (ipt_file_map(t, vm, file, 20, f, 30, &done) || ipt_file_add(t, "second", &second) ||
	    ipt_vm_region(t, vm, gfn(0), 100, second, 7))
		_exit(1);
}

BOTH_KINDS(ipt_file, death_at_every_step)
{
	unsigned k;

	if (UNDER_TSAN)
		cr_skip_test("killed processes are beyond the thread sanitizer");
	for (k = 0;; k++) {
		struct ipt *t = help_table(kind, 1000);
		vmid_t file = file_new(t, "file"), vm = help_vm(t, "vm"),
		       other = help_vm(t, "other"), second;
		frame_t f = help_alloc(t, vm, 5), g = help_alloc(t, other, 4);
		uint32_t done, mapped = 0;
		int status;

		cr_assert_eq(ipt_vm_region(t, vm, gfn(1000), 100, file, 0), 0);
		cr_assert_eq(ipt_vm_region(t, other, gfn(1000), 100, file, 0), 0);
		cr_assert_eq(ipt_file_map(t, other, file, 4, g, 16, &done), 0);
		pid_t pid = help_fork();
		if (pid == 0) {
			help_die_at(k);
			act(t, vm, file, f);
			_exit(0);
		}
		cr_assert_eq(waitpid(pid, &status, 0), pid);
		cr_assert_eq(ipt_lookup(t, other, gfn(1004)).v, g.v);
		for (uint64_t p = 20; p < 50; p++)
			mapped += frame_valid(ipt_lookup(t, other, gfn(1000 + p)));
		help_audit_but(t, vm);
		/* Others bring in what is missing. */
		g = help_alloc(t, other, 0);
		int err = ipt_file_map(t, other, file, 49, g, 1, &done);
		cr_assert_eq(err, mapped == 30 ? -EEXIST : 0);
		help_reap(t, vm);
		help_audit(t);
		if (!ipt_vm_find(t, "second", &second))
			help_reap(t, second);
		help_reap(t, other);
		help_reap(t, file);
		cr_assert_eq(ipt_free_frames(t), 1000);
		help_audit(t);
		ipt_detach(t);
		if (WIFEXITED(status)) {
			cr_assert_eq(status, 0);
			break;
		}
	}
	cr_assert_gt(k, 50);
}

/* ---- processes that bring in the same file, and are killed ----------------------------------- */

#define WORKERS 3
#define FRAMES  4096
#define PAGES   3000

/* Take a frame for a page that isn't there; who is late gives it back. What is there stays where it is. */
static void bring_in(struct ipt *t, vmid_t vm, vmid_t file, uint64_t seed)
{
	struct help_random r = {seed};
	uint32_t done;
	frame_t f;

	for (uint32_t n = 0; n < 2000; n++) {
		uint64_t page = help_below(&r, PAGES);
		frame_t is = ipt_lookup(t, vm, gfn(page));

		if (frame_valid(is)) {
			if (ipt_lookup(t, vm, gfn(page)).v != is.v)
				_exit(7);
			continue;
		}
		if (ipt_alloc(t, vm, 0, NULL, &f))
			_exit(7);
		int err = ipt_file_map(t, vm, file, page, f, 1, &done);
		if (err && (err != -EEXIST || ipt_free(t, vm, f, 1)))
			_exit(7);
		if (!frame_valid(ipt_lookup(t, vm, gfn(page))))
			_exit(7);
	}
	_exit(0);
}

BOTH_KINDS(ipt_file, one_is_killed_the_others_go_on)
{
	struct help_random r = {3};

	if (UNDER_TSAN)
		cr_skip_test("killed processes are beyond the thread sanitizer");
	for (unsigned round = 0; round < (UNDER_SLOW ? 5 : 30); round++) {
		struct ipt *t = help_table(kind, FRAMES);
		vmid_t file = file_new(t, "file"), vm[WORKERS];
		struct timespec pause = {0, help_below(&r, 2000000)};
		pid_t pid[WORKERS];
		int status;

		for (unsigned i = 0; i < WORKERS; i++) {
			vm[i] = help_vm(t, (char[]){(char)('a' + i), 0});
			cr_assert_eq(ipt_vm_region(t, vm[i], gfn(0), PAGES, file, 0), 0);
			pid[i] = help_fork();
			if (pid[i] == 0)
				bring_in(t, vm[i], file, round * WORKERS + i);
		}
		nanosleep(&pause, NULL);
		kill(pid[0], SIGKILL);
		for (unsigned i = 0; i < WORKERS; i++) {
			cr_assert_eq(waitpid(pid[i], &status, 0), pid[i]);
			if (i)
				cr_assert_eq(status, 0, "worker %u found something wrong", i);
		}
		help_reap(t, vm[0]);
		help_audit(t);
		for (unsigned i = 1; i < WORKERS; i++)
			help_reap(t, vm[i]);
		help_reap(t, file);
		cr_assert_eq(ipt_free_frames(t), FRAMES);
		help_audit(t);
		ipt_detach(t);
	}
}
