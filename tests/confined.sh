# What every process of a host but the host itself and its keeper has given up, as /proc tells it. Read by tests/kvm/suite and
# tests/lab/suite; as root, since others' processes don't show theirs.

FIRST_ID=1879048192

# All processes that come of that one.
descendants() { # PID
	local p
	for p in $(cat /proc/"$1"/task/*/children 2>/dev/null); do
		echo "$p"
		descendants "$p"
	done
}

status_of() { sed -n "s/^$2:[[:space:]]*//p" "$1/status" 2>/dev/null; } # DIRECTORY KEY
ends_now() { [ ! -e "/proc/$1/status" ] || [ "$(status_of "/proc/$1" State | cut -c 1)" = Z ]; }

# One thread. Prints how many filters it has.
confined_task() { # PID DIRECTORY
	local key value id
	id=$(status_of "$2" Uid | cut -f 1)
	[ "$id" -ge $FIRST_ID ] && [ "$id" -lt $((FIRST_ID + 65536)) ] || fail "$2: is user $id"
	for key in Uid Gid; do
		value=$(status_of "$2" $key | tr '\t' ' ')
		[ "$value" = "$id $id $id $id" ] || fail "$2: $key $value"
	done
	[ -z "$(status_of "$2" Groups | tr -d ' ')" ] || fail "$2: is in groups $(status_of "$2" Groups)"
	for key in CapInh CapPrm CapEff CapBnd CapAmb; do
		[ "$(status_of "$2" $key)" = 0000000000000000 ] || fail "$2: $key $(status_of "$2" $key)"
	done
	[ "$(status_of "$2" NoNewPrivs)" = 1 ] || fail "$2: may get new privileges"
	[ "$(status_of "$2" Seccomp)" = 2 ] || fail "$2: has no filter"
	status_of "$2" Seccomp_filters
}

# One process: prints "COMM THREADS-WITH-ONE-FILTER THREADS-WITH-TWO".
confined_process() { # PID HOST-PID FILES-IT-MAY-HAVE
	local p=/proc/$1 limit task ns link fd one=0 two=0 filters
	for task in "$p"/task/*; do
		filters=$(confined_task "$1" "$task") || { [ -e "$task/status" ] || continue; echo "$filters" >&2; return 1; }
		# KVM's own thread runs in the kernel only, by the filters of the vCPU that was the first.
		case $(cat "$task/comm"):$filters in kvm-nx-*) continue ;; esac
		case $filters in
		1) one=$((one + 1)) ;;
		2) two=$((two + 1)) ;;
		*) fail "$task: has $filters filters" >&2 ;;
		esac
	done
	for ns in mnt net ipc uts; do
		[ "$(readlink "$p/ns/$ns")" != "$(readlink "/proc/$2/ns/$ns")" ] || fail "$p: is in the host's $ns namespace" >&2
	done
	[ "$(readlink "$p/cwd")" = / ] || fail "$p: its directory is $(readlink "$p/cwd")" >&2
	[ -z "$(ls -A "$p/root/")" ] || fail "$p: its root has $(ls -A "$p/root/")" >&2
	[ "$(wc -l <"$p/mountinfo")" -ge 1 ] || fail "$p: no mountinfo" >&2
	for fd in "$p"/fd/*; do
		link=$(readlink "$fd") || continue
		case $fd:$link in
		*:/dev/null | */2:*) ;;
		*:/dev/kvm | *:/dev/userfaultfd | *:anon_inode:* | *:"/memfd:invisor-"* | *:socket:*) ;;
		*:"/proc/$1/maps" | *:"/proc/$1/pagemap" | *:/maps | *:/pagemap | *:"/$1/maps" | *:"/$1/pagemap") ;;
		*) case " $3 " in *" $link "*) ;; *) fail "$fd: is $link" >&2 ;; esac ;;
		esac
	done
	[ -z "$(readlink "$p/fd/0" | grep -v '^/dev/null$')" ] || fail "$p: reads from $(readlink "$p/fd/0")" >&2
	grep -q '^Max core file size  *0  *0 ' "$p/limits" || fail "$p: may write cores" >&2
	# Workers have two files of each of the 1024 sharing domains that there may be, and 64 others.
	case $(cat "$p/comm") in merger | reclaimer) limit=2112 ;; *) limit=256 ;; esac
	grep -Eq "^Max open files  *$limit  *$limit " "$p/limits" || fail "$p: $(grep 'open files' "$p/limits")" >&2
	! grep -q '^Max processes  *unlimited' "$p/limits" || fail "$p: any number of tasks" >&2
	! grep -q '^Max data size  *unlimited' "$p/limits" || fail "$p: any amount of memory" >&2
	! awk '$2 ~ /wx/' "$p/maps" | grep -q . || fail "$p: has memory that it may write and execute" >&2
	[ "$(grep -c 'memfd:invisor-mailbox' "$p/maps")" -le 1 ] || fail "$p: has others' mailboxes" >&2
	echo "$(cat "$p/comm") $one $two"
}

# Every process of a host, one line each as above. Those that end meanwhile are left out.
confined() { # HOST-PID [FILES-THEY-MAY-HAVE]
	local pid line
	for pid in $(descendants "$1"); do
		# It holds the host's descriptors for the next one: no guest, and nothing of a guest's, comes to it.
		[ "$(cat "/proc/$pid/comm" 2>/dev/null)" != keeper ] || continue
		line=$(confined_process "$pid" "$1" "${2:-}") || { ends_now "$pid" && continue; return 1; }
		echo "$line"
	done
}
