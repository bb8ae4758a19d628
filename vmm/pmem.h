/*
 * Files as guests' persistent memory: however many guests map a file, the pool has one copy of a page; one for each
 * sharing domain (host_domain.h), since these have files of their own in the pool. To each domain the others are as other
 * hosts are: a file is either shared in one domain, or private in any.
 *
 * A file that guests of this host use is a pseudo-VM of the table: its pages are that VM's gfns. A guest's
 * bank of persistent memory is a region of the table which leads there, so no guest has a record a page.
 * A *view* is one guest's use of a file, shared or private:
 *   shared   the guest's writes go to the common frames, and to the file when the guest flushes, and at
 *            its end. The view has the set of the pages that the guest wrote since (`dirty`)
 *   private  a write copies the page into a frame of the guest's own, as of any frame it shares; nothing
 *            reaches the file
 *
 * Invariants of a shared view
 *   P1  a page that is writable in the guest's window, or that one of its devices writes to, is in `dirty`
 *   P2  a page that the guest has written and that isn't in `dirty` or `writing` is durable in the file
 *   P3  a page that isn't in `dirty` is write-protected in the guest's window
 * The sets are in memory that the host has too: when the VM's process is dead, however it died, the host
 * writes back what is in them. Each guest flushes what it wrote itself, so no view waits for another's.
 *
 * Where frames are short the host puts pages into a third set, `wanted`, and the VM's process writes back those of them
 * that are dirty, as for a flush that the guest didn't ask for (ORDER_WRITE_BACK). What fails stays dirty, so that the
 * guest's next flush tries it again, and is refused if it fails again.
 *
 * The host makes files and views before it forks the VM's process, which inherits them.
 */
#ifndef VMM_PMEM_H
#define VMM_PMEM_H

#include "ipt/ipt.h"
#include "virtio/loop.h"
#include "vmm/machine.h"
#include "vmm/pageset.h"
#include "vmm/pool.h"
#include <sys/types.h>
#include <sys/uio.h>

/* What a guest is given, open and checked. */
struct pmem_use {
	const char *path; /* for messages */
	int fd;           /* open for reading, and for writing if share */
	bool share;
	uint64_t bytes; /* of the guest's bank: whole pages */
};

/* Open and check a file. A shared bank is the whole pages of the file, so that what a guest writes has a
 * place in it; a private one is rounded up to MACHINE_PMEM_ALIGN, what is behind the file's end reads as
 * zero. -errno with words. */
int pmem_use_open(struct pmem_use *use, const char *path, bool share, char *error);

struct pmem_view;

struct pmem_file {
	struct pmem_file *next;
	const struct pool *pool; /* where its pages are */
	char *path;
	dev_t device;
	ino_t inode;
	int fd, write_fd; /* write_fd: -1 until a guest shares it */
	uint64_t bytes;   /* size when it was opened */
	vmid_t id;        /* of the pseudo-VM */
	unsigned users;
	struct pmem_view
		*left; /* of guests that are gone, with pages that could not be written back */
};

/* A run of pages that is being written. */
#define PMEM_RUN_PAGES  256u
#define PMEM_RUN_PIECES 64

struct pmem_view {
	struct pmem_view *next; /* in file->left */
	struct pmem_file *file;
	struct ipt *table;
	const struct pool *pool;
	bool share;
	/* File pages [0, pages) are the guest's gfns from `first` on. */
	gfn_t first;
	uint64_t pages;

	/* The rest is for shared views. */
	int sets_fd; /* memfd of all three */
	void *sets;
	struct pageset dirty;   /* to be written back */
	struct pageset writing; /* the flush under way has them, or had when its process died */
	struct pageset
		wanted; /* by the host, since their frames are; the VM's loop takes them out */

	/* Write-protect `count` gfns in the guest's window. 0 or -errno. NULL: no guest runs. */
	int (*protect)(void *ctx, gfn_t first, uint64_t count);
	/* One line for the user, when flushes begin to fail. May be NULL. */
	void (*say)(void *ctx, const char *line);
	/* What the host wanted was tried: `pages` are durable; 0 or an -errno. May be NULL. */
	void (*cleaned)(void *ctx, uint64_t pages, int error);
	void *ctx;
	struct loop *loop;

