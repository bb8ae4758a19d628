/* stack.c: what a stack holds below its frames is given back, what is in them stays. */
#include "vmm/stack.h"

#include "ipt/addr.h"
#include <criterion/criterion.h>
#include <pthread.h>
#include <string.h>

#ifndef __SANITIZE_ADDRESS__ /* whose frames may be elsewhere */
#define DEEP (24 * KiB)

/* Where in the stack it wrote to: the middle of DEEP bytes. */
static __attribute__((noinline)) volatile char *go_deep(void)
{
	volatile char bytes[DEEP];
	for (size_t i = 0; i < sizeof bytes; i++)
		bytes[i] = 'x';
	volatile char *middle = &bytes[sizeof bytes / 2];
	__asm__ volatile("" : "+r"(middle));
	return middle;
}

static void *trim(void *arg)
{
	char mine[64];
	char *had = arg;
	memset(mine, 'm', sizeof mine);
	volatile char *at = go_deep();
	had[0] = *at;
	stack_trim(32 * KiB);
	had[1] = *at;
	for (size_t i = 0; i < sizeof mine; i++)
		if (((volatile char *)mine)[i] != 'm')
			return NULL;
	return arg;
}

Test(stack, a_thread_gives_back_what_it_does_not_use)
{
	char had[2] = "";
	void *same = NULL;
	pthread_t t;
	cr_assert_eq(pthread_create(&t, NULL, trim, had), 0);
	pthread_join(t, &same);
	cr_assert_eq(same, (void *)had, "its own frame is another");
	cr_assert_eq(had[0], 'x');
	cr_assert_eq(had[1], 0);
}

/* It has less below than is asked for. */
Test(stack, the_main_thread_gives_back_what_there_is)
{
	char had[2] = "";
	cr_assert_eq(trim(had), (void *)had);
	cr_assert_eq(had[0], 'x');
	cr_assert_eq(had[1], 0);
	stack_trim(64 * KiB);
}
#endif
