# A campaign of failpoints (docs/FAULTS.md). FAULT_SECONDS=S for a longer one, FAULT_SEED=N for another.
FAULT_SECONDS ?= 120
FAULT_SEED    ?= 1
.PHONY: check-faults
check-faults: all
	@tests/faults/campaign --seconds $(FAULT_SECONDS) --seed $(FAULT_SEED)
