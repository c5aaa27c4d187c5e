"""A prepared corpus of any size without its audio, and the memory that processes need for it."""

import gc
import multiprocessing
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa

from ssmast.audio import Corpus
from ssmast.audio.corpus.entries import ArrayEntries, IndexFile, write_index


def huge_index(path: Path, entries: int) -> None:
    """An index as prepare writes it, for `entries` clips in shards of 1000."""
    numbers = np.arange(entries)
    names = np.char.add(np.char.zfill(numbers.astype("S9"), 9), b"-00000.flac")
    write_index(
        path,
        ArrayEntries(
            names=pa.array(names, type=pa.large_binary()),
            sizes=np.full(entries, 150_000),
            shard=(numbers // 1000).astype(np.int32),
            offset=(numbers % 1000) * 150_528 + 512,
        ),
        shards=[f"shard-{number:06d}.tar" for number in range(entries // 1000 + 1)],
        listing_hash="0" * 64,
    )


def memory_of_this_process() -> dict[str, float]:
    """Private memory and proportional share in MB, as the kernel counts them."""
    found: dict[str, float] = {"private": 0.0, "pss": 0.0}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name.startswith("Private"):
            found["private"] += int(rest.split()[0]) / 1024
        elif name == "Pss":
            found["pss"] += int(rest.split()[0]) / 1024
    return found


def open_and_draw(corpus: Corpus, lookups: int, seed: int, results: Any, barrier: Any) -> None:
    """What a worker does: look up clips of the shuffled order; then say what it holds."""
    gc.collect()
    before = memory_of_this_process()
    begin = time.perf_counter()
    positions = np.arange(seed * lookups, (seed + 1) * lookups)
    _, clips = corpus.sample_at(positions, seed=0)
    for clip in clips.tolist():
        entry = corpus.entries[clip]
        assert entry.size == 150_000
    seconds = time.perf_counter() - begin
    barrier.wait()  # all hold what they hold when they look
    after = memory_of_this_process()
    added = {name: after[name] - before[name] for name in after}
    results.put({"added": added, "lookup": seconds / lookups})


def memory(entries: int, num_workers: int, lookups: int = 100_000) -> dict[str, Any]:
    """Seconds to open, and MB that opening and looking up add to each process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.index"
        huge_index(path, entries)
        gc.collect()
        before = memory_of_this_process()
        begin = time.perf_counter()
        corpus = Corpus(root=Path(folder), entries=IndexFile(path))
        assert len(corpus) == entries
        opening = time.perf_counter() - begin
        after = memory_of_this_process()
        context = multiprocessing.get_context("fork")
        results, barrier = context.Queue(), context.Barrier(num_workers)
        workers = [
            context.Process(target=open_and_draw, args=(corpus, lookups, seed, results, barrier))
            for seed in range(num_workers)
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python warns of a fork beside torch's threads
            for worker in workers:
                worker.start()
        found = [results.get() for _ in workers]
        for worker in workers:
            worker.join()
        return {
            "entries": entries,
            "index_mb": path.stat().st_size / 2**20,
            "open_seconds": opening,
            "main_added": {name: after[name] - before[name] for name in after},
            "workers_added": [one["added"] for one in found],
            "lookup_seconds": median(one["lookup"] for one in found),
        }
