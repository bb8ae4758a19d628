"""What must hold after a fault: used after every round of a campaign, and by whoever else hurts a host.

    before = Checkpoint(host)        of a host at rest
    ...                              anything that may hurt some VMs
    survivors(host, {"vm-1": ["seed=3 base=4M pages=64"]})     those named live, answer, and hold what they wrote
    at_rest(host)                    the table is clean, nothing is under way
    nothing_left(host, before)       after the last VM's end: no frame, slot, process, descriptor or file is left

Each raises Wrong with words that say what is wrong.
"""
import os
import time

from host import Wrong

PATIENCE = 5  # seconds that what is under way may take to end


def until(true, seconds=PATIENCE):
    """Poll; the last value, which is true unless time is up."""
    end = time.monotonic() + seconds
    while True:
        value = true()
        if value or time.monotonic() > end:
            return value
        time.sleep(0.02)


def descriptors(pid):
    """What a process has open, without numbers that tell of nothing; sorted."""
    found = []
    for fd in os.listdir("/proc/%d/fd" % pid):
        try:
            to = os.readlink("/proc/%d/fd/%s" % (pid, fd))
        except OSError:
            continue
        found.append(to.split(":[")[0])
    return sorted(found)


def mappings(pid):
    with open("/proc/%d/maps" % pid) as f:
        return sum(1 for _ in f)


class Checkpoint:
    """A host without VMs: what it has of its own."""

    def __init__(self, host):
        # The workers are named a moment after their forks.
        def named():
            names = sorted(host.processes().values())
            return names.count("invisor") == 1 and "merger" in names and "reclaimer" in names

        if not until(named):
            raise Wrong("processes of a host at rest: %s" % host.processes())
        self.descriptors = descriptors(host.process.pid)
        self.mappings = mappings(host.process.pid)
        self.files = sorted(os.listdir(host.run_dir))
        self.workers = sorted(c for c in host.processes().values())


def survivors(host, held):
    """held: {VM: [what `check` of the bare guest is to find]}"""
    alive = host.vms()
    for vm, checks in held.items():
        if vm not in alive:
            raise Wrong("%s is gone: %s" % (vm, host.words()[-400:]))
        holds(host, vm, checks)


def holds(host, vm, checks):
    """One VM's part of it; Refused if it doesn't answer."""
    for what in checks:
        found = host.exec(vm, "check " + what)
        if found != "ok":
            raise Wrong("%s: check %s: %s" % (vm, what, found))


def at_rest(host):
    """The table is clean, and no frame is on its way. Twice in a row, since an audit can see changes under way."""
    lines = []

    def clean():
        lines[:] = host.audit()
        return not lines

    if not until(clean):
        raise Wrong("audit: " + "; ".join(lines[:5]))


def nothing_left(host, before):
    """After all VMs, templates too, were killed."""

    def left():
        s = host.stats()
        what = []
        if s["vms"]:
            what.append("VMs: " + ", ".join(v["name"] for v in s["vms"]))
        p = s["pool"]
        if p["frames_free"] != p["frames_total"]:
            what.append("frames: %d free of %d, %d private, %d shared, %d limbo" % (
                p["frames_free"], p["frames_total"], p["frames_private"], p["frames_shared"], p["frames_limbo"]))
        if p["populated_bytes"]:
            what.append("%d bytes of the pool" % p["populated_bytes"])
        r = s["reclaim"]
        if r:
            for key in ("pages_out", "packed_memory_used_bytes", "swap_used_bytes"):
                if r[key]:
                    what.append("%s: %d" % (key, r[key]))
        if s["merge"] and s["merge"]["aliases"]:
            what.append("aliases: %d" % s["merge"]["aliases"])
        now = sorted(host.processes().values())
        if now != before.workers:
            what.append("processes: %s instead of %s" % (now, before.workers))
        now = descriptors(host.process.pid)
        if now != before.descriptors:
            more = list(now)
            for d in before.descriptors:
                if d in more:
                    more.remove(d)
            what.append("descriptors: %d instead of %d, %s" % (len(now), len(before.descriptors), more[:6]))
        if mappings(host.process.pid) > before.mappings + 4:
            what.append("mappings of the host: %d instead of %d" % (mappings(host.process.pid), before.mappings))
        if sorted(os.listdir(host.run_dir)) != before.files:
            what.append("files: %s" % os.listdir(host.run_dir))
        return what

    what = []

    def gone():
        what[:] = left()
        return not what

    if not until(gone):
        raise Wrong("left behind: " + "; ".join(what))
    at_rest(host)
