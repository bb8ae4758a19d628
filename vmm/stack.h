/*
 * What a thread's stack holds below its frames now: pages that it once needed, as for its VM's start or birth, and that
 * stay its process's own for as long as it lives.
 */
#ifndef VMM_STACK_H
#define VMM_STACK_H

#include <stddef.h>

/* Give back whole pages of the caller's stack that lie below its frame, up to `most` bytes of them, which the stack must
 * have room for or end before (a main thread's, which grows). They read as zeroes when they are used again. */
void stack_trim(size_t most);

/* What main may be: argv ends with NULL, and so does environ. */
typedef int stack_main_fn(int argc, char **argv);
/* The process's first stack, which the kernel made far from all else, takes two pages of page tables of everyone who has it
 * by a fork. So go on with main(argc, argv), and exit with what it returns, on a stack of STACK_MAIN_BYTES that lies beside
 * what the program writes to; processes that are forked from then on don't have the first one any more. The words of the
 * command line and of the environment, which lie there, get another place, in which argv, environ, and the kernel for
 * /proc/PID/cmdline and environ, find them. Where the kernel can't be told (it lacks PR_SET_MM_MAP), main is called and
 * that is all. The process has one thread. */
#define STACK_MAIN_BYTES (1 << 20)
_Noreturn void stack_leave(int argc, char **argv, stack_main_fn *main);

#endif
