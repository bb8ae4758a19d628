"""A host of invisor's and what can be asked of it, for campaigns of faults: see campaign, and check.py."""
import base64
import glob
import json
import os
import signal
import socket
import subprocess
import time

TREE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
INVISOR = os.environ.get("INVISOR", TREE + "/build/invisor")
BARE = TREE + "/build/guest/bare.elf"


class Wrong(Exception):
    """Something that must not be."""


class Refused(Exception):
    """A request that was answered by words."""


class Host:
    """`invisor host start --foreground` with merging and reclaim, in a run directory of its own."""

    def __init__(self, directory, options=()):
        self.dir = directory
        self.log = directory + "/log"
        self.swap = directory + "/swap"
        self.run_dir = directory + "/run"
        self.env = dict(os.environ, INVISOR_RUN_DIR=self.run_dir)
        self.options = list(options)
        self.begin()

    def begin(self):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [INVISOR, "host", "start", "--foreground", "--pool", "128M", "--pack", "8M", "--swap",
                 self.swap + ",64M", "--merge", "60", "--max-vms", "64"] + self.options,
                env=self.env, cwd=self.dir, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        end = time.monotonic() + 10
        while True:
            try:
                self.ask({"do": "status"})
                return
            except (OSError, Refused):
                if self.process.poll() is not None or time.monotonic() > end:
                    raise Wrong("the host doesn't start: " + self.words()[-300:])
                time.sleep(0.02)

    def replace(self):
        """It is killed, and another adopts what it had."""
        self.process.kill()
        self.process.wait()
        self.begin()

    def words(self):
        with open(self.log, errors="replace") as f:
            return f.read()

    def alive(self):
        return self.process.poll() is None

    def ask(self, request, seconds=15):
        """The answer; Refused with its words; Wrong if there is none in time."""
        s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        s.settimeout(seconds)
        try:
            s.connect(self.run_dir + "/host.sock")
            try:
                s.sendall(json.dumps(request).encode() + b"\n")
            except BrokenPipeError:
                pass  # it has answered already
            text = b""
            while not text.endswith(b"\n"):
                got = s.recv(65536)
                if not got:
                    break
                text += got
        except socket.timeout:
            raise Wrong("no answer in %d s to %s" % (seconds, json.dumps(request)))
        finally:
            s.close()
        if not text:
            raise Refused("the host closed the connection without a word" if self.alive() else "the host is gone")
        answer = json.loads(text)
        if "error" in answer:
            if not answer["error"]:
                raise Wrong("an error without words to " + json.dumps(request))
            raise Refused(answer["error"])
        return answer

    def start(self, name, *options):
        """A guest that serves (or does what `options` say)."""
        return self.ask({"do": "run", "wait": "up", "options": [
            "--kernel", BARE, "--name", name, "--mem", "16M"] + list(options or ["--append", "work=serve"])})

    def exec(self, vm, command, seconds=15):
        """The output of a command in a bare guest (guest/bare/serve.c)."""
        answer = self.ask({"do": "exec", "vm": vm, "command": command}, seconds)
        return base64.b64decode(answer["output"]).decode(errors="replace").strip()

    def serves(self, vm, seconds=10):
        """Wait until a guest takes commands."""
        end = time.monotonic() + seconds
        while True:
            try:
                return self.exec(vm, "echo up")
            except Refused as e:
                if time.monotonic() > end or "called" in str(e) or "ended" in str(e):
                    raise
                time.sleep(0.02)

    def stats(self):
        return self.ask({"do": "stats", "processes": False})

    def vms(self):
        """By name, templates too."""
        return {v["name"]: v for v in self.stats()["vms"]}

    def kill(self, *names):
        return self.ask({"do": "kill", "vms": list(names)} if names else {"do": "kill", "all": True})

    def fail(self, programs=None, off=False, seed=None):
        """Set failpoints; what all of them came to, by name."""
        request = {"do": "fail", "off": off}
        if programs:
            request["set"] = programs
        if seed is not None:
            request["seed"] = seed
        return {p["name"]: p for p in self.ask(request)["failpoints"]}

    def audit(self):
        a = self.ask({"do": "audit"})
        return a["lines"] if a["violations"] else []

    def stop(self):
        """End it, and say its exit status."""
        try:
            self.ask({"do": "stop", "how": "off"}, 30)
        except (OSError, Refused, Wrong):
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            where = ["%s in %s" % (name, wchan(pid)) for pid, name in self.processes().items()]
            self.process.kill()
            self.process.wait()
            raise Wrong("the host doesn't end: %s: %s" % (", ".join(where), self.words()[-300:]))

    def destroy(self):
        """It, its keeper, and the VMs that would go on without it."""
        self.process.kill()
        self.process.wait()
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def processes(self):
        """Pids of all that belong to the run directory and are invisor's."""
        return processes_of(self.run_dir)


def wchan(pid):
    """Where in the kernel a process waits."""
    try:
        with open("/proc/%d/wchan" % pid) as f:
            return f.read()
    except OSError:
        return "?"


def processes_of(run_dir):
    wanted = ("INVISOR_RUN_DIR=" + run_dir).encode()
    found = {}
    for exe in glob.glob("/proc/[0-9]*/exe"):
        try:
            if os.readlink(exe).split(" ")[0] != INVISOR:
                continue
            pid = int(exe.split("/")[2])
            with open("/proc/%d/environ" % pid, "rb") as f:
                if wanted not in f.read().split(b"\0"):
                    continue
            with open("/proc/%d/comm" % pid) as f:
                found[pid] = f.read().strip()
        except OSError:
            pass
    return found
