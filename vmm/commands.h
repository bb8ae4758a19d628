/* The commands that ask a running host. Each takes its arguments from its own name on and returns the
 * exit status (run.h). */
#ifndef VMM_COMMANDS_H
#define VMM_COMMANDS_H

int command_host(int argc, char **argv); /* daemon.c */
int command_ps(int argc, char **argv);
int command_console(int argc, char **argv);
int command_kill(int argc, char **argv);
int command_top(int argc, char **argv);
int command_owner(int argc, char **argv); /* from here on query.c */
int command_translate(int argc, char **argv);
int command_audit(int argc, char **argv);
int command_stats(int argc, char **argv);

#endif
