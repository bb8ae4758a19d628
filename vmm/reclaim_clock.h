/*
 * The reclaimer's choice: a hand that goes over the array, and how old a VM's pages must be to go.
 *
 * The hand reads words, one after the other; each says who owns the frame and where it is, so a victim's owner costs one
 * read. Frames of a VM that follow each other, as gfns too, are one run of its next batch. Between two visits of
 * the hand a page that is used is touched, and stays (a clock, or second chance).
 *
 * What a template has is seen by its clones, what was merged by several, what a file has by guests that map it; nobody asks all of them
 * whether they use it. It goes when the hand has come by RECLAIM_OLDEST times, and comes back at the first touch, which
 * tells that it is used, and begins anew.
 *
 * Which VM gives first follows from what it uses of what it has (C. A. Waldspurger, "Memory Resource Management in
 * VMware ESX Server", OSDI 2002, section 5): shares for each page, where a page that is idle is charged as if it were
 * 1 / (1 - TAX). Who pays least has pages go as soon as they were not touched once; others' must have been idle for longer.
 * But who is quick enough to touch all that he has between two visits would keep it for ever, and the slower ones would get
 * slower: so of a VM that pays less than half of what one pays who waits for memory, pages go touched or not.
 */
#ifndef VMM_RECLAIM_CLOCK_H
#define VMM_RECLAIM_CLOCK_H

#include "vmm/reclaim.h"

#define RECLAIM_TAX         0.75
#define RECLAIM_OLDEST      8 /* how often pages of those who pay most must have been found idle */
#define RECLAIM_OLDEST_FILE 2 /* the same of files, whose pages only have to be read again */
#define RECLAIM_UNFAIR      2.0
#define RECLAIM_STALLED \
	100000 /* millionths of the last 10 s: from there on a VM waits for memory */

/* What the reclaimer knows of a VM. */
struct reclaim_vm {
	bool live;      /* a guest that may be asked */
	bool is_shared; /* a template, or: */
	bool is_file;   /* a file, whose pages are dropped */
	enum reclaim_turn turn;
	uint32_t out;    /* its own, out of memory */
	uint32_t frames; /* its own, in memory */
	double active;   /* the share of them that is used; 1 until it is known */
	double active_n; /* pages that say so, older ones counting less */
	double price;    /* shares for each page */
	uint32_t age;    /* of the pages that it is to give; RECLAIM_LOOK: none */
	uint32_t runs;   /* of its next batch */
	struct reclaim_run run[RECLAIM_RUNS];
};

struct reclaim_clock {
	struct ipt *table;
	struct reclaim_board *board;
	struct reclaim_vm *vm; /* by id */
	uint32_t vms;
	uint32_t hand;
	uint32_t only; /* this VM alone gives; 0: all */
	bool force;    /* touched or not */
	bool sampling; /* all are looked at, and nothing goes out */
	/* A template's or file's frames, n (1 or 16) from f on, that may go: they were not brought back for long. */
	void (*shared)(void *ctx, vmid_t vm, gfn_t first, frame_t f, uint32_t n);
	void (*merged)(void *ctx, frame_t f); /* the same of a merged frame */
	void *ctx;
	bool turns;       /* some wait for theirs, and give first */
	unsigned urgency; /* 0: as above; each more halves the ages */
};

/* 0 or -ENOMEM. */
int reclaim_clock_create(struct reclaim_clock *c, struct ipt *table, struct reclaim_board *b);
/* Look who there is, what they have, and what age their pages must have. */
void reclaim_clock_survey(struct reclaim_clock *c);
/* Shares for each page: of a VM that has `frames`, of which that share is active. */
double reclaim_price(uint32_t shares, uint32_t frames, double active);
/* The age from which on pages go: of a VM that pays `price` for each, where the least is paid `least`. */
uint32_t reclaim_age_of(double price, double least, unsigned urgency);
/* A VM's sample of `looked` pages was touched in `touched`: better the estimate. */
void reclaim_learn(struct reclaim_vm *v, uint32_t looked, uint32_t touched);
/* How wrong the estimate of active frames may be (95 %), frames. */
uint32_t reclaim_error(const struct reclaim_vm *v);
/* Move the hand on over at most n frames, or until a VM's batch is full: returns that VM, or 0. *around: it came past the
 * array's end. */
uint32_t reclaim_clock_turn(struct reclaim_clock *c, uint32_t n, bool *around);

#endif
