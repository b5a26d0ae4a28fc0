"""One run on several machines, measured: two workers of one core each against one of one core, over loopback and
between network namespaces at 1 Gbit/s and 100 Mbit/s; against one beside which another run keeps the other core busy,
since two machines would not share a cache; what the exchange of gradients costs, and how much of it is hidden behind
the last backward pass; a worker killed, a link cut; and on paper, with the measured terms, 8, 64 and 1,000 machines.

python -m benchmarks.scaling --output benchmarks/out/scaling.json
python -m benchmarks.scaling --only one,loopback --examples 16 --output benchmarks/out/scaling-16.json

Namespaces and shaping need root, `ip` and `tc`; without them these parts are left out, with the reason. Each part can
be measured in a run of its own: --output is added to.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe
from benchmarks.needs import writable
from rescoldo.base import open_base
from rescoldo.data.dataset import read_dataset
from rescoldo.engine.config import LINEARS
from rescoldo.engine.model import parameter_shapes
from rescoldo.engine.types import LoraConfig
from rescoldo.files import read_json, write_json
from rescoldo.nodes.scaling import GIGABIT, step_time, worth
from rescoldo.nodes.share import Load, load_of
from rescoldo.role import get_role
from rescoldo.run.layout import read_json_lines

DATA = Path("artifacts/synthetic").absolute()
TRAIN, VAL = DATA / "ba_train_v2_fixed.jsonl", DATA / "ba_val_v2_fixed.jsonl"
HOSTS = ("rescoldo-a", "rescoldo-b", "rescoldo-c", "rescoldo-d")
SWITCH = "rescoldo-switch"
RATES = {"gigabit": "1gbit", "100mbit": "100mbit"}
PARTS = ("one", "beside", "loopback", *RATES, "exchange", "overlap", "killed", "cut", "paper")
PORT = 29477
ADAPTER = LoraConfig(rank=16, targets=LINEARS)  # the sample's
SEVEN_B_BYTES = 27.3e6  # an adapter of rank 8 on the attention of a 7B model
MACHINES = (2, 8, 64, 1000)


def shell(line: str) -> None:
    """Run a command of `ip` or `tc`."""
    subprocess.run(line.split(), check=True, capture_output=True, text=True)


class Network:
    """Hosts on a switch: 10.77.0.1, 10.77.0.2, …"""

    def __init__(self, rate: str, hosts: int = 2) -> None:
        self.close()
        shell(f"ip netns add {SWITCH}")
        shell(f"ip -n {SWITCH} link add name switch type bridge")
        shell(f"ip -n {SWITCH} link set switch up")
        for i, host in enumerate(HOSTS[:hosts], 1):
            shell(f"ip netns add {host}")
            shell(f"ip -n {host} link add card type veth peer name port{i} netns {SWITCH}")
            shell(f"ip -n {SWITCH} link set port{i} master switch up")
            shell(f"ip -n {host} addr add 10.77.0.{i}/24 dev card")
            shell(f"ip -n {host} link set card up")
            shell(f"ip -n {host} link set lo up")
            shell(f"tc -n {host} qdisc add dev card root tbf rate {rate} burst 256kb latency 100ms")

    def cut(self) -> None:
        """Pull the second host's plug."""
        shell(f"ip -n {HOSTS[1]} link set card down")

    @staticmethod
    def close() -> None:
        """Remove all of it; a card goes with its host."""
        for host in (*HOSTS, SWITCH):
            subprocess.run(["ip", "netns", "del", host], check=False, capture_output=True)


def in_host(place: int | None, core: int) -> list[str]:
    """What puts a command onto a host and a core."""
    host = ["ip", "netns", "exec", HOSTS[place]] if place is not None else []
    return [*host, "taskset", "-c", str(core)]