	struct {
		uint64_t next; /* the page from which to look on */
		uint64_t first, count;
		struct iovec iov[PMEM_RUN_PIECES],
			*rest; /* the run under way, what is left of it */
		int pieces;
		bool under_way, any, syncing;
		bool early;       /* of what the host wants: */
		uint64_t room;    /* for so many pages more */
		uint64_t durable; /* pages, by this flush */
		unsigned again;
		int error; /* of this flush, the first */
	} flush;
	bool said, said_early;
	uint64_t
		not_before_ns; /* the next one that the host wants, after one that was for nothing */
	uint64_t cleaned_pages; /* so far */
};

/* ---- pmem.c: the host's, on its one thread -------------------------------------------------- */

/* Make a view of the file for a VM whose bank begins at gfn `first` and whose frames are in `pool`: find the file among
 * *files or add it, and lock it against other hosts and domains. -EBUSY and others with words. */
int pmem_join(struct pmem_file **files, struct ipt *table, const struct pool *pool, vmid_t vm,
	      gfn_t first, const struct pmem_use *use, struct pmem_view **out, char *error);
/* A view for a clone of the VM that has `of`, which inherited the region already: with sets of its own. */
int pmem_join_clone(const struct pmem_view *of, struct pmem_view **out, char *error);
/* In the VM's process, just forked from the host: its own mapping of its sets. -errno. */
int pmem_attach(struct pmem_view *v);
/* What a host before us made of a file, and of a VM's view of it: `sets` (-1: it isn't shared) and the file's descriptors are
 * taken. NULL without memory; -errno. The file has no users yet, and is to be left if it gets none. */
struct pmem_file *pmem_file_adopt(struct pmem_file **files, const struct pool *pool, vmid_t id,
				  const char *path, uint64_t bytes, int fd, int write_fd);
void pmem_file_leave(struct pmem_file **files, struct pmem_file *f, struct ipt *table);
int pmem_view_adopt(struct pmem_file *f, struct ipt *table, gfn_t first, uint64_t pages, int sets,
		    struct pmem_view **out);
/* In the clone's process, whose view is a copy of the other's: take the new view's sets; fd is closed. -errno with
 * words. */
int pmem_adopt(struct pmem_view *v, int fd, char *error);
/* Pages that the guest has written since they were last durable. */
uint64_t pmem_dirty_pages(const struct pmem_view *v);
/* Is one of these pages of the file among them, or being written? Host. */
bool pmem_is_dirty(const struct pmem_view *v, uint64_t page, uint64_t count);
/* These are wanted clean: put those around them in the set too, and say whether any is dirty. Host; the VM is still to be
 * told. */
bool pmem_want_clean(struct pmem_view *v, uint64_t page, uint64_t count);
/* The same for the views that are left of guests that are gone. */
bool pmem_left_dirty(const struct pmem_file *f, uint64_t page, uint64_t count);
/* The view's process is gone: write back what is left, this view's and that of earlier ones. -errno
 * with words; the pages that could not be written are kept for the next try. */
int pmem_finish(struct pmem_view *v, char *error);
/* The view's VM is gone from the table too: forget the view, and with its last view the file. -errno if
 * pages of the file were never written back (told by pmem_finish already). */
int pmem_leave(struct pmem_file **files, struct pmem_view *v);

/* ---- pmem_fetch.c: a page's way into the pool ------------------------------------------------- */

/* Have the file's page in the pool, and as many neighbours as the policy says; vm takes the frames for it.
 * 0 (also if it was there); -EAGAIN: the pool has no free frame; -EFAULT: the view has no such page;
 * -ENXIO: the file has become shorter; else what reading or the table came to. Blocks while the file is
 * read. */
int pmem_fetch(struct pmem_view *v, vmid_t vm, uint64_t page);

/* ---- pmem_flush.c: write-back --------------------------------------------------------------- */

/* The guest is about to write to these pages, or a device is: note it before it can. Shared views. */
void pmem_note_write(struct pmem_view *v, uint64_t page, uint64_t count);
/* Make durable what is dirty. As virtio_pmem_config.flush wants it, ctx is the view, which has a loop;
 * and all at once, blocking, for when no guest runs. What fails stays dirty. */
int pmem_flush(void *view, struct loop_op *op, bool begin, int res);
int pmem_write_back(struct pmem_view *v);
/* The same of what the host wants, a bounded part of it each time, as virtio_pmem_config.clean wants it. */
int pmem_clean(void *view, struct loop_op *op, bool begin, int res);
/* Why, in words; of what pmem_flush and pmem_write_back return. */
const char *pmem_why(int error);

#endif
