/* Sharing domains in the host, and what workers hear of them: vmm/host_domain.h, vmm/domain_fds.h. Without processes. */
#include "vmm/error.h"
#include "vmm/host_domain.h"
#include "vmm/host_private.h"
#include "vmm/link.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define FRAMES 4096

static struct host host;
static char error[ERROR_MAX];

static void make(void)
{
	const struct ipt_config c = {
		.kind = IPT_INDEX, .frames = FRAMES, .max_vms = 8, .nodes = 1, .colours = 1};
	host = (struct host){.domains = NULL};
	cr_assert_eq(ipt_create(&host.table, &c), 0);
	cr_assert_eq(host_domain_create(&host, FRAMES, error), 0, "%s", error);
}

static struct host_vm vm_in(const char *name)
{
	struct host_vm vm = {.host = &host};
	snprintf(vm.config.share_domain, sizeof vm.config.share_domain, "%s", name);
	cr_assert_eq(host_domain_join(&vm, error), 0, "%s", error);
	return vm;
}

static unsigned domains(void)
{
	unsigned n = 0;
	for (const struct domain *d = host.domains; d; d = d->next)
		n++;
	return n;
}

static void put_page(const struct domain *d, uint32_t f)
{
	cr_assert_eq(pwrite(d->pool.fd, "bytes", 5, (off_t)f << PAGE_SHIFT), 5);
}

Test(host_domain, who_is_in_which)
{
	make();
	struct host_vm plain = vm_in(""), named = vm_in("default"), a = vm_in("a"), a2 = vm_in("a"),
		       none = vm_in("none"), none2 = vm_in("none"), clone = {.host = &host};
	host_domain_follow(&clone, none.domain);
	cr_expect_eq(plain.domain, named.domain);
	cr_expect_eq(plain.domain->number, DOMAIN_DEFAULT);
	cr_expect_eq(a.domain, a2.domain);
	cr_expect_neq(a.domain, plain.domain);
	cr_expect_neq(none.domain, none2.domain);
	cr_expect_eq(clone.domain, none.domain);
	cr_expect_eq(host_domain_merged_as(none.domain), 0);
	cr_expect_eq(host_domain_merged_as(a.domain), a.domain->number);
	cr_expect_eq(domains(), 4);
	/* The last one takes it with him; numbers aren't given out again; the default one stays. */
	uint32_t was = a.domain->number;
	host_domain_leave(&a);
	cr_expect_eq(domains(), 4);
	host_domain_leave(&a2);
	cr_expect_eq(domains(), 3);
	host_domain_leave(&a2);
	cr_expect_eq(domains(), 3);
	host_domain_leave(&none);
	cr_expect_eq(domains(), 3, "its clone goes on");
	host_domain_leave(&clone);
	host_domain_leave(&none2);
	host_domain_leave(&plain);
	host_domain_leave(&named);
	cr_expect_eq(domains(), 1);
	a = vm_in("a");
	cr_expect_gt(a.domain->number, was);
	host_domain_leave(&a);
	host_domain_destroy(&host);
	cr_expect_null(host.domains);
}

Test(host_domain, frames_are_punched_out_of_the_right_file)
{
	make();
	struct host_vm a = vm_in("a"), b = vm_in("b"), lost = {.host = &host};
	put_page(a.domain, 5);
	put_page(b.domain, 6);
	put_page(b.domain, 7);
	cr_expect_eq(host_populated_bytes(&host), 3 * PAGE_SIZE);
	cr_expect(host_domain_has(&host, frame(7)));
	cr_expect(!host_domain_has(&host, frame(8)));
	cr_expect_eq(host_domain_clean_vm(&a, frame(5), 2), 0);
	cr_expect(!host_domain_has(&host, frame(5)));
	cr_expect(pool_has(&b.domain->pool, frame(6)), "of others nothing goes");
	/* Of one of whom nothing is known, wherever they are. */
	cr_expect_eq(host_domain_clean_vm(&lost, frame(6), 1), 0);
	cr_expect_eq(host_domain_clean_all(&host, frame(7), 1), 0);
	cr_expect_eq(host_populated_bytes(&host), 0);
	host_domain_destroy(&host);
}

Test(host_domain, there_is_a_most)
{
	struct rlimit r;
	make();
	getrlimit(RLIMIT_NOFILE, &r);
	r.rlim_cur = r.rlim_max;
	setrlimit(RLIMIT_NOFILE, &r);
	if (r.rlim_cur < DOMAINS_MOST + 64)
		cr_skip_test("it takes more descriptors than this process may have");
	struct host_vm one = {.host = &host, .config = {.share_domain = "none"}};
	for (unsigned i = 1; i < DOMAINS_MOST; i++) {
		struct host_vm vm = one;
		cr_assert_eq(host_domain_join(&vm, error), 0, "%u: %s", i, error);
	}
	cr_expect_eq(host_domain_join(&one, error), -ENOSPC);
	cr_expect(strstr(error, "there are 1024 sharing domains, which is the most"), "%s", error);
	cr_expect_null(one.domain);
	struct host_vm plain = vm_in(""); /* one that there is */
	cr_expect_eq(plain.domain->number, DOMAIN_DEFAULT);
	host_domain_destroy(&host);
}

