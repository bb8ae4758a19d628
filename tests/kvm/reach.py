#!/usr/bin/env python3
"""What of guests' memory a process can reach: the pool's files that it has, and whether a word is in what it can read.

usage: reach.py PID [WORD]...     (as root)

Prints "files INODE..." of the pool's files that the process has as descriptors or mappings, "packed INODE..." of those of
packed memory if there are any, and for each 64-bit word
"WORD yes" or "WORD no": is it anywhere in the shared memory that the process has a descriptor of, or maps, or in the pages
of its own that are in memory? What isn't in memory isn't looked at, since looking would bring it in.
"""
import os
import re
import struct
import sys

PAGE = 4096


def data_of(path):
    """The parts of a file that have memory."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return
    at, size = 0, os.fstat(fd).st_size
    while at < size:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            break
        end = os.lseek(fd, at, os.SEEK_HOLE)
        while at < end:
            piece = os.pread(fd, min(end - at, 1 << 20), at)
            if not piece:
                end = at
                break
            yield piece
            at += len(piece)
    os.close(fd)


def own_pages(pid, maps):
    """Pages that the process has in memory, whatever they are of."""
    with open("/proc/%s/pagemap" % pid, "rb", 0) as pagemap, open("/proc/%s/mem" % pid, "rb", 0) as mem:
        for start, end, access, _, _ in maps:
            if "r" not in access:
                continue
            pagemap.seek(start // PAGE * 8)
            entries = pagemap.read((end - start) // PAGE * 8)
            for i, (entry,) in enumerate(struct.iter_unpack("<Q", entries)):
                if entry >> 63:
                    try:
                        mem.seek(start + i * PAGE)
                        yield mem.read(PAGE)
                    except OSError:
                        pass


def mappings(pid):
    for line in open("/proc/%s/maps" % pid):
        m = re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ (\d+) *(.*)", line)
        yield int(m[1], 16), int(m[2], 16), m[3], int(m[4]), m[5]


def main():
    pid, words = sys.argv[1], [int(w, 0) for w in sys.argv[2:]]
    maps = list(mappings(pid))
    files, packed, shared = set(), set(), {}

    def note(name, inode):
        if name.startswith("/memfd:invisor-pool"):
            files.add(inode)
        elif name.startswith("/memfd:invisor-packed"):
            packed.add(inode)

    for name in os.listdir("/proc/%s/fd" % pid):
        path = "/proc/%s/fd/%s" % (pid, name)
        if os.readlink(path).startswith("/memfd:"):
            shared[os.stat(path).st_ino] = path
            note(os.readlink(path), os.stat(path).st_ino)
    for start, end, _, inode, name in maps:
        if name.startswith("/memfd:"):
            shared.setdefault(inode, "/proc/%s/map_files/%x-%x" % (pid, start, end))
            note(name, inode)
    print("files", *sorted(files))
    if packed:
        print("packed", *sorted(packed))
    found = set()
    looked = 0
    for piece in (p for path in [*shared.values(), None] for p in (data_of(path) if path else own_pages(pid, maps))):
        looked += len(piece)
        for word in words:
            if word not in found and struct.pack("<Q", word) in piece:
                found.add(word)
    if not looked:
        sys.exit("nothing of process %s can be read" % pid)
    for word in words:
        print("%#x" % word, "yes" if word in found else "no")


main()
