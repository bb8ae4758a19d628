/*
 * The bare test guest: one ELF without an operating system, entered by all vCPUs at once in CPL 3
 * (vmm/boot.h, "bare ELF"), so that its work runs natively even where KVM emulates CPL 0. It finds
 * its memory, vCPUs and virtio devices in the device tree and does what the boot arguments say.
 *
 * Its first line is "BARE cpus=N mem=BYTES ...", its last is "DONE" or "FAIL <why>"; after FAIL it
 * always powers off. It touches no memory but its image, its stacks and what a workload asks for.
 *
 * The arguments are words key=value. work= begins a stage; the words after it are for that stage,
 * the words before the first work= for all. work=a,b is two stages with the same words. Stages run
 * one after the other. Numbers are decimal or 0x..., with K, M, G of 1024. A word that is unknown
 * or wrong prints FAIL before anything is done.
 *
 * For the whole run:
 *   console=com1|virtio      where lines go and come from (com1)
 *   end=off|reboot|triple|spin|halt|wild|park
 *                            what comes after DONE: ACPI power-off (off), ACPI reset, ud2 without a
 *                            gate, a loop without end, hlt in CPL 3 (faults, so as triple), a jump
 *                            into device registers (KVM internal error), rest at the idle port
 *   mce=0|1                  1: machine checks are caught, with one vCPU: work that meets lost memory ends
 *                            with FAIL, a command of work=serve with words. 0: the VM ends by shutdown (0)
 *   tsc=HZ                   TSC frequency, else /cpus/timebase-frequency, else CPUID, else a guess
 *
 * For all workloads:
 *   smp=0|1                  1: all vCPUs, each in a slice of its own (0: vCPU 0, the others wait)
 *
 * The memory workloads' region:
 *   base=GPA                 where it begins (4 MiB, or the next 2 MiB boundary above the image)
 *   pages=N or mem=SIZE      how long it is (all memory from base on)
 *   order=seq|rand seed=S    in address order or a permutation that S chooses (seq, 1)
 *
 * work=touch                 an 8-byte store in each page; a line with the cycles of every pass
 *   passes=K write=0|1       how often (1); 0: loads (1)
 * work=pattern               fills pages with words that depend on (seed + pass, page, word), reads back
 *   passes=K seconds=T       how often (1), or until T seconds are over, then without a line a pass
 *   words=W                  words used of a page, 1 to 512, rounded up to a power of 2 (512)
 *   distinct=D               only D different pages (all different)
 *   verify-only=1            reads only: memory must hold pass 0 of the same words
 * work=zero                  all words of the region read as 0
 * work=dirty                 random writes, each counted in its page; all counts verified
 *   set=M ratio=90/10        90 % of them go to the first M pages of the order (a tenth of them), the
 *                            rest to any page
 *   rounds=R writes=N        R measured rounds (1) of N writes (as many as pages)
 *   init=0|1                 0: memory is zero already, so only what is written is touched (1)
 * work=check                 fills pages with words that depend on (seed, version, page, word), then visits pages at
 *                            random and verifies them; a line each second, all pages verified in the end
 *   seconds=T                until T seconds after it began to fill them (1)
 *   set=M ratio=90/10        90 % of visits go to the first M pages of the order (a tenth of them), the
 *                            rest to the others
 *   words=W writes=N         words used of a page, as for pattern; one visit in N makes new contents (8)
 * work=cpu   loops=N         arithmetic only (100000000)
 * work=idle  seconds=T       pause until T seconds are over (1)
 * work=smp   loops=N         all vCPUs check in and add to common words (100000; at most 1000000)
 * work=disk                  virtio-blk; prints capacity, offered features and serial
 *   disk=K                   the K-th block device by address, from 0 (0)
 *   mode=rw|write|verify|ro|discard|zeroes|flush|info
 *                            rw: write, flush, read back, and requests past the end are refused;
 *                            write: write, flush (not with flush=0);
 *                            ro: the device says read-only, reads, and refuses writes;
 *                            discard: then reads without looking; zeroes: then reads zeros;
 *                            flush: passes= times. On a read-only device only verify, ro, flush and
 *                            info don't fail. (rw)
 *   from=S sectors=N         the range (all)
 *   chunk=C depth=D          sectors a request (16), requests in flight (1); C * D at most 128
 *   order= seed=             of the chunks; the contents depend on (seed, sector)
 * work=pmem                  virtio-pmem, its memory by plain loads and stores; prints where it is
 *   pmem=K                   the K-th such device by address, from 0 (0)
 *   mode=rw|read|write|check|flush|info
 *                            read: a line with a hash of the contents; write: fills pages with words
 *                            that depend on (seed, page, word); check: they hold them; flush: passes=
 *                            times, FAIL if the device refuses; rw: write, flush, check (rw)
 *   from=P pages=N           the range, in pages of the device (all)
 *   words=W order= seed=     words of a page (512), the pages' order
 * work=console               repeats each line that comes until "quit"
 *   seconds=T                FAIL if quit doesn't come in time (no limit)
 * work=serve                 obeys commands at the second virtio console, until "off": serve.c
 * work=attack                breaks the rules of a device, or of all in turn: chains, rings, registers, config
 *                            space, notifications; resets it when it asks for that, and at the end
 *   target=blk|console|rng|pmem|balloon|mmio|ports|serial|all
 *                            mmio: accesses of all sizes to all register windows; ports: reads of all
 *                            ports, writes to those that don't end the VM; serial: COM1 (all)
 *   seed=S seconds=T         what it does, and how long in all (1)
 *   base= pages=             memory that devices may write to (4 MiB, 256 pages)
 * work=rng   bytes=N         reads N bytes of entropy, looks that half of the bits are set (64)
 *
 * Every measured part has a number, printed as part=; at its start and end (number << 1 | 1) and
 * (number << 1) are written to port 0x610 (team.h), so that the VM monitor can take the time too.
 */
