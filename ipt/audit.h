/* The checker's parts: each looks at one part of the table and tells of every violation. */
#ifndef IPT_AUDIT_H
#define IPT_AUDIT_H

#include "ipt/table.h"

struct audit {
	struct ipt *t;
	ipt_say_fn *say;
	void *ctx;
	int violations;
};

__attribute__((format(printf, 2, 3))) void audit_fail(struct audit *a, const char *fmt, ...);

/* I1, I3: free lists against words. */
void audit_zones(struct audit *a);
/* I2, I4: words against the forward map and the registry. */
void audit_words(struct audit *a);
/* I5: forward elements against words, and the counts that readers rely on. */
void audit_index(struct audit *a);
void audit_radix(struct audit *a);
/* I7: chains of aliases against words of frames and slots. */
void audit_chains(struct audit *a);
/* I6: pins of free frames. */
void audit_side(struct audit *a);
/* I8: claims of space against the bitmaps. */
void audit_space(struct audit *a);
/* Lineage: parents are registered, children are counted. */
void audit_registry(struct audit *a);

#endif
