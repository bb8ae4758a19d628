/* Looking up, for those who change things. */
#ifndef IPT_PLACE_H
#define IPT_PLACE_H

#include "ipt/table.h"

/* Would vm see something at g, or might it once a file is read, without an entry of its own? */
bool place_beneath(struct ipt *t, vmid_t vm, uint64_t g);
/* Who of vm's lineage has what vm sees at g, if that is out: by its own slot or by an alias. 0: it isn't out. */
uint32_t place_away(struct ipt *t, vmid_t vm, uint64_t g);

#endif
