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
