/* The grammar of failpoints' programs, by hand: see fail.h and docs/FAULTS.md. */
#include "ipt/fail_private.h"
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

struct parser {
	const char *name, *text, *at;
	char *words;
	const struct fail_about *about;
};

static const char *const actions[FAIL_ACTIONS] = {
	[FAIL_OFF] = "off",     [FAIL_RETURN] = "return", [FAIL_SLEEP] = "sleep",
	[FAIL_DELAY] = "delay", [FAIL_YIELD] = "yield",   [FAIL_PAUSE] = "pause",
	[FAIL_PRINT] = "print", [FAIL_PANIC] = "panic",
};

#define DIGITS  "0123456789"
#define LETTERS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

__attribute__((format(printf, 2, 3))) static int wrong(struct parser *p, const char *format, ...)
{
	int n = snprintf(p->words, FAIL_WORDS_MAX, "%s: '%.60s': at character %d: ", p->name,
			 p->text, (int)(p->at - p->text) + 1);
	va_list args;
	va_start(args, format);
	vsnprintf(p->words + n, (size_t)(FAIL_WORDS_MAX - n), format, args);
	va_end(args);
	return -EINVAL;
}

static bool eat(struct parser *p, const char *what)
{
	size_t n = strlen(what);
	if (strncmp(p->at, what, n))
		return false;
	p->at += n;
	return true;
}

/* A whole number up to `most`. */
static int number(struct parser *p, uint32_t most, uint32_t *out)
{
	uint64_t n = 0;
	const char *from = p->at;
	for (; *p->at >= '0' && *p->at <= '9'; p->at++)
		if ((n = n * 10 + (uint64_t)(*p->at - '0')) > most) {
			p->at = from;
			return wrong(p, "more than %u", most);
		}
	if (p->at == from)
		return wrong(p, "a number is missing");
	*out = (uint32_t)n;
	return 0;
}

/* "12.5" of "12.5%", as parts of FAIL_ALWAYS. */
static int percent(struct parser *p, uint32_t *chance)
{
	uint32_t whole, unit = FAIL_ALWAYS / 1000;
	const char *from = p->at;
	int rc = number(p, 100, &whole);
	if (rc)
		return rc;
	*chance = whole * (FAIL_ALWAYS / 100);
	if (eat(p, "."))
		for (; *p->at >= '0' && *p->at <= '9'; p->at++, unit /= 10)
			*chance += (uint32_t)(*p->at - '0') *
				   unit; /* digits beyond the last part count nothing */
	if (*chance > FAIL_ALWAYS) {
		p->at = from;
		return wrong(p, "more than 100 %%");
	}
	return eat(p, "%") ? 0 : wrong(p, "'%%' is missing");
}

static int modifiers(struct parser *p, struct fail_term *t)
{
	size_t n = strspn(p->at, DIGITS ".");
	int rc = 0;
	if (n && p->at[n] == '%') {
		rc = percent(p, &t->chance);
		n = strspn(p->at, DIGITS);
	}
	if (rc || !n)
		return rc;
	rc = number(p, FAIL_NO_COUNT - 1, &t->count);
	if (!rc && !eat(p, "*"))
		rc = wrong(p, "'*' or '%%' is missing behind the number");
	return rc;
}

static int errno_of(struct parser *p, int32_t *out)
{
	size_t n = strspn(p->at, LETTERS DIGITS);
	uint32_t value;
	if (n && *p->at <= '9') {
		const char *from = p->at;
		int rc = number(p, 4095, &value);
		if (!rc && !value) {
			p->at = from;
			rc = wrong(p, "an errno is from 1 on");
		}
		*out = (int32_t)value;
		return rc;
	}
	for (int e = 1; e < 4096 && n; e++) {
		const char *name = strerrorname_np(e);
		if (name && strlen(name) == n && !strncmp(name, p->at, n)) {
			p->at += n;
			*out = e;
			return 0;
		}
	}
	return wrong(p, "'%.*s' is no errno, such as ENOMEM or 12", (int)(n < 20 ? n : 20), p->at);
}