Test(host_domain, what_another_host_left)
{
	make();
	struct host_vm a = vm_in("a"), b = vm_in("b");
	struct domain *kept[] = {host_domain_by_number(&host, DOMAIN_DEFAULT), a.domain, b.domain};
	struct host next = {.table = host.table};
	for (unsigned i = 0; i < 3; i++)
		cr_assert_eq(host_domain_add_kept(&next, kept[i]->number, kept[i]->name,
						  (int[]){dup(kept[i]->pool.fd), -1}, FRAMES),
			     0);
	cr_expect_null(host_domain_by_number(&next, 77));
	struct host_vm b2 = {.host = &next};
	host_domain_follow(&b2, host_domain_by_number(&next, b.domain->number));
	host_domain_let_go_unused(&next);
	cr_expect_null(host_domain_by_number(&next, a.domain->number), "nobody goes on in it");
	cr_expect_not_null(host_domain_by_number(&next, DOMAIN_DEFAULT));
	put_page(b.domain, 9);
	cr_expect(pool_has(&b2.domain->pool, frame(9)), "it is the same file");
	/* A file that is no such. */
	cr_expect_eq(host_domain_add_kept(&next, 99, "x", (int[]){dup(b.domain->pool.fd), -1},
					  FRAMES + 1),
		     -EPROTO);
	host_domain_destroy(&next);
	host_domain_destroy(&host);
}

/* ---- a worker that sleeps ------------------------------------------------------------------ */

#define MANY 600
static int bell[2];

static void ring(struct host_worker *w)
{
	(void)w;
	cr_assert_eq(write(bell[1], "", 1), 1);
}

/* Looks at its link only when it is woken, as the reclaimer does. Status 0: it has heard of all. */
static _Noreturn void sleeper(int link)
{
	static struct domain_fds d;
	char byte;
	while (d.n < MANY && read(bell[0], &byte, 1) == 1)
		domain_fds_hear(&d, link);
	_exit(d.n != MANY);
}

Test(host_domain, more_than_a_sleeping_workers_link_holds)
{
	struct host_worker w = {.host = &host, .wake = ring};
	struct rlimit r;
	int link[2], status;
	make();
	getrlimit(RLIMIT_NOFILE, &r);
	r.rlim_cur = r.rlim_max;
	setrlimit(RLIMIT_NOFILE, &r);
	if (r.rlim_cur < MANY + 64)
		cr_skip_test("it takes more descriptors than this process may have");
	for (unsigned i = 1; i < MANY; i++)
		vm_in("none");
	cr_assert_eq(link_pair(link), 0);
	cr_assert_eq(pipe(bell), 0);
	pid_t pid = fork();
	if (pid == 0)
		sleeper(link[1]);
	close(link[1]);
	w.link_fd = link[0];
	w.pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	host_domain_tell_all(&w);
	ring(&w);
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	cr_expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %#x", (unsigned)status);
	host_domain_destroy(&host);
}

/* ---- what workers hear --------------------------------------------------------------------- */

static ino_t inode(int fd)
{
	struct stat st;
	return fstat(fd, &st) == 0 ? st.st_ino : 0;
}

static void say(int link, uint32_t number, int fd)
{
	const struct domain_message m = {number};
	cr_assert_eq(link_send(link, &m, sizeof m, &fd, fd >= 0), 0);
}

static void say_both(int link, uint32_t number, int fd, int packed)
{
	const struct domain_message m = {number};
	cr_assert_eq(link_send(link, &m, sizeof m, (int[]){fd, packed}, 2), 0);
}

Test(domain_fds, come_and_go)
{
	static struct domain_fds d;
	struct pool p[3];
	int link[2];
	cr_assert_eq(link_pair(link), 0);
	for (unsigned i = 0; i < 3; i++)
		cr_assert_eq(pool_create(&p[i], FRAMES, error), 0);
	cr_expect_eq(domain_fds_hear(&d, link[1]), 0);
	cr_expect_eq(domain_fd(&d, 1), -1);
	say(link[0], 7, p[2].fd);
	say(link[0], 1, p[0].fd);
	say_both(link[0], 3, p[1].fd, p[2].fd);
	cr_expect_eq(domain_fds_hear(&d, link[1]), 0);
	cr_expect_eq(d.n, 3);
	cr_expect_eq(inode(domain_fd(&d, 1)), inode(p[0].fd));
	cr_expect_eq(inode(domain_fd(&d, 3)), inode(p[1].fd));
	cr_expect_eq(inode(domain_fd(&d, 7)), inode(p[2].fd));
	cr_expect_eq(domain_fd(&d, 2), -1);
	cr_expect_eq(domain_fds_of(&d, 7)->packed, -1);
	int was = domain_fd(&d, 3), packed = domain_fds_of(&d, 3)->packed;
	cr_expect_eq(inode(packed), inode(p[2].fd));
	cr_expect_null(domain_fds_of(&d, 4));
	say(link[0], 3, -1);
	say(link[0], 4, -1);
	say(link[0], 1, p[0].fd); /* once more */
	close(link[0]);
	cr_expect_eq(domain_fds_hear(&d, link[1]), -ESRCH, "but what was said before is heard");
	cr_expect_eq(d.n, 2);
	cr_expect_eq(domain_fd(&d, 3), -1);
	cr_expect_eq(inode(was), 0, "it is closed");
	cr_expect_eq(inode(packed), 0);
	cr_expect_eq(inode(domain_fd(&d, 1)), inode(p[0].fd));
	close(link[1]);
}