#include "guest/bare/board.h"
#include "guest/bare/console.h"
#include "guest/bare/end.h"
#include "guest/bare/team.h"
#include "guest/bare/trap.h"
#include "guest/bare/work.h"

const struct work work_table[] = {
	{"touch", touch_run}, {"pattern", pattern_run}, {"zero", zero_run}, {"dirty", dirty_run},
	{"check", check_run}, {"pmem", pmem_run},       {"cpu", loop_run},  {"idle", idle_run},
	{"smp", smp_run},     {"disk", disk_run},       {"rng", rng_run},   {"console", echo_run},
	{"serve", serve_run}, {"attack", attack_run},   {NULL, NULL},
};

_Noreturn void bare_main(const void *fdt, uint64_t cpu);

void bare_main(const void *fdt, uint64_t cpu)
{
	static char error[WORDS_ERROR_MAX];
	if (cpu != 0)
		team_serve((unsigned)cpu);
	const char *wrong = board_read(fdt);
	if (wrong != NULL)
		end_fail("%s", wrong);
	bool ok = words_read(board.args, error);
	if (words.tsc != 0) {
		board.tsc_hz = words.tsc;
		board.tsc_from = "word";
	}
	bool have_console = words.console != CONSOLE_VIRTIO || console_use_virtio();
	console_say("BARE cpus=%u mem=%lu virtio=%u tsc-hz=%lu by=%s", board.cpus, board.mem_bytes,
		    board.virtios, board.tsc_hz, board.tsc_from);
	if (!ok)
		end_fail("%s", error);
	if (!have_console)
		end_fail("no virtio console");
	if (words.mce && board.cpus > 1)
		end_fail("mce=1 is for one vCPU");
	if (words.mce)
		trap_open();
	if (board.cpus > TEAM_MAX)
		end_fail("%u vCPUs, at most %u", board.cpus, TEAM_MAX);
	for (unsigned i = 0; i < words.stages; i++)
		words.stage[i].work->run(&words.stage[i]);
	end_done(words.end);
}