static int argument(struct parser *p, struct fail_term *t)
{
	uint32_t n = 0, most = t->action == FAIL_SLEEP   ? FAIL_SLEEP_MAX
			       : t->action == FAIL_DELAY ? FAIL_DELAY_MAX
			       : t->action == FAIL_PRINT ? 1
							 : INT32_MAX;
	bool is_return = t->action == FAIL_RETURN;
	int rc = 0;
	bool open = eat(p, "(");
	if (is_return && p->about->kind == FAIL_STEP)
		return wrong(p,
			     "nothing is returned at this point; panic, sleep, pause or print go");
	if (!open || *p->at == ')') {
		t->argument = !is_return ? 0 : p->about->kind == FAIL_DEATH ? 1 : p->about->usual;
		if (t->action == FAIL_SLEEP || t->action == FAIL_DELAY)
			return wrong(p, "(milliseconds) are missing");
	} else if (is_return && p->about->kind == FAIL_DEATH) {
		return wrong(p, "return takes no argument at this point");
	} else if (is_return && p->about->kind != FAIL_BYTES) {
		rc = errno_of(p, &t->argument);
	} else if (is_return || t->action == FAIL_SLEEP || t->action == FAIL_DELAY ||
		   t->action == FAIL_PRINT) {
		rc = number(p, most, &n);
		t->argument = (int32_t)n;
	} else {
		return wrong(p, "%s takes no argument", actions[t->action]);
	}
	if (rc)
		return rc;
	return !open || eat(p, ")") ? 0 : wrong(p, "')' is missing");
}

static int action(struct parser *p, struct fail_term *t)
{
	size_t n = strspn(p->at, LETTERS);
	for (uint32_t i = 0; i < FAIL_ACTIONS; i++)
		if (strlen(actions[i]) == n && !strncmp(p->at, actions[i], n)) {
			p->at += n;
			t->action = i;
			return argument(p, t);
		}
	return n ? wrong(p,
			 "'%.*s' is no action: off, return, sleep, delay, yield, pause, print, "
			 "panic",
			 (int)(n < 20 ? n : 20), p->at)
		 : wrong(p, "an action is missing: off, return, sleep, delay, yield, pause, print, "
			    "panic");
}

static int who(struct parser *p, struct fail_term *t)
{
	if (!eat(p, "["))
		return 0;
	if (eat(p, "host")) {
		t->role = FAIL_HOST;
	} else if (eat(p, "merger")) {
		t->role = FAIL_MERGER;
	} else if (eat(p, "reclaimer")) {
		t->role = FAIL_RECLAIMER;
	} else if (eat(p, "pid ")) {
		int rc = number(p, INT32_MAX, &t->pid);
		t->role = FAIL_PID;
		if (rc)
			return rc;
	} else if (eat(p, "vm ")) {
		size_t n = strcspn(p->at, "]");
		t->role = FAIL_VM;
		if (!n || n >= sizeof t->name)
			return wrong(p, "no name of a VM");
		memcpy(t->name, p->at, n);
		p->at += n;
	} else if (eat(p, "vm")) {
		t->role = FAIL_VM;
	} else {
		return wrong(p, "none of [host], [merger], [reclaimer], [vm], [vm NAME], [pid N]");
	}
	return eat(p, "]") ? 0 : wrong(p, "']' is missing");
}

