/*
 * Linux's system calls on x86-64 for a program without a C library (syscall(2), clone(2)). Each returns what the
 * kernel does: a value from 0 on, or -errno. Structures and constants are the kernel's own, not the C library's.
 */
#ifndef GUEST_LINUX_SYS_H
#define GUEST_LINUX_SYS_H

#include <asm/unistd.h>

static inline long sys6(long n, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
	long rc;
	__asm__ volatile("syscall"
			 : "=a"(rc)
			 : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return rc;
}

static inline long sys5(long n, long a, long b, long c, long d, long e)
{
	return sys6(n, a, b, c, d, e, 0);
}

static inline long sys4(long n, long a, long b, long c, long d)
{
	return sys6(n, a, b, c, d, 0, 0);
}

static inline long sys3(long n, long a, long b, long c)
{
	return sys6(n, a, b, c, 0, 0, 0);
}

static inline long sys2(long n, long a, long b)
{
	return sys6(n, a, b, 0, 0, 0, 0);
}

static inline long sys1(long n, long a)
{
	return sys6(n, a, 0, 0, 0, 0, 0);
}

/*
 * A child process that calls run(ctx), which must not return, on a stack of its own that grows down from `top`
 * (aligned to 16). With CLONE_VM and CLONE_VFORK in flags it has the caller's memory, and the caller stands still
 * until it has executed a program or ended. Returns its id in the caller.
 */
static inline long sys_clone(unsigned long flags, void *top, void (*run)(void *), void *ctx)
{
	register void *child __asm__("r8") = run;
	register void *arg __asm__("r9") = ctx;
	long rc;
	__asm__ volatile("xorl %%edx, %%edx\n\t"
			 "xorl %%r10d, %%r10d\n\t"
			 "syscall\n\t"
			 "testq %%rax, %%rax\n\t"
			 "jnz 1f\n\t"
			 "xorl %%ebp, %%ebp\n\t"
			 "movq %%r9, %%rdi\n\t"
			 "callq *%%r8\n\t"
			 "ud2\n"
			 "1:"
			 : "=a"(rc)
			 : "a"((long)__NR_clone), "D"(flags), "S"(top), "r"(child), "r"(arg)
			 : "rcx", "rdx", "r10", "r11", "memory", "cc");
	return rc;
}

#endif