def train(
    folder: Path, args: argparse.Namespace, steps: int, workers: int, hosts: bool, first_core: int = 0
) -> list[subprocess.Popen[str]]:
    """Start a run of that many optimizer steps, one core for each worker."""
    command = [sys.executable, "-m", "rescoldo", "train", "--train", TRAIN, "--val", VAL, "--val-limit", 1]
    command += ["--output", folder / "run", "--max-steps", steps, "--grad-accum", args.examples, "--threads", 1]
    command += ["--quantization", args.precision, "--checkpoint-minutes", args.minutes, "--epochs", steps, "--force"]
    if workers > 1:
        address = "10.77.0.1" if hosts else "127.0.0.1"
        command += ["--nodes", workers, "--rendezvous", f"{address}:{PORT}", "--join-seconds", 60 if steps < 5 else 10]
    cores = sorted(os.sched_getaffinity(0))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    started = []
    for i in range(workers):
        with open(folder / f"{i}.log", "w") as log:
            line = [*in_host(i if hosts else None, cores[(first_core + i) % len(cores)]), *map(str, command)]
            started.append(
                subprocess.Popen(line, stdout=log, stderr=subprocess.STDOUT, text=True, env=environment, cwd=folder)
            )
        if not i and workers > 1:
            while not (folder / "run" / "run.lock").exists() and started[0].poll() is None:
                time.sleep(0.1)
    return started


def events(folder: Path) -> list[dict[str, Any]]:
    """What the run has noted about its steps so far."""
    return [one for one in read_json_lines(folder / "run" / "timings.jsonl") if one.get("event") == "step"]


def beside(args: argparse.Namespace) -> dict[str, Any]:
    """The median step of two runs at once that have nothing to do with each other, one core each, first steps left
    out."""
    folders = [Path(tempfile.mkdtemp(prefix="rescoldo-scaling-")) for _ in range(2)]
    try:
        processes = [train(folder, args, args.steps + 1, 1, False, core)[0] for core, folder in enumerate(folders)]
        codes = [process.wait() for process in processes]
        if any(codes):
            raise RuntimeError("\n".join((folder / "0.log").read_text()[-2000:] for folder in folders))
        seconds = [one["seconds"] for folder in folders for one in events(folder)[1:]]
        return {"workers": 1, "rate": None, "step_seconds": seconds, "median": statistics.median(seconds)}
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def measured(args: argparse.Namespace, workers: int, rate: str | None) -> dict[str, Any]:
    """The median step of a run, its first one left out."""
    folder, network = Path(tempfile.mkdtemp(prefix="rescoldo-scaling-")), Network(rate) if rate else None
    try:
        codes = [process.wait() for process in train(folder, args, args.steps + 1, workers, rate is not None)]
        if any(codes):
            raise RuntimeError((folder / "0.log").read_text()[-2000:])
        seconds = [one["seconds"] for one in events(folder)][1:]
        losses = [one["loss"] for one in read_json_lines(folder / "run" / "metrics.jsonl") if "loss" in one]
        return {
            "workers": workers,
            "rate": rate,
            "step_seconds": seconds,
            "median": statistics.median(seconds),
            "losses": losses,
        }
    finally:
        if network:
            network.close()
        shutil.rmtree(folder, ignore_errors=True)


def disturbed(args: argparse.Namespace, what: str) -> dict[str, Any]:
    """Kill a worker, or cut its wire, in the middle of a run; how long until the next step is done?"""
    folder, network = Path(tempfile.mkdtemp(prefix="rescoldo-scaling-")), Network("1gbit")
    processes = train(folder, args, 6, 2, True)
    try:
        while len(events(folder)) < 2:
            if processes[0].poll() is not None:
                raise RuntimeError((folder / "0.log").read_text()[-2000:])
            time.sleep(0.1)
        at = events(folder)[-1]["step"]
        began = time.monotonic()
        if what == "cut":
            network.cut()
        else:
            for child in psutil.Process(processes[1].pid).children(recursive=True):
                if "rescoldo.cli.worker" in child.cmdline() and "torch.distributed.run" not in child.cmdline():
                    child.send_signal(signal.SIGKILL)
        while max((one["step"] for one in events(folder)), default=0) <= at and processes[0].poll() is None:
            time.sleep(0.1)
        back = time.monotonic() - began
        code = processes[0].wait()
        done = read_json(folder / "run" / "training_info.json") is not None
        log = (folder / "0.log").read_text()
        said = [line for line in log.splitlines() if "going on" in line or "Resuming" in line]
        return {"next_step_after_seconds": back, "finished": done, "exit_code": code, "said": said}
    finally:
        for process in processes:
            process.kill()
        network.close()
        shutil.rmtree(folder, ignore_errors=True)


