"""What failpoints cost that are off: the same program with and without them, in turns."""
import os
import re

from figures import BARE, BUILD, INVISOR, Failed, command, tell_samples

FAULT_IDS = ["fault-failpoints-off", "fault-failpoints-off-noise"]

NONE = BUILD + "/nofail/invisor"  # built with FAIL_NONE: tests/bench/bench.mk
# Short runs, and of each few the quickest: on a busy machine that is the one which nobody interrupted.
MIB, GROUPS, RUNS = 32, int(os.environ.get("INVISOR_BENCH_FAULT_GROUPS", "21")), 8


def touch(program):
    """Cycles a page of touching all of a guest's memory at random, each touch a fault or in the midst of some."""
    out, _ = command([program, "run", "--kernel", BARE, "--mem", "%dM" % (MIB + 64), "--timeout", "60", "--append",
                      "work=touch mem=%dM order=rand" % MIB], 90)
    m = re.search(r"touch pass=0 part=0 .* cycles=(\d+) cycles/page=", out)
    if not m or "DONE" not in out:
        raise Failed("the bare guest said: " + out.strip()[-300:])
    return int(m.group(1)) / (MIB * 256)


def bench_failpoints():
    command(["make", "--no-print-directory", NONE], 600)
    for program in (INVISOR, NONE):
        touch(program)  # so that files are in memory
    ratios, same, before = [], [], None
    for _ in range(GROUPS):
        times = {INVISOR: [], NONE: []}
        for i in range(RUNS):
            for program in ((INVISOR, NONE), (NONE, INVISOR))[i % 2]:
                times[program].append(touch(program))
        best = {program: min(t) for program, t in times.items()}
        ratios.append(best[INVISOR] / best[NONE])
        if before:  # how far the same program is from itself, so that the ratio can be judged
            same.append(best[NONE] / before)
        before = best[NONE]
    tell_samples("fault-failpoints-off", ratios, "ratio", 1.01)
    tell_samples("fault-failpoints-off-noise", same, "ratio")
