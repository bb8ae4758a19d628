# The table's benchmarks: build/bench-ipt [ID-PREFIX...], see ipt_bench.c.
IPT_BENCH_SRC := $(wildcard tests/bench/ipt_*.c)

$(BUILD)/bench-ipt: $(call obj,$(IPT_BENCH_SRC)) $(BUILD)/libipt.a
	$(if $(Q),@echo "  LD $@")
	$(Q)$(CC) $(LDFLAGS) -pthread -o $@ $^
