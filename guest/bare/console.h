/*
 * Lines to the console and bytes from it: COM1, or the first virtio console once it is chosen. Only
 * vCPU 0 uses it, but for end_fail.
 */
#ifndef BARE_CONSOLE_H
#define BARE_CONSOLE_H

#include <stdbool.h>
#include <stddef.h>

#define CONSOLE_LINE_MAX 256

/* A line; the newline is added. */
void console_say(const char *format, ...) __attribute__((format(printf, 1, 2)));
void console_write(const char *bytes, size_t n);
/* Bytes that have come, at most size; 0 if none has. */
size_t console_read(char *out, size_t size);
/* Go on by virtio. False if there is no such device or it doesn't work. */
bool console_use_virtio(void);
/* Wait until all is out. */
void console_drain(void);

#endif
