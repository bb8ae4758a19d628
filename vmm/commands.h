/* The commands that ask a running host. Each takes its arguments from its own name on and returns the
 * exit status (run.h). */
#ifndef VMM_COMMANDS_H
#define VMM_COMMANDS_H

int command_host(int argc, char **argv); /* host_command.c */
int command_ps(int argc, char **argv);
int command_console(int argc, char **argv);
int command_kill(int argc, char **argv);
int command_top(int argc, char **argv);
int command_owner(int argc, char **argv); /* from here on query.c */
int command_translate(int argc, char **argv);
int command_audit(int argc, char **argv);
int command_stats(int argc, char **argv);
/* and a word to a guest: its generation id changes */
int command_renew(int argc, char **argv);

/* exec.c: run a command in a guest */
int command_exec(int argc, char **argv);

/* balloon_requests.c: have a guest give memory back */
int command_balloon(int argc, char **argv);

/* clone_command.c */
int command_clone(int argc, char **argv);
int command_pause(int argc, char **argv);
int command_resume(int argc, char **argv);

/* reclaim_command.c */
int command_reclaim(int argc, char **argv);
int command_limit(int argc, char **argv);

/* fail_requests.c */
int command_fail(int argc, char **argv);

/* inject_command.c: faults for guests; scenario_requests.c: many of them, over time */
int command_inject(int argc, char **argv);
int command_scenario(int argc, char **argv);

#endif
