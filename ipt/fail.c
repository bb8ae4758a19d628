/* Failpoints: the area that processes share, and what happens where one is set. See fail.h. */
#include "ipt/fail_private.h"
#include "ipt/own.h"
#include "ipt/sealed.h"
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PROGRAM_WORDS (sizeof(struct fail_program) / sizeof(uint64_t))
_Static_assert(sizeof(struct fail_program) % sizeof(uint64_t) == 0, "copied by words");

struct slot {
	_Atomic uint32_t sequence; /* odd: being written */
	_Atomic uint64_t program[PROGRAM_WORDS];
	_Atomic uint64_t hits, fired;
	/* Beside a program, since all count: what is left of a term's count, with the program's generation in the upper
	 * half; and how often the term was reached. */
	_Atomic uint64_t left[FAIL_TERMS], reached[FAIL_TERMS];
	char text[FAIL_TEXT_MAX]; /* the setter's alone */
};

struct fail_area {
	struct fail_armed_words armed; /* first: fail_armed reads it by the area's address */
	_Atomic uint64_t seed;
	_Alignas(64) struct slot slot[FAIL_IDS];
} __attribute__((aligned(4096)));
_Static_assert(sizeof(struct fail_area) % 4096 == 0, "a mapping can take its place");

/* Plain memory until fail_share; a process that never sets anything touches one page of it. */
struct fail_area fail_area;

static OWN struct {
	enum fail_role role;
	char name[FAIL_NAME_MAX];
} self;

