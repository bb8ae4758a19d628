# The bare guest on this host's KVM. KVM_TESTS=PATTERN runs the tests whose names contain it.
.PHONY: check-kvm
check-kvm: all
	@tests/kvm/suite $(KVM_TESTS)
