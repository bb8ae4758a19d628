# Part of tests/lab/run: makes the emulated host's initramfs and its disk. The disk holds the whole root directory:
# the emulated CPU is slow at unpacking, QEMU's reading of a disk is as fast as this machine.

# Programs of this machine that the lab offers beside busybox, where they are installed.
lab_tools="bash awk cat cmp cp cut date dd debugfs diff env find free grep head ls mkdir mke2fs e2fsck mktemp nproc numfmt od pgrep pkill
	prlimit printf ps rm sed seq setpriv sha256sum sleep sort stat stdbuf tail taskset tee timeout tr truncate wc xargs"

# lab_libs ROOT FILE...: copies into ROOT the shared libraries that the FILEs (of any kind) need.
lab_libs() {
	local root=$1 lib
	shift
	[ $# -gt 0 ] || return 0
	ldd "$@" 2>/dev/null | sed -nE 's/^[[:space:]]+([^ ]+ => )?(\/[^ ]+) \(.*/\2/p' | sort -u |
		while read -r lib; do
			[ ! -e "$root$lib" ] || continue
			mkdir -p "$root${lib%/*}"
			cp -L "$lib" "$root$lib"
		done
}

# lab_modules KERNEL DIR MODULE...: puts the modules into DIR with all they depend on, numbered in the order to load.
lab_modules() {
	local kernel=$1 dir=$2 release module verb file name number=10
	shift 2
	release=$(cat "$kernel/release")
	for module; do
		modprobe -S "$release" -d "$kernel" --show-depends "$module" ||
			die 121 "kernel $release has no module $module; remove build/guest/cache, then make guest"
	done >"$tmp/depends"
	while read -r verb file _; do
		[ "$verb" = insmod ] || continue
		name=${file##*/} name=${name%%.ko*}
		! compgen -G "$dir/*-$name.ko" >/dev/null || continue
		case $file in *.xz) xz -dc "$file" ;; *.zst) zstd -dcq "$file" ;; *) cat "$file" ;; esac >"$dir/$number-$name.ko"
		# Signature and type information would take an emulated CPU half a second to look at.
		strip --strip-debug --remove-section=.BTF "$dir/$number-$name.ko"
		number=$((number + 1))
	done <"$tmp/depends"
}

