#include "vmm/density.h"
#include "vmm/size.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A guest that isn't up after this long won't be; more guests get longer. */
#define TIMEOUT_BASE_SECONDS  120
#define TIMEOUT_GUEST_SECONDS 30

static const char help[] =
	"usage: invisor density [OPTION]...\n"
	"Boot 1, 2, 4 ... guests and measure what they cost the host: the inverted page table\n"
	"beside per-VM radix tables with a reverse map for the same mappings, page tables of the\n"
	"host, memory of a guest whole. Prints tables, writes CSV and a plot (SVG, by gnuplot).\n"
	"\n"
	"      --guests LIST     how many guests at a time: 1,2,4 ... (1,2,4,8)\n"
	"      --mem SIZE        memory of each guest: 64M, 1G ... (256M)\n"
	"      --kernel FILE     bzImage, ELF vmlinux with PVH entry, or bare guest (the made "
	"guest's)\n"
	"      --initrd FILE     initial ramdisk (the made guest's, with the made kernel)\n"
	"      --append STR      words added to the kernel's command line\n"
	"      --cpus N          virtual processors of each guest, 1 to 8 (1)\n"
	"      --pool SIZE       host memory for all guests together (enough for the most guests, "
	"if\n"
	"                        there is)\n"
	"      --out DIR|PREFIX  where density.csv, .gp and .svg go, or PREFIX.csv ... (here)\n"
	"      --clones          boot one guest; the others of a count are clones of it\n"
	"      --quick           only run with the inverted table\n"
	"      --timeout SECONDS for each count of guests to come up (120 and 30 a guest)\n"
	"      --help            this\n"
	"\n"
	"Linux guests stay up with invisor.stay=1 and are measured when they said READY (with\n"
	"--append 'invisor.run=\"...\"': when that command ended, EXIT); bare guests get end=spin "
	"and\n"
	"are measured when they said DONE, or serve where work=serve is among their work. Every "
	"count\n"
	"is run with --table ipt and, unless its guests are clones, with --table radix. "
	"docs/DENSITY.md describes the columns.\n"
	"Exit status: 0 all was measured, 1 a guest failed or the plot couldn't be made, 2 bad "
	"input\n"
	"or too little memory, 3 timeout, 130 Ctrl-C; what was measured by then is written.\n";

static int compare(const void *a, const void *b)
{
	unsigned x = *(const unsigned *)a, y = *(const unsigned *)b;
	return (x > y) - (x < y);
}

static int parse_guests(struct density_options *o, const char *list, char *error)
{
	o->counts = 0;
	for (const char *at = list;; at++) {
		size_t n = strcspn(at, ",");
		char one[8] = "";
		uint64_t count;
		if (n < sizeof one)
			memcpy(one, at, n);
		if (!number_parse(one, 1, RUN_MAX_GUESTS, &count))
			return errorf(error, -EINVAL,
				      "--guests: '%.80s': '%.*s' is no count from 1 to %d", list,
				      n < 40 ? (int)n : 40, at, RUN_MAX_GUESTS);
		if (o->counts == DENSITY_MAX_COUNTS)
			return errorf(error, -EINVAL, "--guests: more than %d counts",
				      DENSITY_MAX_COUNTS);
		o->count[o->counts++] = (unsigned)count;
		at += n;
		if (!*at)
			break;
	}
	qsort(o->count, o->counts, sizeof *o->count, compare);
	unsigned kept = 1;
	for (unsigned i = 1; i < o->counts; i++)
		if (o->count[i] != o->count[kept - 1])
			o->count[kept++] = o->count[i];
	o->counts = kept;
	return 0;
}

static int parse_one(void *ctx, int option, char *value, char *error)
{
	struct density_options *o = ctx;
	switch (option) {
	case 'g':
		return parse_guests(o, value, error);
	case 'o':
		if (!*value || strpbrk(value, "\n\r"))
			return errorf(error, -EINVAL,
				      "--out: '%.80s' names no file; give a directory or a prefix",
				      value);
		o->out = value;
		return 0;
	case 'C':
		o->clones = true;
		return 0;
	case 'q':
		o->quick = true;
		return 0;
	default:
		return options_run_one(&o->run, option, value, error);
	}
}

int density_options_parse(struct density_options *o, int argc, char **argv, char *error)
{
	static const struct option longs[] = {
		{"guests", 1, NULL, 'g'}, {"mem", 1, NULL, 'm'},     {"kernel", 1, NULL, 'k'},
		{"initrd", 1, NULL, 'i'}, {"append", 1, NULL, 'a'},  {"cpus", 1, NULL, 'c'},
		{"pool", 1, NULL, 'p'},   {"out", 1, NULL, 'o'},     {"quick", 0, NULL, 'q'},
		{"help", 0, NULL, 'h'},   {"timeout", 1, NULL, 'T'}, {"clones", 0, NULL, 'C'},
		{NULL, 0, NULL, 0},
	};
	static const struct options_spec spec = {.command = "density",
						 .help = help,
						 .shorts = ":h",
						 .longs = longs,
						 .one = parse_one};
	*o = (struct density_options){
		.run = options_run_defaults, .count = {1, 2, 4, 8}, .counts = 4, .out = "density"};
	int rc = options_parse(&spec, o, argc, argv, error);
	if (rc)
		return rc;
	o->run.count = o->count[o->counts - 1];
	if (!o->run.timeout_seconds)
		o->run.timeout_seconds =
			TIMEOUT_BASE_SECONDS + TIMEOUT_GUEST_SECONDS * (uint64_t)o->run.count;
	return 0;
}