def both(worker: str, rate: str | None) -> Any:
    """Run `benchmarks.scaling WORKER` as two processes of one group; returns what rank 0 prints."""
    network = Network(rate) if rate else None
    processes = []
    try:
        for rank in range(2):
            place = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_PORT": str(PORT), "OMP_NUM_THREADS": "1"}
            place |= (
                {"MASTER_ADDR": "10.77.0.1", "GLOO_SOCKET_IFNAME": "card"} if rate else {"MASTER_ADDR": "127.0.0.1"}
            )
            line = [*in_host(rank if rate else None, rank), sys.executable, "-m", "benchmarks.scaling", *worker.split()]
            environment = {**os.environ, **place, "PYTHONPATH": os.pathsep.join(sys.path)}
            processes.append(subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=environment))
        outputs = [process.communicate(timeout=600)[0] for process in processes]
        return json.loads(outputs[0])
    finally:
        for process in processes:
            process.kill()
        if network:
            network.close()


def exchange_worker(size: int) -> None:
    """One side of an exchange: seconds for the sum of `size` bytes on both; median of five."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    vector = torch.zeros(size // 4)
    times = []
    for _ in range(6):
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(vector)
        times.append(time.perf_counter() - began)
    if dist.get_rank() == 0:
        print(json.dumps(statistics.median(times[1:])))
    dist.destroy_process_group()


def overlap_worker(precision: str) -> None:
    """One side of the last part of a step of the sample, one example each: seconds that rank 0 is in the last backward
    pass, and those that it waits for the sum behind it, begun with the first layer or behind the last; medians of
    three."""
    import torch
    import torch.distributed as dist

    from rescoldo.engine.model import LoraModel
    from rescoldo.engine.step import GradientStep
    from rescoldo.nodes.reducer import Reducer

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, base = dist.get_rank(), open_base("sample:smollm2")
    examples = read_dataset(TRAIN, get_role("ba"), base.tokenizer(), 2048, 2).examples
    model = LoraModel.load(base, precision, ADAPTER, seed=1, calibration=examples)
    times: dict[str, list[tuple[float, float]]] = {"behind": [], "overlapped": []}
    for turn in range(4):
        for way, seconds in times.items():
            reducer = Reducer(model.parameters)
            on_ready = reducer.ready if way == "overlapped" else None
            step = GradientStep(model, examples, step=turn, seed=1, mine=[rank], on_ready=on_ready)
            step.micro_batch([rank])
            dist.barrier()
            began = time.perf_counter()
            gradients = step.finish()
            finished = time.perf_counter()
            if way == "behind":
                reducer.ready(gradients)
            reducer.wait()
            seconds.append((finished - began, time.perf_counter() - finished))
            dist.barrier()
    if rank == 0:
        names = ("backward", "wait")
        found = {
            way: dict(zip(names, map(statistics.median, zip(*seconds[1:], strict=True)), strict=True))
            for way, seconds in times.items()
        }
        print(json.dumps(found))
    dist.destroy_process_group()


def gradient_bytes() -> int:
    """Of the sample's adapter, in float32."""
    return 4 * sum(a * b for a, b in parameter_shapes(open_base("sample:smollm2").config, ADAPTER).values())


def loads(examples: int) -> list[Load]:
    """What steps of so many examples cost: those of the dataset in its order; for more than it has, of such lengths."""
    data = read_dataset(TRAIN, get_role("ba"), open_base("sample:smollm2").tokenizer(), 2048, None).examples
    if examples > len(data):
        known = load_of(data, share=True)
        own = random.Random(1).choices(known.own, k=examples)
        return [Load(tuple(own), (0,) * examples, (max(known.shared),))]
    return [load_of(data[i : i + examples], share=True) for i in range(0, len(data) - examples + 1, examples)]


def paper(document: dict[str, Any], args: argparse.Namespace) -> list[dict[str, Any]]:
    """The model's rows: the sample as measured here, and a 7B model."""
    cases: dict[str, tuple[int, float, float]] = {  # examples a step, its seconds on one machine, bytes of the adapter
        f"7B, {examples:,} examples a step": (examples, examples * args.seven_b, SEVEN_B_BYTES)
        for examples in (8, 64, 1024)
    }
    if "one" in document:
        here = document["one"]["median"], gradient_bytes()
        cases[f"sample, {args.examples} examples a step"] = (args.examples, *here)
    rows = []
    for name, (examples, seconds, size) in cases.items():
        terms: dict[str, Any] = {"loads": loads(examples), "step_seconds": seconds, "gradient_bytes": size}
        for link, bandwidth in (("1 Gbit/s", GIGABIT), ("100 Mbit/s", GIGABIT / 10)):
            row: dict[str, Any] = {"case": name, "link": link, "worth": worth(**terms, bandwidth=bandwidth)}
            for n in MACHINES:
                step = step_time(n, **terms, bandwidth=bandwidth)
                shares = {"speedup": seconds / step.seconds, "largest_share": step.compute / seconds}
                row[str(n)] = {**shares, "exchange": step.exchange}
            rows.append(row)
    return rows


