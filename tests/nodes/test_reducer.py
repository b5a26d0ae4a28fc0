"""Gradients are summed in buckets while the backward pass goes on: the same buckets and sums everywhere, every time."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from rescoldo.base import open_base
from rescoldo.engine.config import LINEARS
from rescoldo.engine.memory import parameter_shapes
from rescoldo.engine.model import layer_of
from rescoldo.engine.types import LoraConfig
from rescoldo.nodes.reducer import BUCKET_BYTES, buckets
from tests.nodes.common import free_port


def sample(rank: int, targets: tuple[str, ...] = LINEARS) -> dict[str, torch.Tensor]:
    shapes = parameter_shapes(open_base("sample:smollm2").config, LoraConfig(rank=rank, targets=targets))
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def test_buckets_are_whole_layers_from_the_top() -> None:
    for rank, targets in ((1, LINEARS), (16, LINEARS), (16, ("q_proj",)), (64, LINEARS)):
        parameters = sample(rank, targets)
        found = buckets(parameters)
        assert sorted(name for bucket in found for name in bucket) == sorted(parameters)
        layers = [[layer_of(name) for name in bucket] for bucket in found]
        assert all(min(above) > max(below) for above, below in itertools.pairwise(layers))
        sizes = [4 * sum(parameters[name].numel() for name in bucket) for bucket in found]
        largest_layer = max(
            4 * sum(p.numel() for name, p in parameters.items() if layer_of(name) == layer) for layer in range(30)
        )
        assert all(BUCKET_BYTES <= size < BUCKET_BYTES + largest_layer for size in sizes[:-1])


def test_buckets_do_not_depend_on_the_order_of_the_parameters() -> None:
    parameters = sample(16)
    assert buckets(dict(reversed(parameters.items()))) == buckets(parameters)
    assert buckets({}) == []


SCRIPT = """
import hashlib, json, sys
import torch
import torch.distributed as dist
from rescoldo.engine.config import LINEARS
from rescoldo.engine.step import GradientStep
from rescoldo.engine.types import LoraConfig
from rescoldo.nodes import reducer
from rescoldo.nodes.group import current_group, flat, joined
from tests.engine.common import tiny_lora
from tests.engine.test_prefix import SHARED
from tests.engine.test_ready import APART

reducer.BUCKET_BYTES = 10_000  # the tiny model has several then
DEALS = [(SHARED, [[0, 3, 4], [1, 2, 5]]), (SHARED, [[1], [0, 2, 3, 4, 5]]), (SHARED, [list(range(6)), []]),
         (SHARED, [[], list(range(6))]), (APART, [[0, 2], [1, 3]]), (APART, [[], [0, 1, 2, 3]])]
model = tiny_lora("llama", lora=LoraConfig(4, 8.0, 0.25, LINEARS), num_hidden_layers=4)
assert len(reducer.buckets(model.parameters)) > 2
with joined(current_group()) as group:
    for examples, deal in DEALS:
        whole = GradientStep(model, examples, step=1, seed=2)
        whole.micro_batch(range(len(examples)))
        expected, sums = flat(whole.finish()), []
        for _ in range(3):
            one = reducer.Reducer(model.parameters)
            step = GradientStep(model, examples, step=1, seed=2, mine=deal[group.rank], on_ready=one.ready)
            for i in deal[group.rank]:
                step.micro_batch([i])
            gradients = step.finish()
            one.wait()
            sums.append(flat(gradients))
        digests = {hashlib.sha256(total.numpy().tobytes()).hexdigest() for total in sums}
        print(json.dumps([float((sums[0] - expected).norm() / expected.norm()), sorted(digests)]))
"""


def test_two_processes_have_the_gradient_of_one(tmp_path: Path) -> None:
    """Both of them the same bits, also where one has no example, or none of a shared beginning."""
    script, port, processes = tmp_path / "both.py", free_port(), []
    script.write_text(SCRIPT)
    for rank in range(2):
        place = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        environment = {**os.environ, **place, "PYTHONPATH": os.pathsep.join([*sys.path, os.getcwd()])}
        processes.append(subprocess.Popen([sys.executable, script], env=environment, stdout=subprocess.PIPE, text=True))
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0]
    lines = [json.loads(line) for line in outputs[1].splitlines()]
    assert lines == [json.loads(line) for line in outputs[0].splitlines()]
    assert len(lines) == 6
    for error, digests in lines:
        assert error < 1e-5
        assert len(digests) == 1
