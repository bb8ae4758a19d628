# Everything that checks and measures. Each part has its own file.
-include tests/unit/unit.mk
-include tests/kvm/kvm.mk
-include tests/fuzz/fuzz.mk
-include tests/lab/lab.mk
-include tests/faults/faults.mk
-include tests/bench/bench.mk
-include tests/bench/ipt.mk
-include tests/bench/store.mk

# Everything: see tests/check. Installs what it needs first.
.PHONY: check
check: install
	@$(MAKE) --no-print-directory all
	@MAKE="$(MAKE)" tests/check

.PHONY: check-format format
FORMATTED := $(shell git ls-files --cached --others --exclude-standard '*.c' '*.h' 2>/dev/null)
check-format:
	@clang-format --dry-run --Werror $(FORMATTED) && echo "check-format: $(words $(FORMATTED)) files as clang-format has them"
format:
	clang-format -i $(FORMATTED)
