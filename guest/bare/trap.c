#include "guest/bare/trap.h"
#include "guest/bare/end.h"
#include "vmm/boot.h"
#include <stddef.h>

#define VECTOR      18 /* machine check */
#define LOOK        3  /* int3 */
#define FOR_CPL3    0x60u
#define PRESENT     0x80u
#define GATE        0x0eu /* an interrupt gate, SDM vol. 3A figure 7-8 */
#define TSS_RSP0    4     /* the TSS lies at gpa 0 */
#define STACK_BYTES 1024

struct gate {
	uint16_t offset_0, selector;
	uint8_t stack, type;
	uint16_t offset_16;
	uint32_t offset_32, reserved;
};

extern char trap_entry[]; /* entry.S */

void *trap_back[5];
uint64_t trap_address;          /* written by trap_entry */
volatile uint32_t trap_notices; /* as this */
static bool catching, is_open;
static char stack[STACK_BYTES] __attribute__((aligned(16)));

void trap_open(void)
{
	uint64_t entry = (uint64_t)(uintptr_t)trap_entry,
		 top = (uint64_t)(uintptr_t)(stack + STACK_BYTES);
	struct gate *idt = (struct gate *)(uintptr_t)BOOT_BARE_IDT;
	struct gate g = {.offset_0 = (uint16_t)entry,
			 .selector = BOOT_BARE_CS0,
			 .type = PRESENT | GATE,
			 .offset_16 = (uint16_t)(entry >> 16),
			 .offset_32 = (uint32_t)(entry >> 32)};
	idt[VECTOR] = g;
	g.type |= FOR_CPL3;
	idt[LOOK] = g;
	is_open = true;
	__asm__ volatile("movq %0, %c1" : : "r"(top), "i"(TSS_RSP0) : "memory");
}

void trap_look(void)
{
	if (is_open)
		__asm__ volatile("int3" : : : "memory");
}

void trap_catch(bool on)
{
	catching = on;
}

/* Where trap_entry goes on, in CPL 3 and on the stack of who was stopped; he is given up. */
_Noreturn void trap_landed(void);
void trap_landed(void)
{
	if (catching)
		__builtin_longjmp(trap_back, 1);
	end_fail("a machine check: memory at 0x%lx is lost", trap_address);
}
