# A suite of tests in bash: source this, define functions test_*, call `suite_run "$@"` last.
#
# Each test runs in a subshell of its own with `set -eu`, in an empty directory ($WORK), and passes if it
# returns 0. `skip WHY` ends a test as skipped, `fail WHY` as failed; one that takes longer than TEST_LIMIT
# seconds fails, says what it was at, and is ended with all that it started. Arguments of suite_run are patterns
# of tests to run (all); one that begins with - is of tests to leave out. The last line is "N passed, N failed, N skipped"; the status is 0 only if none failed
# and at least one ran.

SKIPPED=77
TEST_LIMIT=${TEST_LIMIT:-300}

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

# Processes that a test in this directory started, wherever they are now: all have it in their environment.
pids_of_work() {
	grep -lzxF "WORK=$1" /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3
}

# Tells what a test that is out of time was at: its processes, the ends of its files.
tell_stuck() {
	local pids
	pids=$(pids_of_work "$1" | tr '\n' ,)
	echo "    failed: not through in $TEST_LIMIT s. Its processes:"
	ps -o pid,ppid,stat,time,etime,wchan:24,args -p "${pids%,}" 2>/dev/null | cut -c1-160 | sed 's/^/    | /'
	# Only what is a file: reading a fifo or a socket would wait.
	find "$1" -type f -size -64k 2>/dev/null | head -n 12 | while read -r file; do
		echo "    | ${file#"$1"/}: ..."
		tail -n 8 "$file" | tr -cd '\11\12\40-\176' | cut -c1-160 | sed 's/^/    |   /'
	done
}

# await PID WORK: the status of a test in the background; 124 if its time was up, and it is then ended.
await() {
	local limit status=0
	(
		export -n WORK # not one of them itself
		sleep "$TEST_LIMIT" || exit # it was ended: so is the test
		tell_stuck "$2"
		kill -9 "$1"
		# Twice: what it started while we looked.
		for _ in 1 2; do pids_of_work "$2" | xargs -r kill -9 2>/dev/null; done
	) 2>/dev/null &
	limit=$!
	wait "$1" 2>/dev/null || status=$?
	# Kill its sleep, not just the shell, which would leave it; if it is at telling, let it end.
	if env -u WORK pkill -x sleep -P $limit; then kill $limit 2>/dev/null; else status=124; fi
	wait $limit 2>/dev/null
	return $status
}

# wanted NAME PATTERN...: is it to run?
wanted() {
	local name=$1 pattern any='' matches=''
	shift
	for pattern; do
		case $pattern in
		-*) case $name in *${pattern#-}*) return 1 ;; esac ;;
		*)
			any=1
			case $name in *$pattern*) matches=1 ;; esac ;;
		esac
	done
	[ -z "$any" ] || [ -n "$matches" ]
}

suite_run() {
	local passed=0 failed=0 skipped=0 name status began names
	names=$(declare -F | awk '$3 ~ /^test_/ {print $3}')
	for name in $names; do
		wanted "$name" "$@" || continue
		began=$(date +%s.%N)
		WORK=$(mktemp -d)
		export WORK
		status=0
		# In the background, since behind || or in an if a failing command doesn't end it, whatever set -e says.
		(
			set -eu
			trap 'status=$?; jobs -p | xargs -r kill -9 2>/dev/null || true; exit $status' EXIT
			"$name"
		) &
		await $! "$WORK" || status=$?
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
