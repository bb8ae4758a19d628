/*
 * Text into a buffer: %s %c %d %u %x with the modifiers l and a width with 0 (%016lx), and %%.
 */
#ifndef BARE_TEXT_H
#define BARE_TEXT_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes written, without the NUL that always ends it; what doesn't fit is left out. */
size_t text_format(char *out, size_t size, const char *format, va_list args);

/* A number in decimal or 0x hexadecimal, with K, M or G (of 1024) after it. False if it is none. */
bool text_number(const char *s, size_t n, uint64_t *out);

/* Are the n bytes at s the word? */
bool text_is(const char *s, size_t n, const char *word);

#endif
