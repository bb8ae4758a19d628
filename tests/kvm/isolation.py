#!/usr/bin/env python3
"""No byte that one clone writes is ever seen by another: random steps against a model.

usage: isolation.py [--seconds N] [--seed N] [--workers N] [--socket PATH] VM

VM is a running bare guest with work=serve and at least 8 MiB, fresh, in a long-running host. Steps are writes of
pages, clones of guests and templates, kills, pauses and resumes; several workers do them at the same time, each on a
VM that no other has at that moment. The model knows of every page of every VM which write it holds. Most writes have
contents of their own; some are equal, for a host that merges. At the end of each batch of steps every page of every VM is
looked at, and the table is audited. With --workers 1 a seed gives the same steps each time.
"""
import argparse
import base64
import json
import os
import random
import socket
import sys
import threading
import time

BASE = 4 << 20  # first page, gpa
PAGES = 192
MOST_VMS = 24
EQUAL = 3  # seeds of which pages are equal in several VMs
COMMAND_MOST = 1000  # bytes that the guest takes
MASK = (1 << 64) - 1


class Wrong(Exception):
    pass


def word(seed, number):
    """guest/bare/region.h, region_word"""
    z = (seed * 0xD1342543DE82EF95 + number * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ z >> 29) * 0xBF58476D1CE4E5B9) & MASK
    return (z ^ z >> 32) | 1


class Host:
    def __init__(self, path):
        self.path = path

    def ask(self, **request):
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(60)
            s.connect(self.path)
            s.sendall(json.dumps(request).encode() + b"\n")
            answer = b""
            while piece := s.recv(65536):
                answer += piece
        return json.loads(answer)

    def must(self, **request):
        answer = self.ask(**request)
        if "error" in answer:
            raise Wrong("%s: %s" % (request, answer["error"]))
        return answer

    def run(self, vm, command):
        """In the guest: its status and what it says."""
        answer = self.must(do="exec", vm=vm, command=command)
        return answer["status"], base64.b64decode(answer["output"]).decode()


class VM:
    def __init__(self, name, pages, template=False):
        self.name, self.pages, self.template = name, list(pages), template
        self.paused = self.busy = False


