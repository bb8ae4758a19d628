"""What clones take: time, and memory of the host and of the table. Bare guests on this machine's own KVM."""
import json
import os
import re
import socket
import statistics
import subprocess
import tempfile
import time

from cgroup import MemoryCgroup
from figures import BARE, BUILD, INVISOR, TREE, Failed, command, tell, tell_samples, wanted

CLONE_IDS = ["clone-p50-ms", "clone-first-exit-ms", "clone-answer-ms", "clone-1000-s", "clone-idle-kib",
             "clone-kib", "kvm-floor-kib"]
MERGE_IDS = ["merge-slowdown", "merge-bare-share"]
FLEET_IDS = ["predict-write-ms", "predict-faults", "fleet-kernel-bytes", "fleet-kernel-bytes-unpredicted"]

SINGLE, MANY, IDLE, FEW = 200, 1000, 200, 8
REST = 8  # seconds until idle clones have given back what they needed to begin


class Host:
    """A long-running host of its own, asked by its control socket."""

    def __init__(self, tmp, pool="3G", max_vms=2500, merge="off", preexec=None):
        self.dir = tempfile.mkdtemp(dir=tmp)
        self.env = dict(os.environ, INVISOR_RUN_DIR=self.dir)
        command([INVISOR, "host", "start", "--pool", pool, "--max-vms", str(max_vms), "--merge", merge], 100,
                env=self.env, preexec_fn=preexec)

    def invisor(self, *args):
        return command([INVISOR] + list(args), 100, env=self.env)[0]

    def ask(self, **request):
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(100)
            s.connect(self.dir + "/host.sock")
            s.sendall(json.dumps(request).encode() + b"\n")
            answer = json.loads(s.makefile().readline())
        if "error" in answer:
            raise Failed("%s: %s" % (request, answer["error"]))
        return answer

    def boot(self, words="work=serve"):
        """A bare guest of 128 MiB that has come to rest; its name."""
        name = self.invisor("run", "--detach", "--kernel", BARE, "--mem", "128M", "--append", words).split()[0]
        end = time.monotonic() + 60
        while "serve" not in self.invisor("console", "--once", name):
            if time.monotonic() > end:
                raise Failed("the guest doesn't come to serve")
            time.sleep(0.1)
        return name

    def template(self, name):
        """One clone of it is made and ended; the template stays."""
        clone = self.ask(do="clone", vm=name)["clones"][0]["name"]
        self.kill([clone])
        return next(v["name"] for v in self.ask(do="stats")["vms"] if v["state"] == "template")

    def kill(self, names):
        self.ask(do="kill", vms=names)

    def vms(self, names=None):
        vms = self.ask(do="stats", processes=False)["vms"]
        return [v for v in vms if names is None or v["name"] in names]

    def stop(self):
        subprocess.run([INVISOR, "host", "stop", "--kill"], cwd=TREE, env=self.env, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL, timeout=60)


def floor_kib():
    """What KVM itself takes for an empty VM, in a memory cgroup of its own: IDLE more VMs over few."""
    used = []
    for count in FEW, FEW + IDLE:
        with MemoryCgroup() as cgroup, subprocess.Popen(
                [BUILD + "/bench-floor", str(count), "128"], cwd=TREE, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                text=True, preexec_fn=cgroup.enter) as p:
            if not p.stdout.readline():
                raise Failed("bench-floor %d: status %d" % (count, p.wait()))
            time.sleep(1)
            used.append(cgroup.used())
            p.stdin.close()
            p.wait()
    return (used[1] - used[0]) / 1024 / IDLE


def names_of(answer):
    return [c["name"] for c in answer["clones"]]


def single_clones(host, template):
    run, first_exit, answer = [], [], []
    for _ in range(SINGLE):
        began = time.monotonic()
        got = host.ask(do="clone", vm=template)
        answer.append((time.monotonic() - began) * 1e3)
        run.append(got["clones"][0]["milliseconds"])
        time.sleep(0.005)
        vm = host.vms(names_of(got))[0]
        first_exit.append(vm["asked_to_first_exit_seconds"] * 1e3)
        host.kill(names_of(got))
    tell_samples("clone-p50-ms", run, "ms", 1)
    tell_samples("clone-first-exit-ms", first_exit, "ms")
    tell_samples("clone-answer-ms", answer, "ms")


