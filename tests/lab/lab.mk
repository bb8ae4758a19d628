# check-lab: everything that needs real guests under KVM, inside an emulated host (tests/lab/run --help).
# LAB_TESTS=PATTERN runs the tests whose names contain it. check-lab-self: what tests/lab/run itself promises.
.PHONY: check-lab check-lab-self
check-lab: all
	tests/lab/run --cpus 1 --timeout 3000 -- tests/lab/suite $(LAB_TESTS)
check-lab-self: all
	tests/lab/self-suite $(LAB_TESTS)

all: $(BUILD)/lab-hold $(BUILD)/lab-tsc
$(BUILD)/lab-hold $(BUILD)/lab-tsc: $(BUILD)/lab-%: $(BUILD)/tests/lab/%.o
	$(if $(Q),@echo "  LD $@")
	$(Q)$(CC) $(LDFLAGS) -o $@ $^
