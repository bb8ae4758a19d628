# Unit tests, with Criterion. `make check-unit` builds and runs two programs, unit-ipt (the table alone:
# ipt_*.c) and unit-rest (the others', with the whole product behind them), checks that every header
# compiles alone, and ends with one line of totals. SANITIZE=address|undefined|thread works for all of it.
UNIT_IPT_SRC  := $(wildcard tests/unit/ipt_*.c)
UNIT_REST_SRC := $(filter-out $(UNIT_IPT_SRC),$(wildcard tests/unit/*.c))
UNIT_PROGRAMS := $(BUILD)/unit-ipt $(if $(UNIT_REST_SRC),$(BUILD)/unit-rest)
UNIT_ARGS     ?=
UNIT_LIB      := -lcriterion
ifeq ($(SANITIZE),thread)
# Criterion can't start under the thread sanitizer: see plain/criterion/criterion.h.
$(BUILD)/tests/unit/%.o: CPPFLAGS += -Itests/unit/plain
UNIT_PLAIN := $(BUILD)/tests/unit/plain/main.o
UNIT_LIB   :=
endif

$(BUILD)/unit-ipt: $(call obj,$(UNIT_IPT_SRC)) $(UNIT_PLAIN) $(BUILD)/libipt.a
	$(if $(Q),@echo "  LD $@")
	$(Q)$(CC) $(LDFLAGS) -pthread -o $@ $^ $(UNIT_LIB)

$(BUILD)/unit-rest: $(call obj,$(UNIT_REST_SRC) tests/unit/ipt_help.c guest/linux/agent.c) $(UNIT_PLAIN) $(PRODUCT_LIBS)
	$(if $(Q),@echo "  LD $@")
	$(Q)$(CC) $(LDFLAGS) -pthread -o $@ $^ $(UNIT_LIB) $(LIBS)

.PHONY: check-unit check-unit-ipt check-headers
check-unit: check-headers $(UNIT_PROGRAMS)
	@tests/unit/run.sh $(UNIT_PROGRAMS) $(UNIT_ARGS)

check-unit-ipt: $(BUILD)/unit-ipt
	@tests/unit/run.sh $(BUILD)/unit-ipt $(UNIT_ARGS)

# Every header compiles alone.
HEADERS := $(wildcard ipt/*.h virtio/*.h vmm/*.h)
HEADER_STAMPS := $(patsubst %.h,$(BUILD)/headers/%.ok,$(HEADERS))
$(BUILD)/headers/%.ok: %.h
	@mkdir -p $(@D)
	$(Q)printf '#include "$<"\n#include "$<"\n' | $(CC) -std=gnu17 $(WARN) $(CPPFLAGS) -MMD -MP \
		-MF $(@:.ok=.d) -MT $@ -fsyntax-only -x c - && touch $@
check-headers: $(HEADER_STAMPS)
	@echo "check-headers: $(words $(HEADERS)) headers compile alone"