int fail_parse(enum fail_id id, const char *text, struct fail_program *out, char *words)
{
	struct parser p = {.name = fail_about(id)->name,
			   .text = text,
			   .at = text,
			   .words = words,
			   .about = fail_about(id)};
	*out = (struct fail_program){.terms = 0};
	if (strlen(text) >= FAIL_TEXT_MAX)
		return wrong(&p, "longer than %d characters", FAIL_TEXT_MAX - 1);
	do {
		if (out->terms == FAIL_TERMS)
			return wrong(&p, "more than %d terms", FAIL_TERMS);
		struct fail_term *t = &out->term[out->terms++];
		*t = (struct fail_term){.chance = FAIL_ALWAYS, .count = FAIL_NO_COUNT};
		int rc = modifiers(&p, t);
		if (!rc)
			rc = action(&p, t);
		if (!rc)
			rc = who(&p, t);
		if (rc)
			return rc;
	} while (eat(&p, "->"));
	if (*p.at)
		return wrong(&p, "'->' or the end is expected");
	if (!strcmp(text, "off"))
		out->terms = 0; /* not even counted */
	return 0;
}

/* ---- names ---------------------------------------------------------------------------------- */

/* How many letters apart two names are (Levenshtein), for names up to 32. */
static unsigned distance(const char *a, const char *b)
{
	unsigned row[33];
	size_t n = strlen(b);
	if (n > 32)
		return 99;
	for (unsigned j = 0; j <= n; j++)
		row[j] = j;
	for (unsigned i = 1; a[i - 1]; i++) {
		unsigned diagonal = row[0];
		row[0] = i;
		for (unsigned j = 1; j <= n; j++) {
			unsigned best = diagonal + (a[i - 1] != b[j - 1]);
			diagonal = row[j];
			best = best < row[j] + 1 ? best : row[j] + 1;
			row[j] = best < row[j - 1] + 1 ? best : row[j - 1] + 1;
		}
	}
	return row[n];
}

/* In three rounds: names a few letters apart, those that have the given one in them, and its family. */
static bool alike(const char *given, const char *name, int round)
{
	size_t family = strcspn(name, ".");
	bool near = distance(given, name) <= 3, within = strstr(name, given) != NULL;
	if (round == 0)
		return near;
	if (round == 1)
		return within && !near;
	return strcspn(given, ".") == family && !strncmp(given, name, family) && !near && !within;
}

int fail_find(const char *name, enum fail_id *id, char *words)
{
	static const char all[] = "; invisor fail --list has them all";
	for (unsigned i = 0; i < FAIL_IDS; i++)
		if (!strcmp(fail_about((enum fail_id)i)->name, name)) {
			*id = (enum fail_id)i;
			return 0;
		}
	int n = snprintf(words, FAIL_WORDS_MAX, "'%.40s': there is no such failpoint", name);
	bool some = false;
	for (unsigned k = 0; k < 3 * FAIL_IDS && *name; k++) {
		const char *other = fail_about((enum fail_id)(k % FAIL_IDS))->name;
		if (n > FAIL_WORDS_MAX - 80 || !alike(name, other, (int)(k / FAIL_IDS)))
			continue;
		n += snprintf(words + n, (size_t)(FAIL_WORDS_MAX - n), "%s%s",
			      some ? ", " : "; like it: ", other);
		some = true;
	}
	snprintf(words + n, (size_t)(FAIL_WORDS_MAX - n), "%s", all);
	return -ENOENT;
}

int fail_set_words(const char *text, char *words)
{
	char one[FAIL_NAME_MAX + FAIL_TEXT_MAX];
	for (const char *end; *text; text = end + (*end == ',')) {
		end = text + strcspn(text, ",");
		int n = snprintf(one, sizeof one, "%.*s", (int)(end - text), text);
		char *equals = strchr(one, '=');
		enum fail_id id = FAIL_IDS;
		if (n >= (int)sizeof one || !equals) {
			snprintf(words, FAIL_WORDS_MAX,
				 "'%.60s' is no NAME=PROGRAM, such as window.map=1*return(ENOMEM)",
				 one);
			return -EINVAL;
		}
		*equals = 0;
		int rc = fail_find(one, &id, words);
		if (!rc)
			rc = fail_set(id, equals + 1, words);
		if (rc)
			return rc;
	}
	return 0;
}
