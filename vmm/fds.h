/* Which descriptors a process keeps when it becomes another kind of process. */
#ifndef VMM_FDS_H
#define VMM_FDS_H

/* Close all descriptors but standard input, output, error and these (negative ones are none). Sorts keep. */
void fds_close_all_but(int *keep, unsigned n);
/* Close those of n that aren't negative, and make them so. */
void fds_close(int *fds, unsigned n);

#endif
