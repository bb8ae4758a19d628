"""Reclaim against the kernel's own: the same guests with more memory than there is, in invisor's pool and compressed
memory, and in plain processes in a memory cgroup that swaps to zram."""
import json
import mmap
import os
import random
import re
import statistics
import subprocess
import tempfile
import threading
import time

from cgroup import MemoryCgroup, write
from figures import BARE, INVISOR, PLAIN, TREE, Failed, command, quantile, say, tell, wanted

GUESTS = 12
# Sizes in MiB; INVISOR_BENCH_RECLAIM=POOL:SECONDS:PAIRS chooses others. 1024:60:3 is what is claimed.
POOL_MIB, SECONDS, PAIRS = (int(n) for n in os.environ.get("INVISOR_BENCH_RECLAIM", "256:10:3").split(":"))
PACK_MIB = 2 * POOL_MIB
WARM = 3               # seconds, from the last guest's having filled its memory on
FILLING = max(12, POOL_MIB // 40)  # seconds that guests may take to fill their memory; more if that isn't enough
WORDS = 128            # of 512 in a page: LZ4 makes about a third of it
LOADS = {"uniform": "ratio=0/100", "90-10": "ratio=90/10", "90-10-scattered": "ratio=90/10 order=rand"}
FACTORS = {"1.5": 1.5, "2": 2, "3": 3}
SWAP_MIB = 4 * POOL_MIB


# ---- what guests say --------------------------------------------------------------------------------------------


class Tale:
    """The lines of some processes' guests, with the time at which they came."""

    def __init__(self):
        self.lock = threading.Lock()
        self.visits, self.filled, self.verified, self.wrong, self.text = {}, {}, set(), [], []
        self.threads, self.killed = [], None

    def listen(self, stream, name=None):
        t = threading.Thread(target=self._read, args=(stream, name), daemon=True)
        t.start()
        self.threads.append(t)

    def _read(self, stream, name):
        for line in stream:
            now = time.monotonic()
            m = re.match(r"(?:(\S+?)\| )?(.*)", line.strip())
            who, words = name or m.group(1), m.group(2)
            with self.lock:
                self.text = self.text[-20:] + [line.strip()]
                counted = re.match(r"check us=\d+ visits=(\d+)$", words)
                if counted:
                    self.visits.setdefault(who, [(self.filled[who], 0)]).append((now, int(counted.group(1))))
                elif words.startswith("check filled"):
                    self.filled[who] = now
                elif words.startswith("check part=") and words.endswith("verified"):
                    self.verified.add(who)
                elif words.startswith("FAIL") or words.startswith("plain: KVM"):
                    self.wrong.append(line.strip())

    def done_by(self, who, when):
        """Visits done until then, between the lines evenly."""
        before = self.visits[who][0]
        for at in self.visits[who]:
            if at[0] >= when:
                span = at[0] - before[0]
                return before[1] + (at[1] - before[1]) * ((when - before[0]) / span if span > 0 else 0)
            before = at
        raise Failed("%s ended too early" % who)


def throughput(tale, measured):
    """Visits a second of each guest, in a time when all of them visit; the slowest first."""
    if len(tale.visits) < GUESTS:
        return None
    begin = max(tale.filled.values()) + WARM
    end = min([begin + measured] + [v[-1][0] for v in tale.visits.values()])
    if end - begin < measured * 0.6:
        return None
    return sorted((tale.done_by(w, end) - tale.done_by(w, begin)) / (end - begin) for w in tale.visits)


def wait_for(tale, what, seconds, alive):
    end = time.monotonic() + seconds
    while len(what) < GUESTS:
        ended = not alive()  # before what it said last is looked at
        if tale.wrong or time.monotonic() > end or (ended and len(what) < GUESTS):
            raise Failed("the guests said: " + " / ".join(tale.wrong or tale.text[-4:]))
        time.sleep(0.05)


# ---- the two sides ----------------------------------------------------------------------------------------------


def work(factor, load, seconds):
    use = int(POOL_MIB * factor * 256 / GUESTS)  # pages
    return use // 256 + 16, "work=check pages=%d words=%d seconds=%d %s" % (use, WORDS, seconds, LOADS[load])


class Invisor:
    """Guests in a host of their own."""

    def __init__(self, tmp, extra=()):
        self.dir = tempfile.mkdtemp(dir=tmp)
        self.env = dict(os.environ, INVISOR_RUN_DIR=self.dir)
        self.extra = list(extra) or ["--pack", "%dM" % PACK_MIB]
        self.tale, self.last = Tale(), None

    def run(self, factor, load, seconds, watch=None):
        mib, words = work(factor, load, seconds)
        self.process = subprocess.Popen(
            [INVISOR, "run", "-n", str(GUESTS), "--mem", "%dM" % mib, "--pool", "%dM" % POOL_MIB, "--kernel", BARE,
             "--stats", self.dir + "/stats", "--append", words] + self.extra, cwd=TREE, env=self.env,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        self.tale.listen(self.process.stdout)
        alive = lambda: self.process.poll() is None or not self.process.stdout.closed and self.tale.threads[0].is_alive()
        try:
            wait_for(self.tale, self.tale.filled, 300, alive)
            if watch:
                watch(self)
            wait_for(self.tale, self.tale.verified, seconds + 600, alive)
            self.process.wait(60)
        finally:
            self.process.kill()
            self.process.wait()
        return self.tale


class Plain:
    """The same guests in plain processes, in the cgroup."""

    def __init__(self, swap):
        self.swap, self.tale = swap, Tale()

    def run(self, factor, load, seconds):
        mib, words = work(factor, load, seconds)
        args = [PLAIN, "--anonymous", BARE, str(mib)] + words.split()
        processes = []
        try:
            for i in range(GUESTS):
                p = subprocess.Popen(args, cwd=TREE, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                     stderr=subprocess.STDOUT, text=True, errors="replace",
                                     preexec_fn=self.swap.enter)
                processes.append(p)
                self.tale.listen(p.stdout, "vm-%d" % i)
            alive = lambda: any(t.is_alive() for t in self.tale.threads)
            # By the kernel, which found no page to take out: it kills, or tells of no memory what can't do without.
            killed = lambda: any(p.poll() not in (None, 0) for p in processes)
            try:
                wait_for(self.tale, self.tale.filled, 300, lambda: alive() and not killed())
                wait_for(self.tale, self.tale.verified, seconds + 600, lambda: alive() and not killed())
            except Failed:
                time.sleep(0.2)  # whose last words were read may not have ended yet
                if not killed():
                    raise
                self.tale.killed = True
        finally:
            for p in processes:
                p.kill()
            for p in processes:
                p.wait()
        return self.tale


class Swap:
    """A memory cgroup of the pool's size, below this process's own, that swaps to a zram device of its own."""

    def __enter__(self):
        self.number, self.cgroup, self.on = None, MemoryCgroup(), False
        try:
            self._make()
        except OSError as e:
            self.__exit__()
            raise Failed("no zram or no memory cgroup to compare with: %s" % e)
        return self

    def _make(self):
        if not os.path.exists("/sys/class/zram-control"):
            subprocess.run(["modprobe", "zram"], stderr=subprocess.DEVNULL)
        with open("/sys/class/zram-control/hot_add") as f:
            self.number = int(f.read())
        block, device = "/sys/block/zram%d/" % self.number, "/dev/zram%d" % self.number
        write(block + "comp_algorithm", "lz4")
        write(block + "disksize", "%dM" % SWAP_MIB)
        write(block + "mem_limit", "%dM" % PACK_MIB)
        for args in (["mkswap", device], ["swapon", device]):
            if subprocess.run(args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
                raise OSError("%s failed" % args[0])
        self.on = True
        self.cgroup.__enter__()
        # Processes and their page tables count too: 2 MiB for each guest.
        self.cgroup.limit((POOL_MIB + 2 * GUESTS) << 20)

    def enter(self):
        self.cgroup.enter()

    def used(self):
        """MiB of the host's memory that zram takes."""
        with open("/sys/block/zram%d/mm_stat" % self.number) as f:
            return int(f.read().split()[2]) / (1 << 20)

    def __exit__(self, *_):
        self.cgroup.__exit__()
        if self.on:
            subprocess.run(["swapoff", "/dev/zram%d" % self.number], stderr=subprocess.DEVNULL)
        if self.number is not None:
            write("/sys/class/zram-control/hot_remove", str(self.number))


# ---- throughput -------------------------------------------------------------------------------------------------


def throughput_id(factor, load):
    return "reclaim-throughput-%sx-%s" % (factor, load)


THROUGHPUT_IDS = [throughput_id(f, l) for f in FACTORS for l in LOADS]


# The middle guest's share says whether all had something of it: a few guests whose memory stays where it is can make
# up for others that stand still.
# -killed: in how many runs a guest of the kernel's side died for want of memory, in spite of room in its zram.
THROUGHPUT_IDS += [i + more for i in THROUGHPUT_IDS for more in ("-median", "-killed")]


def one_side(run):
    """Visits a second of each guest, and whether one was killed after that: the kernel does so when it finds no page to
    take out at once. What counts is the time before; where that's too short it is tried again."""
    filling = FILLING
    for _ in range(6):
        tale = run(SECONDS + WARM + filling)
        visits = throughput(tale, SECONDS)
        if visits:
            return visits, tale.killed
        filling *= 1 if tale.killed else 2
    raise Failed("guests were killed before they could be measured" if tale.killed else
                 "the guests don't come to visit their pages together")


def pair(tmp, swap, factor, load, plain_first):
    """Visits a second of each guest: ours, the kernel's; and whether the kernel killed any."""
    sides = {}
    for side in ("plain", "invisor") if plain_first else ("invisor", "plain"):
        guests = (lambda: Plain(swap)) if side == "plain" else (lambda: Invisor(tmp))
        sides[side] = one_side(lambda seconds: guests().run(factor, load, seconds))
    return sides["invisor"][0], sides["plain"][0], bool(sides["plain"][1])


def tell_ratio(name, pairs, of, bound):
    ratios = [of(a) / of(b) for a, b, _ in pairs]
    tell(name, statistics.median(ratios), "ratio", None, (min(ratios), max(ratios)), len(ratios), least=bound)


def bench_throughput():
    with tempfile.TemporaryDirectory() as tmp, Swap() as swap:
        for factor in FACTORS:
            for load in LOADS:
                name = throughput_id(factor, load)
                if not wanted(name):
                    continue
                pairs = [pair(tmp, swap, FACTORS[factor], load, i % 2 == 1) for i in range(PAIRS)]
                tell_ratio(name, pairs, sum, None if load.endswith("scattered") else 1)
                tell_ratio(name + "-median", pairs, statistics.median, None)
                tell(name + "-killed", sum(k for _, _, k in pairs), "runs of zram's", n=len(pairs))
                for a, b, _ in pairs:
                    say("    visits a second, all (slowest to fastest guest): invisor %d (%d to %d), zram %d (%d to %d)" %
                        (sum(a), a[0], a[-1], sum(b), b[0], b[-1]))


# ---- pages that come back ---------------------------------------------------------------------------------------

REFAULT_POOL_MIB, REFAULT_SECONDS, REFAULT_ROUNDS, ZRAM_MIB = 64, 6, 3, 32
REFAULT_IDS = ["reclaim-refault-%s-%s-us" % (s, q) for s in ("packed", "file", "zram") for q in ("p50", "p99")]
SOON_IDS = ["reclaim-refault-10s-share"]


def alone(tmp, store):
    """p50 and p99, us, of the service of faults that bring a page back: one guest, half as large again as the pool."""
    out = tempfile.mkdtemp(dir=tmp)
    pages = REFAULT_POOL_MIB * 256 * 3 // 2
    command([INVISOR, "run", "--mem", "%dM" % (pages // 256 + 16), "--pool", "%dM" % REFAULT_POOL_MIB, "--kernel", BARE,
             "--stats", out + "/stats", "--timeout", "200", "--append",
             "work=check pages=%d words=%d seconds=%d ratio=0/100" % (pages, WORDS, REFAULT_SECONDS)] + store, 250,
            env=dict(os.environ, INVISOR_RUN_DIR=out))
    with open(out + "/stats") as f:
        fetch = json.load(f)["at_end"]["vms"][0]["fetch"]
    if fetch["count"] < 1000:
        raise Failed("only %d pages were brought back" % fetch["count"])
    return fetch["p50_ns"] / 1e3, fetch["p99_ns"] / 1e3


def zram_alone():
    """The same of a process's touch of a page that the kernel has swapped to zram: its own clock, so with the trap."""
    size, pageout = ZRAM_MIB << 20, 21
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as m:
        m.madvise(mmap.MADV_NOHUGEPAGE)
        dice = random.Random(1)
        for at in range(0, size, 4096):
            words = [dice.getrandbits(64) for _ in range(WORDS)]
            m[at:at + 4096] = b"".join(bytes(24) + w.to_bytes(8, "little") for w in words)
        m.madvise(pageout)
        order, times = list(range(0, size, 4096)), []
        random.Random(1).shuffle(order)
        for at in order:
            before = time.perf_counter_ns()
            m[at]
            times.append(time.perf_counter_ns() - before)
        # What is no swap-in took a fraction of a microsecond.
        times = [t / 1e3 for t in times if t > 1000]
    if len(times) < len(order) / 2:
        raise Failed("the kernel didn't swap: %d of %d pages came from zram" % (len(times), len(order)))
    return quantile(times, 0.5), quantile(times, 0.99)


def bench_refault():
    sides = {s: [] for s in ("packed", "file", "zram")}
    with tempfile.TemporaryDirectory() as tmp, tempfile.TemporaryDirectory(dir="/var/tmp") as disk, Swap():
        for i in range(REFAULT_ROUNDS):
            sides["packed"].append(alone(tmp, ["--pack", "%dM" % (2 * REFAULT_POOL_MIB)]))
            sides["file"].append(alone(tmp, ["--swap", "%s/swap%d,%dM" % (disk, i, 4 * REFAULT_POOL_MIB)]))
            sides["zram"].append(zram_alone())
    for side, rounds in sides.items():
        for k, q in enumerate(("p50", "p99")):
            values = [r[k] for r in rounds]
            tell("reclaim-refault-%s-%s-us" % (side, q), statistics.median(values), "us", None,
                 (min(values), max(values)), len(values))


def bench_soon():
    """Of the pages that went out, at most so many came back within ten seconds."""
    with tempfile.TemporaryDirectory() as tmp:
        host = Invisor(tmp)
        host.run(1.5, "90-10", SECONDS + WARM + 3 * FILLING)
        with open(host.dir + "/stats") as f:
            stats = json.load(f)["at_end"]
    soon = sum(v["fetched_soon_frames"] for v in stats["vms"])
    # As many went out as came back, or more.
    back = sum(v["fetched_frames"] for v in stats["vms"])
    tell("reclaim-refault-10s-share", soon / back, "at most")
