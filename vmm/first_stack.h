/*
 * Leaving the process's first stack, which the kernel made far from all else: everyone who has it by a fork has two pages of
 * page tables for it.
 */
#ifndef VMM_FIRST_STACK_H
#define VMM_FIRST_STACK_H

/* What main may be: argv ends with NULL, and so does environ. */
typedef int first_stack_main_fn(int argc, char **argv);

/* Go on with main(argc, argv), and exit with what it returns, on another stack, of FIRST_STACK_OTHER_BYTES, that lies beside
 * what the program writes to; processes that are forked from then on don't have the first one any more. The words of the
 * command line and of the environment, which lie there, get another place, in which argv, environ, and the kernel for
 * /proc/PID/cmdline and environ, find them. Where the kernel can't be told (it lacks PR_SET_MM_MAP), main is called and
 * that is all. The process has one thread. */
#define FIRST_STACK_OTHER_BYTES (1 << 20)
_Noreturn void first_stack_leave(int argc, char **argv, first_stack_main_fn *main);

#endif
