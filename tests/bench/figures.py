"""Figures of make bench: which were asked for, what was measured, and running what measures them."""
import os
import statistics
import subprocess

TREE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = "build"
BARE = BUILD + "/guest/bare.elf"
INVISOR = BUILD + "/invisor"
PLAIN = BUILD + "/bench-plain"
RESULTS = BUILD + "/bench.json"

wanted_prefixes = []
figures = {}
failures = []


class Failed(Exception):
    """A bench could not run."""


def wanted(*ids):
    return any(i.startswith(p) for i in ids for p in wanted_prefixes) or not wanted_prefixes


def say(text):
    print(text, flush=True)


def number(v):
    return "%d" % v if float(v).is_integer() and abs(v) < 1e9 else "%.4g" % v


def quantile(samples, q):
    s = sorted(samples)
    return s[int(q * (len(s) - 1) + 0.5)]


def tell(name, value, unit, bound=None, spread=None, n=1, least=None):
    """One figure: kept if it was asked for. A bound is the largest value that holds, or `least` the smallest."""
    if not wanted(name):
        return
    holds = None if bound is None else bool(0 <= value <= bound)  # below 0 is "never"
    if least is not None:
        bound, holds = least, bool(value >= least)
    figures[name] = {"value": value, "unit": unit, "bound": bound, "holds": holds,
                     "spread": list(spread) if spread else [value, value], "n": n}
    line = "%-34s %10s %-14s" % (name, number(value), unit)
    if spread and n > 1:
        line += " (%s to %s, n=%d)" % (number(spread[0]), number(spread[1]), n)
    if holds is not None:
        line += "  at %s %s: %s" % ("most" if least is None else "least", number(bound),
                                   "holds" if holds else "*** MISSED ***")
    say(line)


def tell_samples(name, samples, unit, bound=None):
    tell(name, statistics.median(samples), unit, bound, (quantile(samples, 0.1), quantile(samples, 0.9)), len(samples))


def command(args, timeout, **more):
    try:
        p = subprocess.run(args, cwd=TREE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
                           text=True, errors="replace", timeout=timeout, **more)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise Failed("%s: %s" % (args[0], e))
    if p.returncode != 0:
        raise Failed("%s: status %d: %s" % (" ".join(args[:4]), p.returncode,
                                            (p.stdout + p.stderr).strip()[-600:]))
    return p.stdout, p.stderr


def native():
    p = subprocess.run([INVISOR, "probe"], cwd=TREE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return p.returncode == 0 and p.stdout.startswith("native")
