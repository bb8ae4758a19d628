#include "vmm/density.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

uint64_t density_table_bytes(const struct ipt_bytes *b)
{
	return b->array + b->side + b->slots + b->forward + b->other;
}

/* Of all VMs, from what some of them took. */
static uint64_t of_all(const struct density_replay *p, uint64_t bytes)
{
	if (!p->mappings || p->mappings == p->seen)
		return bytes;
	return (uint64_t)((double)bytes * (double)p->seen / (double)p->mappings);
}

uint64_t density_radix_tables_bytes(const struct density_row *r)
{
	return of_all(&r->replay, r->replay.bytes.forward);
}

uint64_t density_reverse_map_bytes(const struct density_row *r)
{
	return of_all(&r->replay, r->replay.bytes.array);
}

static uint64_t radix_and_reverse(const struct density_row *r)
{
	return density_radix_tables_bytes(r) + density_reverse_map_bytes(r);
}

double density_break_even(const unsigned *guests, const uint64_t *cost, const uint64_t *other,
			  unsigned rows)
{
	unsigned i = rows;
	while (i && cost[i - 1] <= other[i - 1])
		i--;
	if (i == rows)
		return -1;
	if (i == 0)
		return guests[0];
	/* At i - 1 the cost is above the other by `before`, at i below it by `after`. */
	double before = (double)cost[i - 1] - (double)other[i - 1];
	double after = (double)other[i] - (double)cost[i];
	return guests[i - 1] + (guests[i] - guests[i - 1]) * before / (before + after);
}

/* ---- for people ---------------------------------------------------------------------------- */

static void say_break_even(const struct density *d, const char *what, const uint64_t *cost,
			   const uint64_t *other)
{
	unsigned guests[DENSITY_MAX_COUNTS];
	for (unsigned i = 0; i < d->rows; i++)
		guests[i] = d->row[i].guests;
	double at = density_break_even(guests, cost, other, d->rows);
	printf("  %s: ", what);
	if (at < 0)
		printf("not reached with %u guests\n", guests[d->rows - 1]);
	else if (at <= guests[0] && guests[0] == 1)
		printf("from the first guest on\n");
	else if (at <= guests[0])
		printf("from %u guests on, the fewest measured\n", guests[0]);
	else
		printf("at %.1f guests\n", at);
}

static void print_break_even(const struct density *d)
{
	uint64_t ipt[DENSITY_MAX_COUNTS], both[DENSITY_MAX_COUNTS], forward[DENSITY_MAX_COUNTS],
		index[DENSITY_MAX_COUNTS];
	for (unsigned i = 0; i < d->rows; i++) {
		ipt[i] = density_table_bytes(&d->row[i].ipt.table);
		index[i] = d->row[i].ipt.table.forward;
		both[i] = radix_and_reverse(&d->row[i]);
		forward[i] = density_radix_tables_bytes(&d->row[i]);
	}
	printf("\nBreak-even of the inverted page table, everything counted\n");
	say_break_even(d, "against radix tables with reverse map", ipt, both);
	say_break_even(d, "against radix tables alone           ", ipt, forward);
	say_break_even(d, "its index against radix tables alone ", index, forward);
}

static void print_tables(const struct density *d)
{
	printf("\nTables for the same mappings, KiB\n");
	printf("%6s %9s | %-47s | %-23s |\n", "", "", "inverted page table", "per-VM radix tables");
	printf("%6s %9s | %7s %7s %7s %7s %7s %7s | %7s %7s %7s | %s\n", "guests", "mapped",
	       "array", "side", "slots", "index", "other", "total", "tables", "reverse", "both",
	       "total/both");
	for (unsigned i = 0; i < d->rows; i++) {
		const struct density_row *r = &d->row[i];
		const struct ipt_bytes *b = &r->ipt.table;
		uint64_t total = density_table_bytes(b), both = radix_and_reverse(r);
		printf("%6u %9" PRIu64 " | %7" PRIu64 " %7" PRIu64 " %7" PRIu64 " %7" PRIu64
		       " %7" PRIu64 " %7" PRIu64 " | %7" PRIu64 " %7" PRIu64 " %7" PRIu64
		       " | %.2f\n",
		       r->guests, r->ipt.frames * PAGE_SIZE / KiB, b->array / KiB, b->side / KiB,
		       b->slots / KiB, b->forward / KiB, b->other / KiB, total / KiB,
		       density_radix_tables_bytes(r) / KiB, density_reverse_map_bytes(r) / KiB,
		       both / KiB, (double)total / (double)both);
	}
	for (unsigned i = 0; i < d->rows; i++) {
		const struct density_replay *p = &d->row[i].replay;
		if (p->mappings != p->seen)
			printf("%6u guests: radix tables and reverse map of %u were made, and "
			       "count for all\n",
			       d->row[i].guests, p->vms_replayed);
	}
}

