# The Linux guest: build/guest/{bzImage,vmlinux,initrd}, of Debian's cloud kernel and our initramfs. The same
# for every SANITIZE. The kernel is fetched once; remove build/guest/cache to fetch the newest again.
GUEST_LINUX := build/guest
GUEST_KERNEL := $(GUEST_LINUX)/cache/kernel
GUEST_MODULES := virtio_mmio virtio_blk virtio_console virtio-rng
GUEST_LATE_MODULES := virtio_balloon evdev button
GUEST_PMEM_MODULES := virtio_pmem nd_pmem

guest: $(GUEST_LINUX)/bzImage $(GUEST_LINUX)/vmlinux $(GUEST_LINUX)/initrd

$(GUEST_KERNEL)/release:
	$(Q)guest/linux/fetch-kernel $(@D)

$(GUEST_LINUX)/bzImage: $(GUEST_KERNEL)/release
	$(if $(Q),@echo "  CP $@")
	$(Q)cp $(<D)/vmlinuz $@.$$$$ && mv $@.$$$$ $@

$(GUEST_LINUX)/vmlinux: $(GUEST_LINUX)/bzImage guest/linux/extract-vmlinux
	$(if $(Q),@echo "  EXTRACT $@")
	$(Q)guest/linux/extract-vmlinux $< $@

# The agent: a static program without a C library, made like the bare guest and never sanitized.
AGENT_SRC := guest/linux/start.S guest/linux/agent.c guest/bare/mem.c
$(GUEST_LINUX)/agent: $(AGENT_SRC) guest/linux/agent.h guest/linux/sys.h vmm/base64.h guest/linux/linux.mk
	@mkdir -p $(@D)
	$(if $(Q),@echo "  LD $@")
	$(Q)$(CC) $(filter-out -MMD -MP -g,$(BARE_CFLAGS)) -Os -nostdlib -static -s -Wl,--build-id=none \
		-Wl,-z,noseparate-code -Wl,-z,max-page-size=0x1000 -Wl,-z,noexecstack -o $@ $(AGENT_SRC)

$(GUEST_LINUX)/initrd: $(GUEST_KERNEL)/release guest/linux/make-initrd guest/linux/init $(GUEST_LINUX)/agent \
		guest/linux/power-button guest/linux/linux.mk
	$(if $(Q),@echo "  INITRD $@")
	$(Q)guest/linux/make-initrd $(GUEST_KERNEL) $(GUEST_LINUX)/agent $@ $(GUEST_MODULES) -- $(GUEST_LATE_MODULES) \
		-- $(GUEST_PMEM_MODULES)