# lab_base LAB KERNEL HERE: what every run shares, in a directory whose name goes to $lab_base: initrd, and root
# with the tools and modules. Made once for a kernel and version of these scripts; of several runs that make it at
# once, one wins.
lab_base() {
	local lab=$1 kernel=$2 here=$3 key base root tool file
	key=$(cat "$kernel/release" "$here/root.sh" "$here/init" "$(command -v busybox)" "$(command -v bash)" | cksum)
	lab_base=$lab/base.${key%% *}
	[ ! -e "$lab_base/initrd" ] || return 0
	base=$tmp/base root=$tmp/base/root

	mkdir -p "$root"/{dev,etc,lab/modules,proc,root,run,sys,tmp,usr/{bin,lib,lib64,sbin},var} "$root/invisor"
	for tool in bin lib lib64 sbin; do ln -s "usr/$tool" "$root/$tool"; done
	cp "$(command -v busybox)" "$root/bin/busybox"
	for tool in $(busybox --list); do [ "$tool" = busybox ] || ln -sf busybox "$root/bin/$tool"; done
	for tool in $lab_tools; do
		file=$(command -v "$tool") || continue
		[ "${file#/}" != "$file" ] || file=$(type -P "$tool") || continue
		rm -f "$root/bin/$tool"
		cp -L "$file" "$root/bin/$tool"
	done
	ln -sf busybox "$root/bin/sh"
	lab_libs "$root" "$root"/bin/*
	# Loaded by name at run time, so that ldd doesn't see it: threads that are cancelled need it.
	for file in /lib/x86_64-linux-gnu/libgcc_s.so.1 /lib/terminfo/l/linux /lib/terminfo/v/vt100 /lib/terminfo/x/xterm; do
		[ ! -e "$file" ] || { mkdir -p "$root${file%/*}" && cp -L "$file" "$root$file"; }
	done
	echo root:x:0:0:root:/root:/bin/bash >"$root/etc/passwd"
	echo root:x:0: >"$root/etc/group"
	cp "$here/init" "$root/lab/init"
	chmod 755 "$root/lab/init"

	mkdir -p "$base/early"/{bin,dev,root}
	lab_modules "$kernel" "$base/early" virtio_blk
	lab_modules "$kernel" "$root/lab/modules" kvm-amd
	cp "$(command -v busybox)" "$base/early/bin/busybox"
	cat >"$base/early/init" <<'END'
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs devtmpfs /dev
for module in /*.ko; do /bin/busybox insmod "$module"; done
/bin/busybox mount -t ext4 -o noatime /dev/vda /root
/bin/busybox mount --move /dev /root/dev
exec /bin/busybox switch_root /root /lab/init
END
	chmod 755 "$base/early/init"
	(cd "$base/early" && find . -mindepth 1 | cpio -o -H newc -R 0:0 --quiet) >"$base/initrd"
	rm -rf "$base/early"
	mv -T "$base" "$lab_base" 2>/dev/null || [ -e "$lab_base/initrd" ] || die 122 "cannot make $lab_base"
	rm -rf "$base"
	# Those of other kernels and versions, unless so new that a run may be using them.
	find "$lab" -maxdepth 1 -name 'base*' ! -path "$lab_base" -mmin +60 -exec rm -rf {} +
}

# lab_root ROOT BASE TREE ADD...: the root directory of one run: the base, the tree's build and tests, what --add
# names, and the libraries that all these need. Hard links where the file system lets us: nothing is copied but
# into the disk.
lab_root() {
	local root=$1 base=$2 tree=$3 add file dest
	shift 3
	cp -al "$base/root" "$root"
	(
		cd "$tree"
		{
			find build \( -path build/lab -o -path build/guest/cache \) -prune -o -type f \( -perm /111 -o -path 'build/guest/*' \) \
				! -name '*.[oad]' -print0
			find tests -type f -print0
		} | xargs -0 cp -l --parents -t "$root/invisor" || say "files changed while they were gathered; is make running?"
	)
	for add; do
		file=${add%%:*} dest=
		case $add in *:*) dest=${add#*:} ;; esac
		if [ -z "$dest" ]; then
			dest=$(realpath "$file")
			case $dest in "$tree"/*) dest=${dest#"$tree"/} ;; *) dest=${dest##*/} ;; esac
		fi
		case $dest in /*) dest=$root$dest ;; *) dest=$root/invisor/$dest ;; esac
		mkdir -p "$(dirname "$dest")"
		rm -rf "$dest"
		cp -aLl "$file" "$dest" 2>/dev/null || { rm -rf "$dest" && cp -aL "$file" "$dest"; } ||
			die 119 "--add $add: cannot copy $file"
	done
	find "$root/invisor" "$root/bin/bash" -type f -perm /111 -print0 >"$tmp/files"
	mapfile -d '' -t files <"$tmp/files"
	lab_libs "$root" "${files[@]}"
}

# lab_disk ROOT DISK: makes the disk of a root directory, with 2 GiB to spare (as a sparse file).
lab_disk() {
	local kib
	kib=$(du -sk --apparent-size "$1" | cut -f 1)
	mke2fs -q -F -t ext4 -O ^has_journal,^resize_inode -E lazy_itable_init=1,nodiscard,root_owner=0:0 -m 0 -N 16384 \
		-d "$1" "$2" $((kib + 2 * 1024 * 1024))k >"$tmp/mke2fs" 2>&1 ||
		die 122 "cannot make the host's disk in build/lab: $(tail -n 1 "$tmp/mke2fs")"
}