def many_clones(host, template):
    began = time.monotonic()
    got = host.ask(do="clone", vm=template, count=MANY)
    seconds = time.monotonic() - began
    if len(got["clones"]) != MANY:
        raise Failed("%d clones of %d" % (len(got["clones"]), MANY))
    tell("clone-1000-s", seconds, "s", 2, n=MANY)
    host.kill(names_of(got))


def clone_kib():
    """What one more idle clone takes, in a memory cgroup that host and guests are in."""
    with tempfile.TemporaryDirectory() as tmp, MemoryCgroup() as cgroup:
        host = Host(tmp, preexec=cgroup.enter)
        try:
            template = host.template(host.boot())
            host.ask(do="clone", vm=template, count=FEW)
            time.sleep(REST)
            before = cgroup.used()
            host.ask(do="clone", vm=template, count=IDLE)
            time.sleep(REST)
            return (cgroup.used() - before) / 1024 / IDLE
        finally:
            host.stop()


def idle_clones():
    floors, clones = [], []
    try:
        for _ in range(3):
            floors.append(floor_kib())
            clones.append(clone_kib())
    except OSError as e:
        raise Failed("no memory cgroup to count in: %s" % e)
    tell_samples("clone-kib", clones, "KiB")
    tell_samples("kvm-floor-kib", floors, "KiB")
    tell_samples("clone-idle-kib", [c - f for c, f in zip(clones, floors)], "KiB", 150)


def with_host(bench, words="work=serve"):
    with tempfile.TemporaryDirectory() as tmp:
        host = Host(tmp)
        try:
            bench(host, host.template(host.boot(words)))
        finally:
            host.stop()


def bench_clones():
    if wanted("clone-p50-ms", "clone-first-exit-ms", "clone-answer-ms"):
        with_host(single_clones)
    if wanted("clone-1000-s"):
        with_host(many_clones)
    if wanted("clone-idle-kib", "clone-kib", "kvm-floor-kib"):
        idle_clones()


# ---- copy on write: prediction, and what the kernel takes for private pages ----------------------------------------

WRITERS, PAGES, RUN, SPAN = 20, 500, 8, 16 << 20
FULL = "work=pattern base=32M mem=16M work=serve"  # what clones write to isn't void