def main() -> None:
    """Measure what was asked for, add it to the document, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--examples", type=int, default=8, help="in an optimizer step")
    parser.add_argument("--steps", type=int, default=3, help="counted ones")
    parser.add_argument("--minutes", type=float, default=0.1, help="between checkpoints")
    parser.add_argument(
        "--seven-b", type=float, default=14.7, help="seconds an example takes at 7B, from benchmarks.training"
    )
    parser.add_argument("--output", type=Path)
    parser.add_argument("--exchange-worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--overlap-worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.exchange_worker:
        exchange_worker(args.exchange_worker)
        return
    if args.overlap_worker:
        overlap_worker(args.overlap_worker)
        return
    if not args.output:
        parser.error("--output is required")
    writable(args.output)
    console, document = Console(), read_json(args.output) or {}
    may = os.geteuid() == 0 and shutil.which("ip") and shutil.which("tc")
    links: dict[str, str | None] = {"loopback": None, **(RATES if may else {})}
    machine = describe(1)
    for part in args.only.split(","):
        if part in ("killed", "cut", *RATES) and not may:
            console.print(f"{part}: left out, network namespaces need root, ip and tc")
            continue
        console.print(f"{part} …")
        if part == "paper":
            document[part] = {"rows": paper(document, args), "seven_b": args.seven_b}
        elif part == "exchange":
            sizes = {"sample": gradient_bytes(), "7B": int(SEVEN_B_BYTES)}
            found = {
                f"{size}, {link}": both(f"--exchange-worker {n}", rate)
                for size, n in sizes.items()
                for link, rate in links.items()
            }
            document[part] = {"bytes": sizes, "seconds": found}
        elif part == "overlap":
            found = {link: both(f"--overlap-worker {args.precision}", rate) for link, rate in links.items()}
            document[part] = {"seconds": found}
        elif part in ("killed", "cut"):
            document[part] = disturbed(args, part)
        elif part == "beside":
            document[part] = beside(args)
        else:
            document[part] = measured(args, 1 if part == "one" else 2, RATES.get(part))
        document[part] |= {"machine": machine, "examples": args.examples, "precision": args.precision}
        write_json(args.output, document)
    show(console, document)


def show(console: Console, document: dict[str, Any]) -> None:
    """The tables."""
    table = Table(title="an optimizer step, one core a worker")
    for column in ("part", "workers", "s", "times as fast as one", "as one beside another", "CPU"):
        table.add_column(column)
    for part in ("one", "beside", "loopback", *RATES):
        if part in document:
            run = document[part]
            ratios = [
                f"{document[other]['median'] / run['median']:.2f}" if other in document else "?"
                for other in ("one", "beside")
            ]
            table.add_row(part, str(run["workers"]), f"{run['median']:.2f}", *ratios, run["machine"]["cpu"])
    console.print(table)
    for name, seconds in document.get("exchange", {}).get("seconds", {}).items():
        console.print(f"exchange, {name}: {seconds:.3f} s")
    for link, ways in document.get("overlap", {}).get("seconds", {}).items():
        for way, seconds in ways.items():
            console.print(
                f"sum {way}, {link}: {seconds['wait']:.2f} s behind a last backward pass of {seconds['backward']:.2f} s"
            )
    for part in ("killed", "cut"):
        if part in document:
            run = document[part]
            console.print(
                f"{part}: next step after {run['next_step_after_seconds']:.0f} s, finished: {run['finished']}"
            )
    if "paper" in document:
        table = Table(title="on paper: times as fast as one machine")
        for column in ("case", "link", *map(str, MACHINES), "pays up to"):
            table.add_column(column)
        for row in document["paper"]["rows"]:
            speeds = [f"{row[str(n)]['speedup']:.2f}" for n in MACHINES]
            table.add_row(row["case"], row["link"], *speeds, str(row["worth"]))
        console.print(table)


if __name__ == "__main__":
    main()
