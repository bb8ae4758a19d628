# Coverage-guided fuzzing with libFuzzer (docs/FUZZING.md).
#   make fuzz [TARGET="blk image"] [FUZZ_SECONDS=300]   fuzz these (all), two at a time; what is new stays in build/fuzz/found
#   make check-fuzz [FUZZ_SECONDS=20]                   replay the corpora, then fuzz all for a while, and count
#   make fuzz-merge [TARGET=...]                        take what was found into the corpora, as little of it as does
FUZZ_TARGETS := virtqueue blk console rng pmem balloon serial image agent control options scenario
TARGET       ?= $(FUZZ_TARGETS)
FUZZ_CC      ?= clang
FUZZ_DIR     ?= build/fuzz
FUZZ_EXTRA   ?=
FUZZ_FLAGS   := -std=gnu17 -O1 -g $(WARN) $(CPPFLAGS) -Itests/unit/plain -Wno-gnu-variable-sized-type-not-at-end -fno-strict-aliasing -fno-omit-frame-pointer \
	-MMD -MP -pthread -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined $(FUZZ_EXTRA)
FUZZ_LINK    := -fsanitize=fuzzer,address,undefined -pthread $(FUZZ_EXTRA)

# A device's program is in device.c; the others bring their own.
FUZZ_DEVICES := virtqueue blk console rng pmem balloon
fuzz_obj = $(patsubst %.c,$(FUZZ_DIR)/%.o,$(1))
FUZZ_SHARED := $(call fuzz_obj,tests/fuzz/fuzz.c tests/unit/virtio_fake.c tests/unit/boot_fake.c tests/unit/ipt_help.c)

$(FUZZ_DIR)/%.o: %.c
	@mkdir -p $(@D)
	$(if $(Q),@echo "  CC $< (fuzz)")
	$(Q)$(FUZZ_CC) $(FUZZ_FLAGS) -c -o $@ $<

$(FUZZ_DIR)/libproduct.a: $(call fuzz_obj,$(VMM_SRC) $(VIRTIO_SRC) $(IPT_SRC))
	$(Q)rm -f $@ && $(AR) rcs $@ $^

$(patsubst %,$(FUZZ_DIR)/fuzz-%,$(FUZZ_DEVICES)): $(FUZZ_DIR)/tests/fuzz/device.o
$(patsubst %,$(FUZZ_DIR)/fuzz-%,$(FUZZ_TARGETS)): $(FUZZ_DIR)/fuzz-%: $(FUZZ_DIR)/tests/fuzz/%.o $(FUZZ_SHARED) $(FUZZ_DIR)/libproduct.a
	$(if $(Q),@echo "  LD $@")
	$(Q)$(FUZZ_CC) $(FUZZ_LINK) -o $@ $^ $(LIBS)

.PHONY: fuzz check-fuzz fuzz-merge fuzz-programs
fuzz-programs: $(patsubst %,$(FUZZ_DIR)/fuzz-%,$(TARGET))
fuzz check-fuzz:
	@MAKE="$(MAKE)" tests/fuzz/run $(if $(FUZZ_SECONDS),--seconds $(FUZZ_SECONDS)) $(TARGET)
fuzz-merge: fuzz-programs
	@tests/fuzz/run --merge $(TARGET)
