#include "guest/bare/end.h"
#include "guest/bare/board.h"
#include "guest/bare/console.h"
#include "guest/bare/cpu.h"
#include "guest/bare/idle.h"
#include "guest/bare/team.h"
#include "guest/bare/text.h"
#include "guest/bare/words.h"
#include "vmm/machine.h"
#include <stdatomic.h>

static atomic_flag ending = ATOMIC_FLAG_INIT;

static void park(void)
{
	team_rest();
	for (;;)
		idle_wait();
}

static void spin(void)
{
	for (;;)
		cpu_pause();
}

static void claim(void)
{
	if (atomic_flag_test_and_set(&ending))
		spin();
}

static _Noreturn void finish(uint64_t how)
{
	console_drain();
	switch (how) {
	case END_OFF: /* ACPI 6.4, 4.8.3.7: SLP_TYP in bits 2 to 4, SLP_EN bit 5 */
		cpu_out8(MACHINE_SLEEP_PORT, MACHINE_SLEEP_S5 << 2 | 1 << 5);
		break;
	case END_REBOOT:
		cpu_out8(MACHINE_RESET_PORT, MACHINE_RESET_VALUE);
		break;
	case END_TRIPLE: /* no gate: the fault can't be delivered, nor the next */
		__asm__ volatile("ud2");
		break;
	case END_HALT: /* privileged, so a general protection fault with the same end */
		__asm__ volatile("hlt");
		break;
	case END_PARK:
		park();
		break;
	case END_WILD: /* code in a device's registers: KVM can't run that */
		((void (*)(void))machine_mmio_base(board.bank[0].bytes))();
		break;
	}
	spin();
	__builtin_unreachable();
}

void end_fail(const char *format, ...)
{
	char line[CONSOLE_LINE_MAX - 8];
	va_list args;
	claim();
	va_start(args, format);
	text_format(line, sizeof line, format, args);
	va_end(args);
	console_say("FAIL %s", line);
	finish(END_OFF);
}

void end_done(uint64_t how)
{
	claim();
	console_say("DONE");
	finish(how);
}