static void print_clones(const struct density *d)
{
	printf("\nFrames of 4 KiB, one booted guest and its clones\n");
	printf("%6s %9s | %9s | %9s %9s | %7s %7s\n", "guests", "templates", "private", "seen",
	       "inherited", "aliases", "tombs");
	for (unsigned i = 0; i < d->rows; i++) {
		const struct density_row *r = &d->row[i];
		printf("%6u %9u | %9" PRIu64 " | %9" PRIu64 " %9" PRIu64 " | %7u %7u\n", r->guests,
		       r->ipt.templates, r->ipt.frames, r->replay.seen, r->replay.inherited,
		       r->ipt.aliases, r->ipt.tombs);
	}
	printf("Clones are run with --table ipt alone.\n");
}

static void print_mapping(unsigned guests, const char *name, const struct density_run *r)
{
	char vmas[24] = "-", guest[24] = "-", frame[24] = "-";
	uint64_t bytes = density_mapping_bytes(r);
	if (!r->measured)
		return;
	if (r->has_vma_bytes) {
		snprintf(vmas, sizeof vmas, "%" PRIu64, r->vma_bytes / KiB);
		snprintf(guest, sizeof guest, "%.1f", (double)bytes / KiB / guests);
		snprintf(frame, sizeof frame, "%.1f",
			 (double)bytes / (double)(r->frames ? r->frames : 1));
	}
	printf("%6u %5s | %8" PRIu64 " %8s %8" PRIu64 " | %8s %8s\n", guests, name, r->vmas, vmas,
	       r->page_table_kib, guest, frame);
}

static void print_mappings(const struct density *d)
{
	printf("\nMappings of VM processes, kernel memory for them in KiB (VMAs: a number)\n");
	printf("%6s %5s | %8s %8s %8s | %8s %8s\n", "guests", "table", "VMAs", "for VMAs",
	       "pg.tabs", "a guest", "bytes a private frame");
	for (unsigned i = 0; i < d->rows; i++) {
		print_mapping(d->row[i].guests, "ipt", &d->row[i].ipt);
		print_mapping(d->row[i].guests, "radix", &d->row[i].radix);
	}
}

static void print_host(const struct density_row *row, const char *name, const struct density_run *r)
{
	char second[24] = "-";
	int64_t guests = row->guests;
	if (!r->measured)
		return;
	if (r->has_second_stage)
		snprintf(second, sizeof second, "%" PRId64, r->second_stage_kib);
	printf("%6u %5s | %8" PRIu64 " %9" PRIu64 " %8" PRIu64 " %8s %9" PRIu64 " %8" PRId64
	       " | %8" PRIu64 " %8" PRId64 " %9" PRId64 "\n",
	       row->guests, name, r->pool_bytes / KiB, r->window_mappings, r->page_table_kib,
	       second, r->private_kib, r->kernel_kib, r->frames * PAGE_SIZE / KiB / row->guests,
	       r->parts_kib / guests, r->available_kib / guests);
}

