#include "vmm/answer.h"
#include "ipt/addr.h"

void answer_put(json_t *o, const char *key, uint64_t value)
{
	json_object_set_new(o, key, json_integer((json_int_t)value));
}

void answer_put_text(json_t *o, const char *key, const char *text)
{
	json_t *s = json_string(text);
	json_object_set_new(o, key, s ? s : json_string("(not text)"));
}

const char *answer_text(const json_t *o, const char *key)
{
	const char *s = json_string_value(json_object_get(o, key));
	return s ? s : "-";
}

long long answer_integer(const json_t *o, const char *key)
{
	return json_integer_value(json_object_get(o, key));
}

double answer_number(const json_t *o, const char *key)
{
	return json_number_value(json_object_get(o, key));
}

double answer_mib(const json_t *o, const char *key)
{
	return answer_number(o, key) / (double)MiB;
}
