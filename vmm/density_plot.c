/* The plot: a gnuplot script that reads the CSV beside it, and gnuplot run on it. */
#include "vmm/density.h"
#include <errno.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* In gnuplot's single quotes; './' so that a name can't be taken for a command ('<' and '|'). */
static void put_name(FILE *f, const char *stem, const char *end)
{
	fputs("'./", f);
	for (; *stem; stem++)
		fprintf(f, *stem == '\'' ? "''" : "%c", *stem);
	fprintf(f, "%s'", end);
}

static const char tables_panel[] =
	"set title 'Tables for the same mappings'\n"
	"set ylabel 'KiB a guest'\n"
	"set xlabel 'guests'\n"
	"set yrange [0:*]\n"
	"set xrange [-0.6:rows - 0.4]\n"
	"set boxwidth 0.38\n"
	"set style fill solid 0.9 noborder\n"
	"kib(name) = column(name) / 1024.0 / column('guests')\n"
	"plot file using ($0 - 0.2):(kib('ipt_total_bytes')):xtic(stringcolumn('guests')) "
	"with boxes lc rgb '#999999' title 'IPT: other', \\\n"
	"  '' using ($0 - 0.2):(kib('ipt_array_bytes') + kib('ipt_index_bytes') + "
	"kib('ipt_side_bytes') + kib('ipt_slots_bytes')) with boxes lc rgb '#56b4e9' title 'IPT: "
	"side, "
	"slots', \\\n"
	"  '' using ($0 - 0.2):(kib('ipt_array_bytes') + kib('ipt_index_bytes')) "
	"with boxes lc rgb '#009e73' title 'IPT: index', \\\n"
	"  '' using ($0 - 0.2):(kib('ipt_array_bytes')) with boxes lc rgb '#0072b2' "
	"title 'IPT: array', \\\n"
	"  '' using ($0 + 0.2):(kib('radix_and_reverse_bytes')) with boxes lc rgb '#e69f00' "
	"title 'radix: reverse map', \\\n"
	"  '' using ($0 + 0.2):(kib('radix_tables_bytes')) with boxes lc rgb '#d55e00' "
	"title 'radix: tables'\n";

static const char host_panel[] =
	"set title 'Memory of the host'\n"
	"set ylabel 'MiB a guest'\n"
	"set yrange [*<0:*]\n"
	"mib(name) = column(name) / 1024.0\n"
	"plot file using 0:(mib('ipt_run_host_parts_per_guest_kib')):xtic(stringcolumn('guests')) "
	"with linespoints lw 2 pt 7 lc rgb '#0072b2' title 'IPT, sum of parts', \\\n"
	"  '' using 0:(mib('ipt_run_host_available_per_guest_kib')) "
	"with linespoints lw 2 dt 2 pt 6 lc rgb '#0072b2' title 'IPT, MemAvailable'";

static const char host_panel_radix[] =
	", \\\n"
	"  '' using 0:(mib('radix_run_host_parts_per_guest_kib')) "
	"with linespoints lw 2 pt 5 lc rgb '#d55e00' title 'radix, sum of parts', \\\n"
	"  '' using 0:(mib('radix_run_host_available_per_guest_kib')) "
	"with linespoints lw 2 dt 2 pt 4 lc rgb '#d55e00' title 'radix, MemAvailable'";

static int write_script(const struct density *d, const char *path, char *error)
{
	bool radix = false;
	for (unsigned i = 0; i < d->rows; i++)
		radix = radix || d->row[i].radix.measured;
	FILE *f = fopen(path, "we");
	if (!f)
		return errorf(error, -errno, "--out: %.150s: %s", path, strerror(errno));
	fprintf(f, "# Made by invisor density; run gnuplot on it in its own directory.\n"
		   "set terminal svg size 1100,480 dynamic background rgb 'white' font "
		   "'sans-serif,13'\nset output ");
	put_name(f, d->stem, ".svg");
	fputs("\nfile = ", f);
	put_name(f, d->stem, ".csv");
	fprintf(f,
		"\nrows = %u\nset datafile separator comma\nset datafile columnheaders\n"
		"set key outside below\nset grid ytics lc rgb '#dddddd'\nset multiplot layout "
		"1,2\n",
		d->rows);
	fputs(tables_panel, f);
	fputs(host_panel, f);
	fprintf(f, "%s\nunset multiplot\n", radix ? host_panel_radix : "");
	bool bad = ferror(f);
	if (fclose(f) || bad)
		return errorf(error, -EIO, "--out: %.150s: it can't be written", path);
	return 0;
}

/* Runs in d->dir, with standard output to /dev/null. 0, -errno, or gnuplot's own status. */
static int run_gnuplot(const struct density *d, const char *script)
{
	extern char **environ;
	char *argv[] = {(char *)"gnuplot", (char *)script, NULL};
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attr;
	sigset_t none;
	pid_t pid;
	int status;
	sigemptyset(&none);
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addchdir_np(&actions, d->dir);
	posix_spawnattr_init(&attr);
	posix_spawnattr_setsigmask(&attr, &none); /* the guests' host has Ctrl-C blocked */
	posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK);
	int rc = -posix_spawnp(&pid, argv[0], &actions, &attr, argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	posix_spawnattr_destroy(&attr);
	if (rc)
		return rc;
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return -errno;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int density_plot(const struct density *d, char *error)
{
	char name[sizeof d->stem + 8], path[sizeof d->dir + sizeof name];
	/* The first argument of gnuplot may be an option, or '-' for standard input. */
	snprintf(name, sizeof name, "./%.*s.gp", (int)sizeof d->stem - 1, d->stem);
	snprintf(path, sizeof path, "%s/%s", d->dir, name + 2);
	int rc = write_script(d, path, error);
	if (rc)
		return rc;
	rc = run_gnuplot(d, name);
	if (rc == -ENOENT)
		return errorf(error, 1,
			      "gnuplot isn't installed (package gnuplot-nox), so there is no plot; "
			      "%.120s makes it from the CSV",
			      path);
	if (rc == 0) {
		struct stat st;
		snprintf(path, sizeof path, "%s/%.*s.svg", d->dir, (int)sizeof d->stem - 1,
			 d->stem);
		if (stat(path, &st) == 0 && st.st_size > 0)
			return 0;
		return errorf(error, -EIO, "gnuplot left no %.150s", path);
	}
	snprintf(path, sizeof path, "%s/%.*s.svg", d->dir, (int)sizeof d->stem - 1, d->stem);
	unlink(path); /* half of it at most */
	if (rc < 0)
		return errorf(error, rc, "gnuplot: %s", strerror(-rc));
	return errorf(error, -EIO, "gnuplot ended with status %d; the CSV is written", rc);
}
