#!/bin/sh
# Run test programs made with Criterion, one after another, and total what they say:
#   run.sh PROGRAM... [OPTION...]
# Ends with "N passed, N failed, N skipped"; status 0 if none failed and every program ended in words.
passed=0 failed=0 skipped=0 broken=0
programs= options=
for arg; do
	case $arg in
	-*) options="$options $arg" ;;
	*) programs="$programs $arg" ;;
	esac
done
log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT
for program in $programs; do
	echo "$program:"
	# shellcheck disable=SC2086
	LC_ALL=C timeout -k 10 900 "$program" --color=never $options >"$log" 2>&1
	status=$?
	cat "$log"
	line=$(grep 'Synthesis: Tested:' "$log" | tail -1)
	set -- $(echo "$line" | sed -n \
		's/.*Tested: *\([0-9]*\) | Passing: *\([0-9]*\) | Failing: *\([0-9]*\) | Crashing: *\([0-9]*\).*/\1 \2 \3 \4/p')
	if [ $# -ne 4 ]; then
		echo "$program ended with status $status before its summary"
		broken=$((broken + 1))
		continue
	fi
	s=$(grep '^\[SKIP\]' "$log" | grep -vc 'Test is disabled')
	passed=$((passed + $2 - s)) failed=$((failed + $3 + $4)) skipped=$((skipped + s))
	[ "$status" -eq 0 ] || [ $(($3 + $4)) -gt 0 ] || broken=$((broken + 1))
done
failed=$((failed + broken))
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
