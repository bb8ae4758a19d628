/* `invisor inject`. */
#include "vmm/answer.h"
#include "vmm/cli.h"
#include "vmm/commands.h"
#include "vmm/error.h"
#include "vmm/size.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { JSON };

/* A word NAME=VALUE becomes a member: a number, also as 0x1000 or 64K, or 0.5, else text. */
static int add_word(json_t *o, const char *word, char *error)
{
	const char *equals = strchr(word, '=');
	char key[32], *end;
	uint64_t n;
	if (!equals || equals == word || (size_t)(equals - word) >= sizeof key)
		return errorf(error, -EINVAL, "'%.80s': a word of a fault is NAME=VALUE", word);
	snprintf(key, sizeof key, "%.*s", (int)(equals - word), word);
	for (char *c = key; *c; c++)
		*c = *c == '-' ? '_' : *c;
	const char *value = equals + 1;
	errno = 0;
	long long whole = strtoll(value, &end, 0);
	json_t *v;
	if (*value && !*end && !errno)
		v = json_integer(whole);
	else if (size_parse(value, &n) && n <= INT64_MAX)
		v = json_integer((json_int_t)n);
	else if (strtod(value, &end), *value && !*end)
		v = json_real(strtod(value, NULL));
	else
		v = json_string(value);
	if (!v || json_object_get(o, key)) {
		json_decref(v);
		return errorf(error, -EINVAL, "'%.80s': %s", word,
			      v ? "a member that is given twice" : "no UTF-8 text");
	}
	return json_object_set_new(o, key, v) ? errorf(error, -EINVAL, "no UTF-8 text") : 0;
}

static void say_list(const json_t *a)
{
	size_t i;
	json_t *f;
	json_array_foreach(json_object_get(a, "faults"), i, f)
	{
		char *all = json_dumps(f, JSON_COMPACT | JSON_PRESERVE_ORDER);
		printf("%s\n", all ? all : "");
		free(all);
	}
	printf("%lld machine checks; %lld frames of the pool are damaged\n",
	       answer_integer(a, "machine_checks"), answer_integer(a, "bad_frames"));
}

static void say(const json_t *a)
{
	size_t i;
	json_t *name;
	const char *words = json_string_value(json_object_get(a, "words"));
	const json_t *seen = json_object_get(a, "seen_by");
	if (json_object_get(a, "faults")) {
		say_list(a);
		return;
	}
	printf("%s%s%s", answer_text(a, "outcome"), words && *words ? ": " : "",
	       words ? words : "");
	if (json_object_get(a, "id"))
		printf(" (number %lld)", answer_integer(a, "id"));
	if (json_array_size(seen)) {
		printf("; seen by");
		json_array_foreach(seen, i, name) printf(" %s", json_string_value(name));
	}
	printf("\n");
}

int command_inject(int argc, char **argv)
{
	static const struct cli_spec spec = {
		.command = "inject",
		.usage = "usage: invisor inject [--json] [--host SOCKET] VM FAULT [NAME=VALUE]...\n"
			 "Let something go wrong for a guest (docs/FAULTS.md), for who tests it:\n"
			 "  memory gpa=ADDRESS         the page's frame is damaged: its bytes are "
			 "lost, and "
			 "who sees it\n"
			 "                             gets a machine check when he touches it, "
			 "unless a "
			 "file has them\n"
			 "  memory frame=N             a frame of the pool, whoever has it (VM is "
			 "all "
			 "then)\n"
			 "  notice gpa=ADDRESS         the guest is told that the page's memory is "
			 "bad, before it\n"
			 "                             touches it\n"
			 "  disk error=EIO             requests fail; or latency_ms=N, they come "
			 "late; or "
			 "torn=N, of a\n"
			 "                             write only N sectors reach the file (and "
			 "error=EIO "
			 "tells so).\n"
			 "                             disk=N, from=BYTE, bytes=N, "
			 "on=read,write,flush, "
			 "times=N,\n"
			 "                             probability=0..1, seed=N\n"
			 "  irq device=disk0 drop=N    interrupts of a virtio device are lost; or "
			 "delay_ms=N, late\n"
			 "                             (times=N): console, rng, agent, balloon, "
			 "disk0 "
			 "..., pmem0 ...\n"
			 "  stall ms=N                 a vCPU stays out of the guest (vcpu=N)\n"
			 "  clock jump_ms=N            the guest's clocks jump, back too\n"
			 "  power-cut                  the VM ends at once, with nothing flushed; "
			 "of "
			 "disks with\n"
			 "                             cache=volatile lose=all, none or random of "
			 "what "
			 "the guest\n"
			 "                             did not flush (random: seed=N)\n"
			 "  list                       what is armed, and how often it happened\n"
			 "  clear                      nothing is armed any more\n",
		.flag = {[JSON] = "json"},
		.least = 2,
		.most = 16,
		.operands = "takes a VM's name, a fault, and words NAME=VALUE"};
	struct cli c;
	char error[ERROR_MAX], words[ERROR_MAX + 16];
	int status = cli_parse(&c, &spec, argc, argv);
	if (status >= 0)
		return status;
	bool all = !strcmp(c.operand[0], "all");
	json_t *request = all ? json_pack("{s:s, s:s}", "do", "inject", "fault", c.operand[1])
			      : json_pack("{s:s, s:s, s:s}", "do", "inject", "vm", c.operand[0],
					  "fault", c.operand[1]);
	for (int i = 2; request && i < c.operands; i++)
		if (add_word(request, c.operand[i], error)) {
			json_decref(request);
			snprintf(words, sizeof words, "inject: %s", error);
			return cli_fail(words);
		}
	return cli_ask(&c, request, c.value[JSON], say);
}
