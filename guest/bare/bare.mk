# The bare test guest: a static ELF without an operating system (guest/bare/main.c says what it does).
# It is never sanitized and uses nothing of the host but libfdt's static library.
BARE_ELF    := $(BUILD)/guest/bare.elf
BARE_SRC    := $(wildcard guest/bare/*.c)
BARE_OBJ    := $(patsubst %,$(BUILD)/%.o,$(basename $(BARE_SRC) guest/bare/entry.S))
BARE_CFLAGS := -std=gnu17 -O2 -g $(WARN) -I. -ffreestanding -fno-stack-protector -fno-pic -fno-pie \
	-fno-asynchronous-unwind-tables -fcf-protection=none -fno-strict-aliasing -mcmodel=small \
	-U_FORTIFY_SOURCE -MMD -MP
LIBFDT_A    := $(shell $(CC) -print-file-name=libfdt.a)

guest: $(BARE_ELF)

$(BUILD)/guest/bare/%.o: guest/bare/%.c
	@mkdir -p $(@D)
	$(if $(Q),@echo "  CC $<")
	$(Q)$(CC) $(BARE_CFLAGS) -c -o $@ $<

$(BUILD)/guest/bare/%.o: guest/bare/%.S
	@mkdir -p $(@D)
	$(if $(Q),@echo "  AS $<")
	$(Q)$(CC) $(BARE_CFLAGS) -c -o $@ $<

$(BARE_ELF): $(BARE_OBJ) guest/bare/bare.lds
	$(if $(Q),@echo "  LD $@")
	$(Q)$(CC) -nostdlib -static -Wl,--build-id=none -Wl,-z,max-page-size=0x1000 \
		-Wl,-z,noexecstack -Wl,-T,guest/bare/bare.lds -o $@ $(BARE_OBJ) $(LIBFDT_A)
