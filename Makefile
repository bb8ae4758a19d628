# invisor's build. The commands people use: make, make demo, make check, make bench (see README.md).
# Everything made goes below build/ (build-asan/ and the like with SANITIZE=).

SANITIZE ?=
V ?= 0
BUILD    := build$(if $(SANITIZE),-$(SANITIZE))
CC       ?= gcc
CFLAGS   ?= -O2 -g
WARN     := -Wall -Wextra -Wshadow -Wmissing-prototypes -Wstrict-prototypes -Wvla -Werror
CPPFLAGS += -D_GNU_SOURCE -I.
LIBS     := -luring -lseccomp -llz4 -lfdt -ljansson -lncursesw -ltinfo -lpthread -lm
ALL_CFLAGS = -std=gnu17 $(CFLAGS) $(WARN) $(CPPFLAGS) -fno-strict-aliasing -MMD -MP -pthread
ifneq ($(SANITIZE),)
ALL_CFLAGS += -fsanitize=$(SANITIZE) -fno-omit-frame-pointer
LDFLAGS    += -fsanitize=$(SANITIZE)
endif
# A static program: a third less work for each fork of a VM's process, and 100 KiB less memory.
STATIC := $(if $(SANITIZE),,-static -Wl,-T,vmm/own.ld)
Q := $(if $(filter 0,$(V)),@,)

IPT_SRC    := $(wildcard ipt/*.c)
VIRTIO_SRC := $(wildcard virtio/*.c)
VMM_SRC    := $(filter-out vmm/main.c,$(wildcard vmm/*.c))
obj = $(patsubst %.c,$(BUILD)/%.o,$(1))

.PHONY: all clean install demo
all: $(BUILD)/invisor guest

# Debian packages that building, running and testing need; does nothing when they are there.
install:
	@tests/install

# The main job on a fresh machine: install, build, make the guest, boot four Linux guests, look at the table.
demo: install
	@$(MAKE) --no-print-directory all
	@if build/invisor probe >/dev/null 2>&1; then tests/demo; else \
		echo "this host's KVM doesn't run Linux: using the lab (an emulated host with AMD SVM)"; \
		tests/lab/run --timeout 600 -- tests/demo; fi

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(if $(Q),@echo "  CC $<")
	$(Q)$(CC) $(ALL_CFLAGS) -c -o $@ $<

$(BUILD)/libipt.a: $(call obj,$(IPT_SRC))
$(BUILD)/libvirtio.a: $(call obj,$(VIRTIO_SRC))
$(BUILD)/libvmm.a: $(call obj,$(VMM_SRC))
$(BUILD)/%.a:
	$(if $(Q),@echo "  AR $@")
	$(Q)rm -f $@ && $(AR) rcs $@ $^

PRODUCT_LIBS := $(BUILD)/libvmm.a $(BUILD)/libvirtio.a $(BUILD)/libipt.a

$(BUILD)/invisor: $(call obj,vmm/main.c) $(PRODUCT_LIBS) vmm/own.ld
	$(if $(Q),@echo "  LD $@")
	$(Q)$(CC) $(LDFLAGS) $(STATIC) -pthread -o $@ $(filter-out %.ld,$^) $(LIBS)

include guest/guest.mk
include tests/tests.mk

clean:
	rm -rf build build-*

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
