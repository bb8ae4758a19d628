/* A template's pages going out and coming back: see template.c. */
#ifndef IPT_TEMPLATE_H
#define IPT_TEMPLATE_H

#include "ipt/table.h"

/* With the registry locked: whoever held it before died in the middle of that, or didn't. */
void template_mend(struct ipt *t);

#endif
