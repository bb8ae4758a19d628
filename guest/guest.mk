# The guests: build/guest/bare.elf (the bare test guest) and build/guest/{vmlinux,bzImage,initrd}
# (Debian's cloud kernel and our initramfs).
.PHONY: guest
guest:
-include guest/bare/bare.mk
-include guest/linux/linux.mk
