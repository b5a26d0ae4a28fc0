"""Checks of disk space, memory and the output directory."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from rescoldo.base.model import BaseModel
from rescoldo.doctor.check import Check, failure, ok, refused, warning
from rescoldo.doctor.needs import disk_need
from rescoldo.doctor.subject import Subject
from rescoldo.engine.memory import MemoryNeed, memory_need
from rescoldo.engine.precisions import fitting, is_calibrated
from rescoldo.errors import RescoldoError
from rescoldo.files import choose_cache, quote, read_json
from rescoldo.invocation import program
from rescoldo.run.layout import INFO_FILE, list_checkpoints
from rescoldo.run.lock import read_holder
from rescoldo.system.cgroup import memory_limit
from rescoldo.system.memory import memory_available, memory_total
from rescoldo.training.config import check_paths
from rescoldo.training.identity import differences, refuse_if_foreign
from rescoldo.units import count, gigabytes, size

SCRATCH = 50_000_000  # bytes needed to compile the kernels and for caches
MIN_FILES = 1000  # inodes that a run needs
COMFORT = 0.9  # usable fraction of the free memory


def existing(path: Path) -> Path:
    """`path`, or its nearest existing parent."""
    path = Path(os.path.abspath(path))
    while not path.exists():
        path = path.parent
    return path


def disk(subject: Subject) -> Iterator[Check]:
    """Space for the output, and for temporary files and caches if they are on other disks."""
    output, base = subject.config.output, subject.base
    if base is not None:
        need = disk_need(base.config, subject.lora(base), subject.config.epochs, subject.config.keep_checkpoints)
        there = _size(output)
        need = max(0, need - there)
        place = existing(output)
        free = shutil.disk_usage(place).free
        figures = {"needed_bytes": need, "free_bytes": free, "path": str(place)}
        text = f"the run needs about {size(need)} at {place}, {size(free)} are free"
        remedy = f"df -h {quote(place)}; free some room, or --keep-checkpoints 1, or another --output"
        if need > free:
            yield failure("disk", text, remedy, **figures)
        elif need > COMFORT * free:
            yield warning("disk", text, remedy, **figures)
        else:
            yield ok("disk", text, **figures)
        inodes = os.statvfs(place)
        if inodes.f_files and inodes.f_favail < MIN_FILES:
            yield failure(
                "disk", f"{place} can hold only {count(inodes.f_favail, 'more file')}", f"df -i {quote(place)}"
            )
    cache, why = choose_cache()
    if why:
        remedy = "export XDG_CACHE_HOME=/a/writable/folder, to store them elsewhere"
        yield warning("caches", f"they are kept in {cache}: {why}", remedy, path=str(cache))
    for name, folder in (("temporary files", Path(tempfile.gettempdir())), ("caches", existing(cache))):
        free = shutil.disk_usage(folder).free
        text = f"{name} are in {folder}: {size(free)} are free"
        if free < SCRATCH:
            variable = "TMPDIR" if name == "temporary files" else "XDG_CACHE_HOME"
            yield failure("disk", text, f"export {variable}=/another/disk", free_bytes=free)
        elif not os.access(folder, os.W_OK):
            yield warning("disk", f"{name} cannot be written in {folder}", f"chmod u+w {quote(folder)}")
        else:
            yield ok("disk", text, free_bytes=free)


def _size(folder: Path) -> int:
    """The total size in bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0


def memory(subject: Subject) -> Iterator[Check]:
    """The predicted peak compared with free memory, the container's limit and swap."""
    base = subject.base
    if base is None:
        return
    precision = subject.config.quantization
    need = _need(subject, base, precision)
    free, swap, limit = memory_available(), psutil.swap_memory().free, memory_limit()
    figures = {
        "least_bytes": need.least,
        "peak_bytes": need.peak(free),
        "full_bytes": need.full,
        "free_bytes": free,
        "total_bytes": memory_total(),
        "swap_free_bytes": swap,
        "limit_bytes": limit,
    }
    within = f" within the container's limit of {gigabytes(limit)}" if limit else ""
    have = f"{gigabytes(free)} are free{within}"
    small = filter(is_calibrated, fitting(base.config))
    smaller = [name for name in small if _fits(subject, base, name, free)]
    remedy = f"--quantization {smaller[0]}" if smaller and precision not in smaller else "a smaller base model"
    remedy += ", or a smaller --max-length or --batch-size; end other programs"
    if need.least > free:
        at_least = f"{precision} needs at least {gigabytes(need.least)}, {have}"
        if need.least > free + swap or limit:
            yield failure("memory", at_least, remedy, **figures)
        else:
            yield warning("memory", f"{at_least}: it would swap, and become many times slower", remedy, **figures)
    elif need.least > COMFORT * free:
        yield warning("memory", f"{precision} needs at least {gigabytes(need.least)}, {have}", remedy, **figures)
    elif need.full > COMFORT * free:
        kept = max(0, int((COMFORT * free - need.least) / need.layer_activations))
        text = f"activations of {kept} of {count(need.n_layers, 'layer')} fit, those of the others are recomputed"
        what = f"peak about {gigabytes(need.peak(free))} in {precision}, {have}: {text}"
        yield warning("memory", what, f"for more speed: {remedy}", **figures)
    else:
        yield ok("memory", f"peak about {gigabytes(need.peak(free))} in {precision}, {have}", **figures)


def _need(subject: Subject, base: BaseModel, precision: str) -> MemoryNeed:
    lora, mapped = subject.lora(base), base.maps_embedding()
    return memory_need(base.config, precision, lora, subject.rows, base.stored_bytes(), mapped=mapped)


def _fits(subject: Subject, base: BaseModel, precision: str, free: int) -> bool:
    need = _need(subject, base, precision)
    return need.least <= COMFORT * free


def output(subject: Subject) -> Iterator[Check]:
    """The output directory: writable, free or resumable, and not in use."""
    path = subject.config.output
    try:
        check_paths(subject.config)
        refuse_if_foreign(path)
    except RescoldoError as error:
        yield refused("output", error)
        return
    holder = read_holder(path)
    if holder is not None and holder.alive is not False and not subject.ours:
        what = f"process {holder.pid} on {holder.host} has been using {path} since {holder.since}"
        yield failure("output", what, f"{program()} stop {quote(path)}, or another --output")
        return
    info, newest = read_json(path / INFO_FILE), next(iter(list_checkpoints(path)), None)
    was = (info or {}).get("identity")
    if was is None and newest is not None:
        was = (read_json(newest / "manifest.json") or {}).get("identity")
    found = differences(was, subject.identity) if isinstance(was, dict) and subject.identity is not None else []
    if found:
        what = f"{path} holds a run with other settings (was → is): {'; '.join(found)}"
        yield failure("output", what, "the settings it was started with, another --output, or --restart")
    elif info is not None and was is not None:
        yield ok("output", f"{path} holds this run, finished")
    elif newest is not None:
        yield ok("output", f"{path} holds this run: it will resume from {newest.name}")
    else:
        yield ok("output", f"{path} is writable and free")
