/* How a VM ends: vCPUs stopped, devices' I/O finished, the last numbers and the end in words for the host; or at once. */
#include "vmm/container.h"
#include "vmm/vm.h"
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#define STOP_MS  200  /* how long a vCPU gets to leave the guest */
#define FLUSH_MS 1000 /* how long the host gets to take the last console bytes */

static void note_end(struct vm *vm, enum vm_end end, const char *words)
{
	struct mailbox *mb = vm->links.mailbox;
	snprintf(mb->words, sizeof mb->words, "%s", words);
	atomic_store_explicit(&mb->end, end, memory_order_release);
}

/* Stops everything while the loop still runs, since devices finish their I/O on it. */
static void *ender(void *arg)
{
	struct vm *vm = arg;
	vcpu_stop_all(vm, STOP_MS);
	vm_sample(vm);
	inject_end(vm);
	board_destroy(vm);
	board_flush(vm, FLUSH_MS);
	loop_stop(vm->loop);
	return NULL;
}

static void begin_ending(struct loop_work *w)
{
	struct vm *vm = container(struct vm, ending, w);
	pthread_t t;
	if (pthread_create(&t, NULL, ender, vm))
		loop_stop(vm->loop); /* no thread to drain with: end all the same */
}

void vm_end_init(struct vm *vm)
{
	vm->ending.run = begin_ending;
}

void vm_end(struct vm *vm, enum vm_end end, const char *format, ...)
{
	if (atomic_exchange_explicit(&vm->ended, true, memory_order_acq_rel))
		return;
	char words[MAILBOX_WORDS];
	va_list args;
	va_start(args, format);
	vsnprintf(words, sizeof words, format, args);
	va_end(args);
	note_end(vm, end, words);
	atomic_store_explicit(&vm->stopping, true, memory_order_release);
	loop_post(vm->loop, &vm->ending);
}

_Noreturn void vm_leave(struct vm *vm, enum vm_end end, const char *words)
{
	note_end(vm, end, words);
	vm_set_state(vm, VM_ENDED);
	_exit(1);
}

_Noreturn void vm_give_up(struct vm *vm, const char *words)
{
	vm_leave(vm, END_HOST_ERROR, words);
}

_Noreturn void vm_cut_power(struct vm *vm, const char *and)
{
	char words[MAILBOX_WORDS];
	snprintf(words, sizeof words, "its power was cut (an injected fault)%s%s", *and? "; " : "",
		 and);
	vm_leave(vm, END_POWER_CUT, words);
}
