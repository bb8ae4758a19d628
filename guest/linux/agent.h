/* The guest's agent as a function, for the program and for its tests. */
#ifndef GUEST_LINUX_AGENT_H
#define GUEST_LINUX_AGENT_H

/* Serves the commands that come in at `tty` (NULL: /dev/hvc1), with this environment. Takes over the process's
 * signals, descriptors 0 to 2 and children. Returns an exit status, and only if tty can't be opened to begin with. */
int guest_agent(const char *tty, char **environment);

#endif
