/*
 * A guest as its host's owner sees it: whose batch it is of, its console's lines and last bytes, and
 * who reads along (`invisor console`). It is its VM's `user`. Readers may be slow or many: nobody
 * waits for them; one that falls behind by more than what is kept misses the rest.
 */
#ifndef VMM_GUEST_H
#define VMM_GUEST_H

#include "vmm/batch.h"
#include "vmm/ring.h"
#include "vmm/screen.h"

struct guest {
	struct fleet *fleet;
	struct batch *batch;
	struct host_vm *vm; /* NULL: it is gone, and only readers still look at the rest */
	struct screen_line line;
	struct ring ring;
	bool keep;     /* output goes to the ring, for readers of now and later */
	bool up;       /* a vCPU has run */
	bool is_clone; /* or a template: nobody who started its batch waits for it */
	struct guest_reader *reader;
};

/* Becomes vm->user and holds the batch. NULL without memory. */
struct guest *guest_create(struct fleet *f, struct host_vm *vm, struct batch *b);
/* The VM is gone: its readers get the rest, then this is freed. */
void guest_end(struct guest *g);

/* Console bytes of the guest; returns how many were taken. */
size_t guest_output(struct guest *g, const char *bytes, size_t n);
/* Make a stream of r that reads along from what is kept on, and types. */
void guest_console(struct guest *g, struct control_request *r, bool follow);
/* Offer the guest again what it had no room for. */
void guest_resume(struct guest *g);

/* How this guest is asked to power off: by the button, if it can hear it by now. */
enum vm_order guest_polite_order(const struct guest *g);

#endif
