/* Moving what a template owns into its only child. See ipt_vm_collapse. */
#ifndef IPT_COLLAPSE_H
#define IPT_COLLAPSE_H

#include "ipt/table.h"

/* A collapser died: set right what its heir counts as its own. The registry is locked. */
void collapse_mend(struct ipt *t);

#endif
