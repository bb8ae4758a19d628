"""A memory cgroup below this process's own, of cgroup v1 or v2: what is in it is counted (kernel memory too) and can be
limited."""
import itertools
import os
import time

ROOT = "/sys/fs/cgroup"
numbers = itertools.count()


class MemoryCgroup:
    """A context. OSError if there can be none."""

    def __init__(self):
        with open("/proc/self/cgroup") as f:
            mine = {c: p for _, c, p in (line.rstrip("\n").split(":", 2) for line in f)}
        self.old = "memory" in mine
        name = "invisor-bench-%d-%d" % (os.getpid(), next(numbers))
        self.path = ROOT + ("/memory%s/" % mine["memory"].rstrip("/") if self.old else "/") + name

    def __enter__(self):
        if not self.old:
            write(ROOT + "/cgroup.subtree_control", "+memory")
        os.mkdir(self.path)
        return self

    def __exit__(self, *_):
        if not os.path.isdir(self.path):
            return
        for _ in range(100):  # who was told to end may be about to
            if not self.processes():
                break
            time.sleep(0.1)
        os.rmdir(self.path)

    def limit(self, size):
        """Where the kernel finds nothing to take out at once, who asks waits or is told so, and isn't killed, if the
        kernel offers that (cgroup v1; Documentation/admin-guide/cgroup-v1/memory.rst, section 10)."""
        write(self.path + ("/memory.limit_in_bytes" if self.old else "/memory.max"), str(size))
        if self.old:
            write(self.path + "/memory.swappiness", "100")
            write(self.path + "/memory.oom_control", "1")

    def enter(self):
        """Put this process in: for subprocess's preexec_fn."""
        write(self.path + "/cgroup.procs", str(os.getpid()))

    def processes(self):
        with open(self.path + "/cgroup.procs") as f:
            return f.read().split()

    def used(self):
        """Bytes."""
        with open(self.path + ("/memory.usage_in_bytes" if self.old else "/memory.current")) as f:
            return int(f.read())


def write(path, text):
    with open(path, "w") as f:
        f.write(text)