void density_print(const struct density *d)
{
	print_tables(d);
	if (d->options.clones)
		print_clones(d);
	print_break_even(d);
	print_mappings(d);
	printf("\nMemory of the host, KiB (window: mappings, a number)\n");
	printf("%6s %5s | %-55s | %s\n", "", "", "all guests", "a guest");
	printf("%6s %5s | %8s %9s %8s %8s %9s %8s | %8s %8s %9s\n", "guests", "table", "pool",
	       "window", "pg.tabs", "2nd.stg", "processes", "kernel", "mapped", "by parts",
	       "available");
	for (unsigned i = 0; i < d->rows; i++) {
		print_host(&d->row[i], "ipt", &d->row[i].ipt);
		print_host(&d->row[i], "radix", &d->row[i].radix);
	}
	printf("\n");
	fflush(stdout);
}

/* ---- CSV ----------------------------------------------------------------------------------- */

/* One list of columns makes both the header and the rows. */
struct csv {
	FILE *f;
	bool header;
	const char *prefix; /* of a run's columns */
	bool empty;         /* what comes wasn't measured */
	unsigned n;
};

static void begin(struct csv *c, const char *name)
{
	fputs(c->n++ ? "," : "", c->f);
	if (c->header)
		fprintf(c->f, "%s%s", c->prefix, name);
}

static void put(struct csv *c, const char *name, int64_t v)
{
	begin(c, name);
	if (!c->header && !c->empty)
		fprintf(c->f, "%" PRId64, v);
}

static void put_real(struct csv *c, const char *name, double v)
{
	begin(c, name);
	if (!c->header && !c->empty)
		fprintf(c->f, "%.3f", v);
}

static void put_run(struct csv *c, const char *prefix, const struct density_run *r, int64_t guests)
{
	c->prefix = prefix;
	c->empty = !r->measured;
	put_real(c, "ready_seconds", r->ready_seconds);
	put(c, "table_bytes", (int64_t)density_table_bytes(&r->table));
	put(c, "pool_populated_bytes", (int64_t)r->pool_bytes);
	put(c, "frames_private_per_guest", (int64_t)r->frames / guests);
	put(c, "window_mappings", (int64_t)r->window_mappings);
	put(c, "vmas", (int64_t)r->vmas);
	put(c, "host_page_table_kib", (int64_t)r->page_table_kib);
	c->empty = !r->measured || !r->has_vma_bytes;
	put(c, "vma_bytes", (int64_t)r->vma_bytes);
	put(c, "mapping_bytes_per_guest", (int64_t)density_mapping_bytes(r) / guests);
	put_real(c, "mapping_bytes_per_private_frame",
		 (double)density_mapping_bytes(r) / (double)(r->frames ? r->frames : 1));
	c->empty = !r->measured || !r->has_second_stage;
	put(c, "second_stage_table_kib", r->second_stage_kib);
	c->empty = !r->measured;
	put(c, "process_private_dirty_kib", (int64_t)r->private_kib);
	put(c, "kernel_objects_kib", r->kernel_kib);
	put(c, "host_parts_per_guest_kib", r->parts_kib / guests);
	put(c, "host_available_per_guest_kib", r->available_kib / guests);
	c->empty = false;
	c->prefix = "";
}

static void columns(struct csv *c, const struct density *d, const struct density_row *r)
{
	const struct ipt_bytes *b = &r->ipt.table;
	const struct density_replay *p = &r->replay;
	c->n = 0;
	c->prefix = "";
	put(c, "guests", r->guests);
	put(c, "memory_per_guest_bytes", (int64_t)d->options.run.mem_bytes);
	put(c, "pool_bytes", (int64_t)d->options.run.pool_bytes);
	put(c, "frames_mapped", (int64_t)r->ipt.frames);
	put(c, "ipt_array_bytes", (int64_t)b->array);
	put(c, "ipt_side_bytes", (int64_t)b->side);
	put(c, "ipt_slots_bytes", (int64_t)b->slots);
	put(c, "ipt_index_bytes", (int64_t)b->forward);
	put(c, "ipt_other_bytes", (int64_t)b->other);
	put(c, "ipt_total_bytes", (int64_t)density_table_bytes(b));
	put(c, "radix_tables_bytes", (int64_t)density_radix_tables_bytes(r));
	put(c, "reverse_map_bytes", (int64_t)density_reverse_map_bytes(r));
	put(c, "radix_and_reverse_bytes", (int64_t)radix_and_reverse(r));
	put(c, "radix_table_pages", (int64_t)p->table_pages);
	put(c, "replay_vms", p->vms_replayed);
	put(c, "replay_frames", (int64_t)p->mappings);
	put(c, "replay_mismatches", (int64_t)p->mismatches);
	put(c, "templates", r->ipt.templates);
	put(c, "frames_seen", (int64_t)p->seen);
	put(c, "frames_inherited", (int64_t)p->inherited);
	put(c, "aliases", r->ipt.aliases);
	put(c, "tombs", r->ipt.tombs);
	put_run(c, "ipt_run_", &r->ipt, r->guests ? r->guests : 1);
	put_run(c, "radix_run_", &r->radix, r->guests ? r->guests : 1);
	fputc('\n', c->f);
}

