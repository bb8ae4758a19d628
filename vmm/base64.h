/* Base64 (RFC 4648, section 4), for the host and for guests without a C library. */
#ifndef VMM_BASE64_H
#define VMM_BASE64_H

#include <stddef.h>
#include <stdint.h>

/* Characters that n bytes become. */
#define BASE64_CHARS(n) (((n) + 2) / 3 * 4)

/* Writes BASE64_CHARS(n) characters, without a NUL. Returns how many. */
static inline size_t base64_encode(char *out, const void *bytes, size_t n)
{
	static const char digit[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	const uint8_t *in = (const uint8_t *)bytes;
	char *to = out;
	for (size_t i = 0; i < n; i += 3) {
		uint32_t v = (uint32_t)in[i] << 16 | (i + 1 < n ? in[i + 1] : 0u) << 8 |
			     (i + 2 < n ? in[i + 2] : 0u);
		*to++ = digit[v >> 18];
		*to++ = digit[v >> 12 & 63];
		*to++ = i + 1 < n ? digit[v >> 6 & 63] : '=';
		*to++ = i + 2 < n ? digit[v & 63] : '=';
	}
	return (size_t)(to - out);
}

static inline int base64_value(char c)
{
	if (c >= 'A' && c <= 'Z')
		return c - 'A';
	if (c >= 'a' && c <= 'z')
		return c - 'a' + 26;
	if (c >= '0' && c <= '9')
		return c - '0' + 52;
	return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* Decodes n characters into at most n / 4 * 3 bytes; may be in place. Returns how many bytes, or -1
 * if it isn't base64 with all its padding. */
static inline long base64_decode(void *out, const char *chars, size_t n)
{
	uint8_t *to = (uint8_t *)out;
	size_t padding = 0;
	if (n % 4)
		return -1;
	while (padding < 2 && padding < n && chars[n - 1 - padding] == '=')
		padding++;
	for (size_t i = 0; i < n; i += 4) {
		uint32_t v = 0;
		size_t known = i + 4 == n ? 4 - padding : 4;
		for (size_t j = 0; j < 4; j++) {
			int digit = j < known ? base64_value(chars[i + j]) : 0;
			if (digit < 0)
				return -1;
			v = v << 6 | (uint32_t)digit;
		}
		if (v & ((1u << 8 * (4 - known)) - 1)) /* bits that stand for nothing */
			return -1;
		for (size_t j = 0; j + 1 < known; j++)
			*to++ = (uint8_t)(v >> (16 - 8 * j));
	}
	return to - (uint8_t *)out;
}

#endif