class World:
    def __init__(self, host, first):
        self.host = host
        self.lock = threading.Lock()
        self.vms = {first: VM(first, [0] * PAGES)}
        self.writes = self.names = 0  # so far
        self.count = dict.fromkeys(("write", "clone", "kill", "pause", "resume"), 0)
        self.looked = self.batches = self.merged = 0  # pages; batches; frames
        self.wrong = None

    # VMs are taken for a step, and put back after it.
    def take(self, random_, test):
        with self.lock:
            free = [v for v in self.vms.values() if not v.busy and test(v)]
            if not free:
                return None
            vm = random_.choice(sorted(free, key=lambda v: v.name))
            vm.busy = True
            return vm

    def put(self, vm):
        with self.lock:
            vm.busy = False

    def guests(self):
        return sum(not v.template for v in self.vms.values())

    # ---- steps, each of a VM that was taken -------------------------------------------------

    def write(self, vm, random_):
        commands, pages = [], list(vm.pages)
        for _ in range(random_.randint(1, 10)):
            n = random_.choice((1, 1, 1, 2, 3, 16, 40))
            first = random_.randrange(PAGES - n + 1)
            with self.lock:
                self.writes += 1
                seed = random_.choices((0, EQUAL + self.writes), (3, 15))[0]
            if random_.random() < 0.1:
                n, first, seed = 16, random_.randrange(PAGES // 16) * 16, random_.randint(1, EQUAL)
            pages[first : first + n] = [seed] * n
            commands.append("fill seed=%d base=%d pages=%d" % (seed, BASE + first * 4096, n))
        status, said = self.host.run(vm.name, ";".join(commands))
        if status:
            raise Wrong("%s: %s: %s" % (vm.name, commands, said))
        vm.pages = pages

    def clone(self, vm, random_):
        with self.lock:
            self.names += 1
            name = "c%d" % self.names
            room = MOST_VMS - self.guests()
        n = min(random_.choice((1, 1, 2, 5)), room)
        if n < 1:
            return
        predict = random_.random() < 0.7
        answer = self.host.ask(do="clone", vm=vm.name, count=n, name=name, predict=predict)
        if vm.template and "error" in answer:
            # One of which no clone is left goes by itself when its VM is frozen anew.
            if "no running VM" not in answer["error"] and "its process ended" not in answer["error"]:
                raise Wrong("clone %s: %s" % (vm.name, answer["error"]))
            with self.lock:
                del self.vms[vm.name]
            return
        if "error" in answer:
            raise Wrong("clone %s: %s" % (vm.name, answer["error"]))
        made = [VM(c["name"], vm.pages) for c in answer["clones"]]
        if len(made) != n:
            raise Wrong("%s: %d clones instead of %d" % (vm.name, len(made), n))
        for one in made:
            one.busy = True
        with self.lock:
            self.vms.update({one.name: one for one in made})
        if not vm.template:
            self.find_template(made[0].name, vm)
        for one in made:
            if random_.random() < 0.5:
                self.look(one)
            self.put(one)

    def find_template(self, clone, of):
        for v in self.host.must(do="stats", processes=False)["vms"]:
            if v["name"] == clone and v["parent"]:
                with self.lock:
                    self.vms.setdefault(v["parent"], VM(v["parent"], of.pages, True))

    def kill(self, vm, _):
        answer = self.host.ask(do="kill", vms=[vm.name])
        if "error" in answer and not vm.template:
            raise Wrong("kill %s: %s" % (vm.name, answer["error"]))
        with self.lock:
            del self.vms[vm.name]

    def pause(self, vm, _):
        self.host.must(do="pause", vm=vm.name)
        vm.paused = True

    def resume(self, vm, _):
        self.host.must(do="resume", vm=vm.name)
        vm.paused = False

    # ---- looking -------------------------------------------------------------------------------

    def look(self, vm):
        """Does the guest see all of its pages, and nothing else?"""
        page, runs = 0, []
        command = "runs %d" % BASE
        while page < PAGES:
            n = 1
            while page + n < PAGES and vm.pages[page + n] == vm.pages[page]:
                n += 1
            run = " %d*%d" % (vm.pages[page], n)
            if len(command) + len(run) > COMMAND_MOST:
                runs.append(command)
                command = "runs %d" % (BASE + page * 4096)
            command += run
            page += n
        for command in runs + [command]:
            status, said = self.host.run(vm.name, command)
            if status:
                raise Wrong("%s: %s" % (vm.name, self.explain(vm, said)))
        with self.lock:
            self.looked += PAGES

    def explain(self, vm, said):
        if not said.startswith("bad "):
            return said
        at = int(said.split()[1], 0)
        page, expected = (at - BASE) // 4096, vm.pages[(at - BASE) // 4096]
        found = int(self.host.run(vm.name, "read %d" % at)[1], 0)
        whose = [v.name for v in self.vms.values() if v.pages[page] and word(v.pages[page], at // 8) == found]
        return "page %d at 0x%x: write %d expected, 0x%x found (%s)" % (
            page, at, expected, found, "what %s wrote" % ", ".join(whose) if whose else "nobody's now")

    def end_batch(self, random_):
        self.drop_templates_that_went()
        for vm in list(self.vms.values()):
            if vm.template:
                continue
            if vm.paused:
                self.resume(vm, random_)
            self.look(vm)
        audit = self.host.must(do="audit")
        if audit["violations"]:
            raise Wrong("audit: %s" % audit["lines"])
        self.batches += 1
        if self.batches % 4 == 0:
            self.let_merge()

    def merging(self):
        """What the host says of merging; None if it doesn't merge."""
        merge = self.host.must(do="stats", processes=False).get("merge")
        return merge if merge and merge["running"] else None

    def let_merge(self):
        """What stays as it is for some passes is merged: writes after that copy merged pages."""
        merge = self.merging()
        passes = merge["passes"] + 3 if merge else 0
        deadline = time.monotonic() + 5
        while merge and merge["passes"] < passes and time.monotonic() < deadline:
            time.sleep(0.1)
            merge = self.merging()
        if merge:
            self.merged = merge["merged_frames"] + merge["zero_frames_given_back"]

    def end(self):
        """All are killed; every frame has to come back."""
        self.host.must(do="kill", all=True)
        deadline = time.monotonic() + 10
        while True:
            for v in self.host.must(do="stats", processes=False)["vms"]:
                self.host.ask(do="kill", vms=[v["name"]])
            status = self.host.must(do="status")
            if status["frames_free"] == status["frames_total"]:
                return
            if time.monotonic() > deadline:
                raise Wrong("%d of %d frames are free at the end" % (status["frames_free"], status["frames_total"]))
            time.sleep(0.05)

    def drop_templates_that_went(self):
        there = {v["name"] for v in self.host.must(do="stats", processes=False)["vms"]}
        gone = [v for v in self.vms.values() if v.name not in there]
        for vm in gone:
            if not vm.template:
                raise Wrong("%s is gone" % vm.name)
            del self.vms[vm.name]


def step(world, random_):
    what = random_.choices(("write", "clone", "kill", "pause", "resume"), (60, 16, 13, 4, 6))[0]
    tests = {
        "write": lambda v: not v.template and not v.paused,
        "clone": lambda v: True,
        # Never the last guest: with it all would be over.
        "kill": lambda v: v.template or world.guests() > 2,
        "pause": lambda v: not v.template and not v.paused,
        "resume": lambda v: v.paused,
    }
    vm = world.take(random_, tests[what])
    if not vm:
        return
    try:
        getattr(world, what)(vm, random_)
        world.count[what] += 1
        if not vm.template and not vm.paused and what != "kill" and random_.random() < 0.2:
            world.look(vm)
    finally:
        world.put(vm)


def work(world, random_, steps):
    try:
        for _ in range(steps):
            if world.wrong:
                return
            step(world, random_)
    except Exception as e:  # whatever it is, the test has failed
        world.wrong = world.wrong or "%s: %s" % (type(e).__name__, e)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--seconds", type=float, default=20)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--workers", type=int, default=3)
    p.add_argument("--socket", default=os.environ.get("INVISOR_RUN_DIR", "/run/invisor") + "/host.sock")
    p.add_argument("vm")
    o = p.parse_args()
    world = World(Host(o.socket), o.vm)
    randoms = [random.Random("%d %d" % (o.seed, i)) for i in range(o.workers)]
    began = time.monotonic()
    try:
        while not world.wrong and time.monotonic() - began < o.seconds:
            workers = [threading.Thread(target=work, args=(world, r, 40)) for r in randoms]
            for w in workers:
                w.start()
            for w in workers:
                w.join()
            if not world.wrong:
                world.end_batch(randoms[0])
        if not world.wrong:
            world.end()
    except Exception as e:
        world.wrong = "%s: %s" % (type(e).__name__, e)
    done = ", ".join("%d %s%s" % (n, what, "" if n == 1 else "s") for what, n in world.count.items())
    print("isolation: %s; %d frames merged; %d pages looked at in %d batches; seed %d, %d workers"
          % (done, world.merged, world.looked, world.batches, o.seed, o.workers))
    if world.wrong:
        print("isolation: FAILED with seed %d, batch %d: %s" % (o.seed, world.batches + 1, world.wrong))
        sys.exit(1)


main()
