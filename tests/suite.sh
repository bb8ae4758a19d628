# A suite of tests in bash: source this, define functions test_*, call `suite_run "$@"` last.
#
# Each test runs in a subshell of its own with `set -eu`, in an empty directory ($WORK), and passes if it
# returns 0. `skip WHY` ends a test as skipped, `fail WHY` as failed. Arguments of suite_run are patterns of
# tests to run (all). The last line is "N passed, N failed, N skipped"; the status is 0 only if none failed
# and at least one ran.

SKIPPED=77

skip() { echo "    skipped: $*"; exit $SKIPPED; }
fail() { echo "    failed: $*"; exit 1; }

# expect STATUS COMMAND...: runs it with standard output to $WORK/out and standard error to $WORK/err.
expect() {
	local want=$1 got=0
	shift
	"$@" >"$WORK/out" 2>"$WORK/err" </dev/null || got=$?
	[ "$got" = "$want" ] || {
		tail -n 20 "$WORK/out" "$WORK/err" | sed 's/^/    | /'
		fail "status $got instead of $want: $*"
	}
}

# has FILE PATTERN: a line of the file matches the extended regular expression.
has() {
	grep -Eq -- "$2" "$1" || {
		tail -n 20 "$1" | sed 's/^/    | /'
		fail "no line of $(basename "$1") matches: $2"
	}
}

# until_true SECONDS COMMAND...: waits for the command to succeed.
until_true() {
	local end=$((SECONDS + $1))
	shift
	until "$@" 2>/dev/null; do
		[ $SECONDS -lt $end ] || fail "did not come true in time: $*"
		sleep 0.1
	done
}

suite_run() {
	local passed=0 failed=0 skipped=0 name status began names
	names=$(declare -F | awk '$3 ~ /^test_/ {print $3}')
	for name in $names; do
		if [ $# -gt 0 ]; then
			local wanted=0 pattern
			for pattern in "$@"; do case $name in *$pattern*) wanted=1 ;; esac; done
			[ $wanted = 1 ] || continue
		fi
		began=$(date +%s.%N)
		WORK=$(mktemp -d)
		export WORK
		status=0
		# In the background, since behind || or in an if a failing command doesn't end it, whatever set -e says.
		(
			set -eu
			trap 'status=$?; jobs -p | xargs -r kill -9 2>/dev/null; exit $status' EXIT
			"$name"
		) &
		wait $! || status=$?
		rm -rf "$WORK"
		case $status in
		0) passed=$((passed + 1)) && status=ok ;;
		"$SKIPPED") skipped=$((skipped + 1)) && status=SKIP ;;
		*) failed=$((failed + 1)) && status=FAIL ;;
		esac
		printf '%-4s %s (%.1f s)\n' "$status" "$name" "$(echo "$(date +%s.%N) $began" | awk '{print $1 - $2}')"
	done
	echo "$passed passed, $failed failed, $skipped skipped"
	[ $failed = 0 ] && [ $((passed + skipped)) -gt 0 ]
}
