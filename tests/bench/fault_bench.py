"""What failpoints cost that are off: the same program with and without them, in turns."""
import os
import re

from figures import BARE, BUILD, INVISOR, Failed, command, tell_samples

FAULT_IDS = ["fault-failpoints-off", "fault-failpoints-off-noise"]

NONE = BUILD + "/nofail/invisor"  # built with FAIL_NONE: tests/bench/bench.mk
MIB, PAIRS = 256, int(os.environ.get("INVISOR_BENCH_FAULT_PAIRS", "41"))


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
    for i in range(PAIRS):
        pair = {}
        for program in ((INVISOR, NONE), (NONE, INVISOR))[i % 2]:
            pair[program] = touch(program)
        ratios.append(pair[INVISOR] / pair[NONE])
        if before:  # how far the same program is from itself, so that the ratio can be judged
            same.append(pair[NONE] / before)
        before = pair[NONE]
    tell_samples("fault-failpoints-off", ratios, "ratio", 1.01)
    tell_samples("fault-failpoints-off-noise", same, "ratio")
