#include "vmm/answer.h"
#include "ipt/addr.h"

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
