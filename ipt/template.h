/* A template's pages going out and coming back: see template.c. */
#ifndef IPT_TEMPLATE_H
#define IPT_TEMPLATE_H

#include "ipt/table.h"

/* With the registry locked, which nobody lets go of in between: what vm, which nobody works for, has is changed and
 * counted. */
void recount_begin(struct ipt *t, vmid_t vm);
void recount_end(struct ipt *t);
/* In between: n frames from f on, which stand at vm's gfns from g on, leave these; but they are as they were, and until
 * undo_end, after which they aren't, a death puts them back. */
void undo_begin(struct ipt *t, uint64_t g, uint32_t f, uint32_t n);
void undo_end(struct ipt *t);
/* With the registry locked: whoever held it before died in the middle of that, or didn't. */
void template_mend(struct ipt *t);

/* What a shared page's aliases leave, and where they go, isn't under way any more (shared.c). */
void shared_settled(struct ipt *t);

/* Free limbo frames of a template or file, clean ones. Somebody may be pinning one for a moment, who will find that it
 * isn't there any more; if that takes too long they stay in limbo until vm is reaped. */
void template_free(struct ipt *t, vmid_t vm, uint32_t f, uint32_t n);

#endif
