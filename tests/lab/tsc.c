/*
 * Prints the frequency of this machine's TSC in kHz. An emulated CPU of QEMU's TCG has the TSC of the machine, but
 * its kernel would have to measure the frequency against emulated timers: on a busy machine it has been wrong by a
 * factor of two, and with it every clock and timeout in the lab. tests/lab/run tells the kernel instead.
 */
#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

#define MEASURE_NS 20000000 /* jitter of a reading is some 100 ns: far better than 0.1 % */

static int64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC_RAW, &t);
	return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

/* A moment on both clocks; of several tries the one that was interrupted least. */
static void read_both(int64_t *ns, int64_t *tsc)
{
	int64_t best = INT64_MAX;

	for (int try = 0; try < 50; try++) {
		int64_t before = (int64_t)__rdtsc(), t = now_ns(), after = (int64_t)__rdtsc();

		if (after - before < best) {
			best = after - before;
			*ns = t;
			*tsc = before + best / 2;
		}
	}
}

int main(void)
{
	struct timespec pause = {.tv_nsec = MEASURE_NS};
	int64_t ns[2], tsc[2];

	read_both(&ns[0], &tsc[0]);
	nanosleep(&pause, NULL);
	read_both(&ns[1], &tsc[1]);
	printf("%lld\n", (long long)((double)(tsc[1] - tsc[0]) * 1e6 / (double)(ns[1] - ns[0])));
	return 0;
}