int density_write_csv(const struct density *d, char *error)
{
	char path[sizeof d->dir + sizeof d->stem + 8], temporary[sizeof path + 8];
	snprintf(path, sizeof path, "%s/%s.csv", d->dir, d->stem);
	snprintf(temporary, sizeof temporary, "%s.XXXXXX", path);
	int fd = mkstemp(temporary), rc = 0;
	if (fd < 0)
		return errorf(error, -errno, "--out: %.150s: %s", path, strerror(errno));
	fchmod(fd, 0644);
	struct csv c = {.f = fdopen(fd, "w"), .header = true};
	if (!c.f) {
		rc = -errno;
		close(fd);
	} else {
		columns(&c, d, &d->row[0]);
		c.header = false;
		for (unsigned i = 0; i < d->rows; i++)
			columns(&c, d, &d->row[i]);
		bool bad = ferror(c.f);
		if (fclose(c.f) || bad)
			rc = errno ? -errno : -EIO;
	}
	if (!rc && rename(temporary, path) < 0)
		rc = -errno;
	if (!rc)
		return 0;
	unlink(temporary);
	return errorf(error, rc, "--out: %.150s: %s", path, strerror(-rc));
}

/* Better to hear of it before the guests are booted than after. */
static int try_out(const struct density *d, char *error)
{
	char path[sizeof d->dir + sizeof d->stem + 16];
	struct stat st;
	snprintf(path, sizeof path, "%s/%s.csv", d->dir, d->stem);
	if (stat(path, &st) == 0 && S_ISDIR(st.st_mode))
		return errorf(error, -EISDIR, "--out: %.150s: %s", path, strerror(EISDIR));
	snprintf(path, sizeof path, "%s/%s.csv.XXXXXX", d->dir, d->stem);
	int fd = mkstemp(path);
	if (fd < 0)
		return errorf(error, -errno, "--out: no file can be made in %.150s: %s", d->dir,
			      strerror(errno));
	close(fd);
	unlink(path);
	return 0;
}

int density_out(struct density *d, char *error)
{
	const char *out = d->options.out, *slash = strrchr(out, '/'), *stem = "density";
	struct stat st;
	size_t n = strlen(out);
	if (!(stat(out, &st) == 0 && S_ISDIR(st.st_mode))) {
		stem = slash ? slash + 1 : out;
		n = slash ? (size_t)(slash - out) + (slash == out) : 0;
	}
	if (!*stem)
		stem = "density"; /* of a directory that doesn't exist, as will be told */
	if (n >= sizeof d->dir || strlen(stem) >= sizeof d->stem)
		return errorf(error, -ENAMETOOLONG, "--out: %.80s...: name too long", out);
	snprintf(d->dir, sizeof d->dir, "%.*s", n ? (int)n : 1, n ? out : ".");
	snprintf(d->stem, sizeof d->stem, "%s", stem);
	if (stat(d->dir, &st) < 0)
		return errorf(error, -errno, "--out: %.150s: %s", d->dir, strerror(errno));
	if (!S_ISDIR(st.st_mode))
		return errorf(error, -ENOTDIR, "--out: %.150s: %s", d->dir, strerror(ENOTDIR));
	return try_out(d, error);
}
