# make bench: every figure of docs/SPECIFICATION.md; ONLY=ID-PREFIX[,ID-PREFIX] for some.
.PHONY: bench
bench: all $(BUILD)/bench-ipt $(BUILD)/bench-plain $(BUILD)/bench-floor
	@tests/bench/run $(ONLY)

$(BUILD)/bench-plain: $(call obj,tests/bench/plain.c) $(PRODUCT_LIBS)
	$(if $(Q),@echo "  LD $@")
	$(Q)$(CC) $(LDFLAGS) -pthread -o $@ $^ $(LIBS)

$(BUILD)/bench-floor: $(call obj,tests/bench/floor.c) $(PRODUCT_LIBS)
	$(if $(Q),@echo "  LD $@")
	$(Q)$(CC) $(LDFLAGS) -pthread -o $@ $^ $(LIBS)

# The program without failpoints, to compare with (tests/bench/fault_bench.py).
.PHONY: $(BUILD)/nofail/invisor
ifneq ($(BUILD),build/nofail)
$(BUILD)/nofail/invisor:
	$(Q)$(MAKE) --no-print-directory BUILD=build/nofail CPPFLAGS="$(CPPFLAGS) -DFAIL_NONE" build/nofail/invisor
endif
