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

$(GUEST_LINUX)/initrd: $(GUEST_KERNEL)/release guest/linux/make-initrd guest/linux/init guest/linux/agent \
		guest/linux/power-button guest/linux/linux.mk
	$(if $(Q),@echo "  INITRD $@")
	$(Q)guest/linux/make-initrd $(GUEST_KERNEL) $@ $(GUEST_MODULES) -- $(GUEST_LATE_MODULES) \
		-- $(GUEST_PMEM_MODULES)
