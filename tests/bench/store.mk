# The store's packing and costs: build/bench-store FILE..., see store_bench.c. zstd and LZO are only to compare with, and
# are in it if their development packages are there.
BENCH_STORE_LIBS = $(shell pkg-config --libs libzstd 2>/dev/null) $(shell pkg-config --libs lzo2 2>/dev/null)

$(BUILD)/bench-store: $(call obj,tests/bench/store_bench.c) $(PRODUCT_LIBS)
	$(if $(Q),@echo "  LD $@")
	$(Q)$(CC) $(LDFLAGS) -pthread -o $@ $^ $(LIBS) $(BENCH_STORE_LIBS)
