/*
 * What a VM's process writes to though its guest does nothing. A clone has it by a fork, so each page of it becomes the
 * clone's own: it is put together, in few pages, instead of lying where it would among what nobody writes to. The
 * linker does the same with the C library's (vmm/own.ld).
 */
#ifndef IPT_OWN_H
#define IPT_OWN_H

#include <stddef.h>

/* A variable of that kind. */
#define OWN __attribute__((section(".data.own")))

/* Memory of that kind, zeroed and aligned for any type; the heap's, when what there is of it is given out. NULL: there is
 * none. Any thread. */
void *own_alloc(size_t bytes);
/* NULL is ignored. Only what is the heap's can be given out again. */
void own_free(void *p);

#endif
