/* The structure that a member is part of. */
#ifndef VMM_CONTAINER_H
#define VMM_CONTAINER_H

#include <stddef.h>

#define container(type, member, pointer) ((type *)((char *)(pointer)-offsetof(type, member)))

#endif