def write_set():
    """[(gpa)] of runs of RUN pages, scattered over SPAN, the same for all clones, as of programs that start alike."""
    slots = SPAN // (RUN * 4096)
    step = 389  # coprime to the slots: no order, no neighbours
    return [(32 << 20) + i * step % slots * RUN * 4096 for i in range(PAGES // RUN + 1)]


def write_all(host, vm, places, pages=RUN):
    """Fill runs of pages, by as few commands as these have room for."""
    words = ["fill seed=1 base=0x%x pages=%d" % (gpa, pages) for gpa in places]
    for i in range(0, len(words), 24):
        answer = host.ask(do="exec", vm=vm, command=";".join(words[i:i + 24]))
        if answer["status"]:
            raise Failed("%s doesn't fill its pages: %s" % (vm, answer))


def vma_bytes():
    """VMAs with their trees, of all processes."""
    total = 0
    with open("/proc/slabinfo") as f:
        for line in f:
            m = re.match(r"(vm_area_struct|maple_node)\s+(\d+)\s+\d+\s+(\d+)", line)
            if m:
                total += int(m.group(2)) * int(m.group(3))
    return total


def page_table_bytes(pids):
    total = 0
    for pid in pids:
        with open("/proc/%d/status" % pid) as f:
            total += next(int(line.split()[1]) for line in f if line.startswith("VmPTE:")) * 1024
    return total


def prediction(host, template):
    """One write set a clone, written at once: with what others wrote copied ahead, and without."""
    places = write_set()
    times, faults = {True: [], False: []}, {True: [], False: []}
    for i in range(4 + 2 * WRITERS):
        predict = i >= 4 and i % 2 == 0
        vm = names_of(host.ask(do="clone", vm=template, predict=predict))[0]
        began = time.monotonic()
        write_all(host, vm, places, 1)
        if i >= 4:
            times[predict].append((time.monotonic() - began) * 1e3)
            faults[predict].append(host.vms([vm])[0]["second_stage_faults"]["copied"])
        host.kill([vm])
    tell_samples("predict-write-ms", [on / off for on, off in zip(times[True], times[False])], "ratio")
    tell_samples("predict-faults", [on / off for on, off in zip(faults[True], faults[False])], "ratio")


def written_clones(host, template, predict, write):
    """What the kernel takes for WRITERS clones' mappings, and their private pages."""
    before = vma_bytes()
    got = host.ask(do="clone", vm=template, count=WRITERS, predict=predict)
    vms = names_of(got)
    if write:
        for vm in vms:
            write_all(host, vm, write_set())
    time.sleep(1)
    took = vma_bytes() - before + page_table_bytes([c["pid"] for c in got["clones"]])
    pages = sum(v["frames_private"] for v in host.vms(set(vms)))
    host.kill(vms)
    time.sleep(1)
    return took, pages


def kernel_memory(host, template):
    for _ in range(4):  # they learn what the others will be given
        vm = names_of(host.ask(do="clone", vm=template))[0]
        write_all(host, vm, write_set())
        host.kill([vm])
    resting, few = written_clones(host, template, False, False)
    for name, predict, bound in (("fleet-kernel-bytes", True, 250), ("fleet-kernel-bytes-unpredicted", False, None)):
        took, pages = written_clones(host, template, predict, True)
        if pages < WRITERS * PAGES:
            raise Failed("%d clones have %d private pages" % (WRITERS, pages))
        tell(name, (took - resting) / (pages - few), "bytes/page", bound, n=pages)


def bench_fleet():
    if wanted("predict-write-ms", "predict-faults"):
        with_host(prediction, FULL)
    if wanted("fleet-kernel-bytes", "fleet-kernel-bytes-unpredicted"):
        with_host(kernel_memory, FULL)


# ---- merging -------------------------------------------------------------------------------------------------------

LOOPS, MERGE_PAIRS = 300000000, 5
TIMES = {"off": 8, "10": 36}  # of the loop: with merging, until the guests' equal frames are merged


def with_merging(tmp, merge):
    """A host under which four guests hold the same 64 MiB, and one computes; seconds of a loop, share given back."""
    host = Host(tmp, merge=merge)
    try:
        names = [host.boot("work=pattern base=32M mem=64M work=serve") for _ in range(4)]
        full = sum(v["frames_private"] for v in host.vms(names))
        worker = host.boot()
        loop = []
        for _ in range(TIMES[merge]):
            began = time.monotonic()
            if host.ask(do="exec", vm=worker, command="cpu loops=%d" % LOOPS)["status"]:
                raise Failed("the loop failed")
            loop.append(time.monotonic() - began)
        stats = host.ask(do="stats", processes=False)
        left = sum(v["frames_private"] for v in stats["vms"] if v["name"] in names) + stats["pool"]["frames_shared"]
        return statistics.median(loop), 1 - left / full
    finally:
        host.stop()


def bench_merge():
    """The loop while the merger works at its bound, over the same with merging off; hosts take turns."""
    ratios, shares = [], []
    with tempfile.TemporaryDirectory() as tmp:
        for i in range(MERGE_PAIRS):
            order = ["10", "off"] if i % 2 else ["off", "10"]
            got = {merge: with_merging(tmp, merge) for merge in order}
            ratios.append(got["10"][0] / got["off"][0])
            shares.append(got["10"][1])
    tell_samples("merge-slowdown", ratios, "ratio", 1.03)
    tell_samples("merge-bare-share", shares, "of the frames")