static const struct fail_about abouts[FAIL_IDS] = {
#define ABOUT(id, called, is, usually, about) \
	[FAIL_##id] = {.name = called, .what = about, .kind = FAIL_##is, .usual = usually},
	FAIL_POINTS(ABOUT)
#undef ABOUT
};

const struct fail_about *fail_about(enum fail_id id)
{
	return &abouts[id];
}

void fail_be(enum fail_role role, const char *name)
{
	self.role = role;
	snprintf(self.name, sizeof self.name, "%s", name ? name : "");
}

/* ---- setting -------------------------------------------------------------------------------- */

/* Others have it by this descriptor; -1: nobody has. */
static int area_fd = -1;

/* What is mapped at `at` takes the area's place, which processes that were forked before have for themselves. */
static int put_in_place(struct fail_area *at, int fd)
{
	if (mremap(at, sizeof fail_area, sizeof fail_area, MREMAP_MAYMOVE | MREMAP_FIXED,
		   &fail_area) == MAP_FAILED) {
		int rc = -errno;
		munmap(at, sizeof fail_area);
		return rc;
	}
	area_fd = fd;
	return 0;
}

static int share_by(int fd)
{
	static char kept[offsetof(struct fail_area, slot)];
	struct fail_area *new = sealed_map(fd, sizeof fail_area);
	if (!new)
		return -errno;
	/* What is set already is few. */
	memcpy(kept, &fail_area, sizeof kept);
	memcpy(new, kept, sizeof kept);
	for (unsigned i = 0; i < FAIL_IDS; i++)
		if (atomic_load_explicit(&fail_area.slot[i].sequence, memory_order_relaxed))
			memcpy(&new->slot[i], &fail_area.slot[i], sizeof new->slot[i]);
	return put_in_place(new, fd);
}

int fail_share(void)
{
	if (area_fd >= 0)
		return 0;
	int fd = sealed_memfd("invisor-fail", sizeof fail_area);
	int rc = fd < 0 ? -errno : share_by(fd);
	if (rc && fd >= 0)
		close(fd);
	return rc;
}

int fail_fd(void)
{
	return area_fd;
}

uint32_t fail_bytes(void)
{
	return sizeof fail_area;
}

static void arm(enum fail_id id, bool on)
{
	uint64_t bit = UINT64_C(1) << (id % 64), *word = &fail_area.armed.word[id / 64];
	if (on)
		__atomic_fetch_or(word, bit, __ATOMIC_RELEASE);
	else
		__atomic_fetch_and(word, ~bit, __ATOMIC_RELEASE);
}

static void store(enum fail_id id, const struct fail_program *p, const char *text)
{
	struct slot *s = &fail_area.slot[id];
	uint64_t words[PROGRAM_WORDS];
	uint32_t sequence = atomic_load_explicit(&s->sequence, memory_order_relaxed);
	memcpy(words, p, sizeof words);
	atomic_store_explicit(&s->sequence, sequence + 1, memory_order_relaxed);
	atomic_thread_fence(
		memory_order_release); /* readers that see a new word see the odd count */
	for (size_t i = 0; i < PROGRAM_WORDS; i++)
		atomic_store_explicit(&s->program[i], words[i], memory_order_relaxed);
	for (unsigned i = 0; i < FAIL_TERMS; i++) {
		uint64_t left = i < p->terms ? p->term[i].count : 0;
		atomic_store_explicit(&s->left[i], (uint64_t)p->generation << 32 | left,
				      memory_order_relaxed);
		atomic_store_explicit(&s->reached[i], 0, memory_order_relaxed);
	}
	if (p->terms) { /* what was counted can be read after it is off */
		atomic_store_explicit(&s->hits, 0, memory_order_relaxed);
		atomic_store_explicit(&s->fired, 0, memory_order_relaxed);
	}
	snprintf(s->text, sizeof s->text, "%s", text);
	atomic_store_explicit(&s->sequence, sequence + 2, memory_order_release);
	arm(id, p->terms > 0);
}

static uint32_t next_generation(enum fail_id id)
{
	return atomic_load_explicit(&fail_area.slot[id].sequence, memory_order_relaxed) / 2 + 1;
}

int fail_set(enum fail_id id, const char *program, char *words)
{
	struct fail_program p;
	int rc = fail_parse(id, program, &p, words);
	if (rc)
		return rc;
	p.generation = next_generation(id);
	store(id, &p, p.terms ? program : "off");
	return 0;
}

int fail_check(enum fail_id id, const char *program, char *words)
{
	struct fail_program p;
	return fail_parse(id, program, &p, words);
}

void fail_clear(void)
{
	for (unsigned i = 0; i < FAIL_IDS; i++) {
		struct fail_program off = {.generation = next_generation((enum fail_id)i)};
		if (fail_armed((enum fail_id)i))
			store((enum fail_id)i, &off, "off");
	}
}

void fail_seed(uint64_t seed)
{
	char words[FAIL_WORDS_MAX], text[FAIL_TEXT_MAX];
	atomic_store_explicit(&fail_area.seed, seed, memory_order_relaxed);
	for (unsigned i = 0; i < FAIL_IDS; i++)
		if (fail_armed((enum fail_id)i)) {
			memcpy(text, fail_area.slot[i].text, sizeof text);
			fail_set((enum fail_id)i, text, words);
		}
}

uint64_t fail_seed_now(void)
{
	return atomic_load_explicit(&fail_area.seed, memory_order_relaxed);
}

void fail_read(enum fail_id id, struct fail_state *out)
{
	struct slot *s = &fail_area.slot[id];
	snprintf(out->program, sizeof out->program, "%s", *s->text ? s->text : "off");
	out->hits = atomic_load_explicit(&s->hits, memory_order_relaxed);
	out->fired = atomic_load_explicit(&s->fired, memory_order_relaxed);
}

/* Nothing is set there; whoever was about to set it is dead. */
static void begin_anew(enum fail_id id)
{
	struct slot *s = &fail_area.slot[id];
	uint32_t sequence = atomic_load_explicit(&s->sequence, memory_order_relaxed);
	atomic_store_explicit(&s->sequence, sequence + (sequence & 1), memory_order_relaxed);
	store(id, &(struct fail_program){.generation = next_generation(id)}, "off");
	atomic_store_explicit(&s->hits, 0, memory_order_relaxed);
	atomic_store_explicit(&s->fired, 0, memory_order_relaxed);
}

int fail_take(int fd)
{
	struct stat st;
	char words[FAIL_WORDS_MAX];
	if (fstat(fd, &st) < 0)
		return -errno;
	if (st.st_size != sizeof fail_area)
		return -EPROTO;
	struct fail_area *old = sealed_map(fd, sizeof fail_area);
	char(*set)[FAIL_TEXT_MAX] = calloc(FAIL_IDS, sizeof *set);
	if (!old || !set) {
		int rc = -errno;
		if (old)
			munmap(old, sizeof *old);
		free(set);
		return rc;
	}
	for (unsigned i = 0; i < FAIL_IDS; i++)
		if (fail_armed((enum fail_id)i))
			memcpy(set[i], fail_area.slot[i].text, sizeof *set);
	uint64_t seed = fail_seed_now();
	int was = area_fd, rc = put_in_place(old, fd);
	for (unsigned i = 0; !rc && i < FAIL_IDS; i++)
		begin_anew((enum fail_id)i);
	if (!rc)
		fail_seed(seed);
	for (unsigned i = 0; !rc && i < FAIL_IDS; i++)
		if (*set[i])
			fail_set((enum fail_id)i, set[i], words);
	if (!rc && was >= 0)
		close(was);
	free(set);
	return rc;
}

/* ---- happening ------------------------------------------------------------------------------ */

/* False: it is being written, and stays so; who wrote it must be dead. */
static bool load(struct slot *s, struct fail_program *out)
{
	for (int tries = 0; tries < 1000; tries++) {
		uint64_t words[PROGRAM_WORDS];
		uint32_t before = atomic_load_explicit(&s->sequence, memory_order_acquire);
		if (before & 1) {
			sched_yield();
			continue;
		}
		for (size_t i = 0; i < PROGRAM_WORDS; i++)
			words[i] = atomic_load_explicit(&s->program[i], memory_order_relaxed);
		atomic_thread_fence(memory_order_acquire); /* the words before the count again */
		if (atomic_load_explicit(&s->sequence, memory_order_relaxed) == before) {
			memcpy(out, words, sizeof words);
			return true;
		}
	}
	return false;
}

static bool is_for_us(const struct fail_term *t)
{
	if (t->role == FAIL_ANYONE)
		return true;
	if (t->role == FAIL_PID)
		return t->pid == (uint32_t)getpid();
	return t->role == self.role && (!*t->name || !strcmp(t->name, self.name));
}

/* The finalizer of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014). */
static uint64_t mix(uint64_t x)
{
	x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
	return x ^ x >> 31;
}

/* By the name, so that a failpoint more or less in the list changes nothing for the others. */
static bool chance(enum fail_id id, unsigned term, uint64_t n, uint32_t parts)
{
	uint64_t h = fail_seed_now();
	if (parts >= FAIL_ALWAYS)
		return true;
	for (const char *c = abouts[id].name; *c; c++)
		h = mix(h + (uint8_t)*c);
	h = mix(mix(h + term) + n * UINT64_C(0x9e3779b97f4a7c15));
	return h % FAIL_ALWAYS < parts;
}

/* Take one of a term's count. */
static bool take(struct slot *s, unsigned term, const struct fail_program *p)
{
	uint64_t left = atomic_load_explicit(&s->left[term], memory_order_relaxed);
	if (p->term[term].count == FAIL_NO_COUNT)
		return true;
	do
		if (left >> 32 != p->generation || !(uint32_t)left)
			return false;
	while (!atomic_compare_exchange_weak_explicit(&s->left[term], &left, left - 1,
						      memory_order_relaxed, memory_order_relaxed));
	return true;
}

/* One write, so that lines of several processes don't mix. */
static void say(enum fail_id id, const char *what, uint64_t hit)
{
	char line[160], thread[16] = "";
	prctl(PR_GET_NAME, thread);
	int n = snprintf(line, sizeof line, "invisor: failpoint %s: %s at hit %llu, in %s (%d)\n",
			 abouts[id].name, what, (unsigned long long)hit, thread, (int)getpid());
	if (write(STDERR_FILENO, line, (size_t)n) < 0)
		return; /* nobody reads it */
}

static uint64_t now_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* Until then, or until something else is set there. */
static void wait_until(struct slot *s, uint32_t generation, uint64_t ms)
{
	for (uint64_t now; (now = now_ms()) < ms;) {
		if (atomic_load_explicit(&s->sequence, memory_order_relaxed) / 2 != generation)
			return;
		uint64_t step = ms - now < 10 ? ms - now : 10;
		nanosleep(&(struct timespec){.tv_nsec = (long)step * 1000000}, NULL);
	}
}

static _Noreturn void die(void)
{
	kill(getpid(), SIGKILL); /* nothing of the process runs after that */
	abort();                 /* where it may not send signals */
}

/* 0, or what fail_hit returns. *more: the next term has its turn. */
static int act(enum fail_id id, const struct fail_program *p, const struct fail_term *t,
	       uint64_t hit, bool *more)
{
	struct slot *s = &fail_area.slot[id];
	switch ((enum fail_action)t->action) {
	case FAIL_RETURN:
		return t->argument ? t->argument : FAIL_NOTHING;
	case FAIL_SLEEP:
		wait_until(s, p->generation, now_ms() + (uint64_t)t->argument);
		break;
	case FAIL_PAUSE:
		wait_until(s, p->generation, UINT64_MAX);
		break;
	case FAIL_DELAY:
		for (uint64_t end = now_ms() + (uint64_t)t->argument; now_ms() < end;)
			;
		break;
	case FAIL_YIELD:
		sched_yield();
		break;
	case FAIL_PRINT:
		say(id, "print", hit);
		*more = t->argument;
		break;
	case FAIL_PANIC:
		say(id, "panic", hit);
		die();
	case FAIL_OFF:
	case FAIL_ACTIONS:
		break;
	}
	return 0;
}

int fail_hit(enum fail_id id)
{
	struct slot *s = &fail_area.slot[id];
	struct fail_program p;
	int saved = errno, value = 0;
	bool more = load(s, &p);
	if (!more || !p.terms)
		return 0;
	uint64_t hit = atomic_fetch_add_explicit(&s->hits, 1, memory_order_relaxed) + 1;
	for (unsigned i = 0; more && i < p.terms && i < FAIL_TERMS; i++) {
		const struct fail_term *t = &p.term[i];
		if (!is_for_us(t))
			continue;
		uint64_t n = atomic_fetch_add_explicit(&s->reached[i], 1, memory_order_relaxed);
		if (!chance(id, i, n, t->chance) || !take(s, i, &p))
			continue;
		more = false;
		if (t->action != FAIL_OFF)
			atomic_fetch_add_explicit(&s->fired, 1, memory_order_relaxed);
		value = act(id, &p, t, hit, &more);
	}
	errno = saved;
	return value;
}
