#include "guest/bare/text.h"
#include <string.h>

struct out {
	char *at;
	size_t left; /* with room for the NUL */
};

static void put(struct out *o, char c)
{
	if (o->left > 1) {
		*o->at++ = c;
		o->left--;
	}
}

static void put_number(struct out *o, uint64_t v, unsigned radix, unsigned width, char fill)
{
	char digits[20];
	unsigned n = 0;
	do {
		digits[n++] = "0123456789abcdef"[v % radix];
		v /= radix;
	} while (v != 0);
	for (; width > n; width--)
		put(o, fill);
	while (n > 0)
		put(o, digits[--n]);
}

size_t text_format(char *buffer, size_t size, const char *f, va_list args)
{
	struct out o = {buffer, size};
	for (; *f != '\0'; f++) {
		if (*f != '%') {
			put(&o, *f);
			continue;
		}
		f++;
		char fill = *f == '0' ? '0' : ' ';
		unsigned width = 0;
		for (; *f >= '0' && *f <= '9'; f++)
			width = width * 10 + (unsigned)(*f - '0');
		bool is_long = *f == 'l';
		if (is_long)
			f++;
		switch (*f) {
		case 's':
			for (const char *s = va_arg(args, const char *); *s != '\0'; s++)
				put(&o, *s);
			break;
		case 'c':
			put(&o, (char)va_arg(args, int));
			break;
		case 'd': {
			int64_t v = is_long ? va_arg(args, long) : va_arg(args, int);
			if (v < 0)
				put(&o, '-');
			put_number(&o, v < 0 ? -(uint64_t)v : (uint64_t)v, 10, width, fill);
			break;
		}
		case 'u':
		case 'x': {
			uint64_t v = is_long ? va_arg(args, unsigned long) : va_arg(args, unsigned);
			put_number(&o, v, *f == 'x' ? 16 : 10, width, fill);
			break;
		}
		case '\0':
			f--;
			break;
		default:
			put(&o, *f);
		}
	}
	*o.at = '\0';
	return (size_t)(o.at - buffer);
}

static int digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return 99;
}

bool text_number(const char *s, size_t n, uint64_t *out)
{
	unsigned radix = 10, shift = 0;
	uint64_t v = 0;
	if (n > 2 && s[0] == '0' && s[1] == 'x') {
		radix = 16;
		s += 2;
		n -= 2;
	}
	switch (n > 1 ? s[n - 1] : '\0') {
	case 'K':
		shift = 10;
		break;
	case 'M':
		shift = 20;
		break;
	case 'G':
		shift = 30;
		break;
	}
	if (shift != 0)
		n--;
	if (n == 0)
		return false;
	for (size_t i = 0; i < n; i++) {
		int d = digit(s[i]);
		if (d >= (int)radix || __builtin_mul_overflow(v, radix, &v) ||
		    __builtin_add_overflow(v, (uint64_t)d, &v))
			return false;
	}
	if (v > UINT64_MAX >> shift)
		return false;
	*out = v << shift;
	return true;
}

bool text_is(const char *s, size_t n, const char *word)
{
	return strlen(word) == n && memcmp(s, word, n) == 0;
}
