/* The commands of the command line: main.c's table. Each takes its arguments from its own name on and
 * returns the exit status (run.h). */
#ifndef VMM_COMMANDS_H
#define VMM_COMMANDS_H

/* query.c: questions to a running host */
int command_owner(int argc, char **argv);
int command_translate(int argc, char **argv);
int command_audit(int argc, char **argv);
int command_stats(int argc, char **argv);

/* clone_command.c */
int command_clone(int argc, char **argv);
int command_pause(int argc, char **argv);
int command_resume(int argc, char **argv);

#endif
