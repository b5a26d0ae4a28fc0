"""Instructions for each multiply-accumulate in the kernels' inner loops, as the wheels' compiler makes them.

The figure shows when a tile's sums no longer stay in registers, on any machine: the code is read, not run.
"""

from __future__ import annotations

import pytest
from benchmarks.mca import MODELS, PRODUCTS, inner_loops, loops

# of a loop without spills, and a tenth more
MOST = {
    ("avx2", "int8 product"): 134 / 768,
    ("avx2", "attention"): 40 / 192,
    ("avx2", "float32 product"): 28 / 96,
    ("avxvnni", "int8 product"): 28 / 384,
    ("avxvnni", "attention"): 28 / 192,
    ("avxvnni", "float32 product"): 28 / 96,
    ("avx512", "int8 product"): 53 / 1536,
    ("avx512", "attention"): 52 / 768,
    ("avx512", "float32 product"): 52 / 384,
    ("avx512bf16", "int8 product"): 53 / 1536,
    ("avx512bf16", "attention"): 52 / 768,
    ("avx512bf16", "float32 product"): 52 / 384,
    ("neon", "int8 product"): 119 / 1536,
    ("neon", "attention"): 108 / 192,
    ("neon", "float32 product"): 40 / 96,
    ("neoni8mm", "int8 product"): 41 / 768,
    ("neoni8mm", "attention"): 40 / 192,
    ("neoni8mm", "float32 product"): 40 / 96,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_inner_loops_keep_their_sums_in_registers(name: str) -> None:
    pytest.importorskip("ziglang", reason="the cross-compiler is not installed (requirements/wheels.txt)")
    found = {loop.product: loop for loop in inner_loops(name)}
    assert tuple(found) == PRODUCTS
    for product, loop in found.items():
        assert loop.instructions_per_product <= 1.1 * MOST[name, product], "\n".join(loop.lines)


def test_innermost_loops_of_named_functions_are_found() -> None:
    text = "gemm.part:\n.L1:\n nop\n.L2: # inner\n vzeroall\n jne .L2\n jne .L1\nother:\n.L3:\n jmp .L3\n"
    assert loops(text, "#", ("gemm",)) == [["vzeroall", "jne .L2"]]
