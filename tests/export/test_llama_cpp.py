"""Real llama.cpp is the judge: the adapter on the original GGUF, the merged file and our engine answer alike.

Each of llama.cpp's greedy answers is followed with our engine: at every position its choice must be ours, or our two
best must lie closer together than TIE; and the log-probability that it gives its choice must be ours within a bound.
llama.cpp rounds activations to 8 bits where weights are quantized and keeps keys and values in half precision; our
engine runs in fp32 here, so the bounds are those of llama.cpp's rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from rescoldo.data import read_records
from rescoldo.data.tokenize import prompt_ids
from rescoldo.engine.attend import PackedAttention
from rescoldo.engine.kernels.attention import Layout
from rescoldo.engine.model import LoraModel
from rescoldo.export import export_run
from rescoldo.families import FAMILIES
from rescoldo.models.loaded import load_for_inference
from rescoldo.role import get_role
from tests.base.make_models import tiny_gguf, tiny_hf
from tests.engine.test_families import GEMMA4, GRANITE
from tests.export.common import CONCEPTS, PHI_LONG, make_run

pytest.importorskip("xllamacpp")
from tests.base.llama_cpp import LlamaCpp

ROLE = get_role("ba")
VALIDATION = Path(__file__).parents[2] / "artifacts/synthetic/ba_val_v2_fixed.jsonl"
TIE = {"F32": 0.05, "F16": 0.05, "Q8_0": 0.4, "Q4_1": 0.4}  # logits, by the precision that llama.cpp computes in
BOUND = {"F32": 0.05, "F16": 0.05, "Q8_0": 0.6, "Q4_1": 0.6}  # nats


@dataclass(frozen=True)
class Agreement:
    """Of all positions: how many choices were the same, the widest tie among the others, the largest difference of
    log-probability."""

    positions: int
    same: int
    widest_tie: float
    largest_difference: float


def follow(
    model: LoraModel, llama_cpp: LlamaCpp, prompts: list[list[int]], n: int, *, share: bool = False
) -> Agreement:
    """Compare along llama.cpp's greedy answers of `n` tokens. With `share`, the engine computes what all prompts begin
    with once, as in training and evaluation."""
    same = positions = 0
    ties, differences = [0.0], [0.0]
    columns = zip(*prompts, strict=False)
    common = next(i for i, column in enumerate(columns) if len({*column}) > 1) if share else 0
    prefix = model.prefix(prompts[0][:common]) if common else None
    for prompt in prompts:
        answer = llama_cpp.greedy(prompt, n)
        if not answer:
            continue
        tokens = torch.tensor((prompt + [token for token, _ in answer])[common:-1])
        rows = model.rows(torch.arange(common, common + len(tokens)))
        h = model.forward(tokens, rows, PackedAttention(Layout((0, len(tokens)), common), prefix))
        logits = model.head.logits(h[-len(answer) :]).double()
        ours = logits.log_softmax(-1)
        for row, scores, (token, theirs) in zip(logits, ours, answer, strict=True):
            positions += 1
            same += int(row.argmax()) == token
            ties.append(float(row.max() - row[token]))
            if theirs is not None:
                differences.append(abs(float(scores[token]) - theirs))
    return Agreement(positions, same, max(ties), max(differences))


def check(found: Agreement, precision: str) -> None:
    assert found.widest_tie < TIE[precision], found
    assert found.largest_difference < BOUND[precision], found
    assert found.same >= 0.9 * found.positions, found
    assert found.positions > 0


def prompts(tokenizer: Any, concepts: list[str]) -> list[list[int]]:
    return [prompt_ids(ROLE.messages({"concept": concept}), tokenizer) for concept in concepts]


TINY: dict[str, Any] = {"max_position_embeddings": 4096, "vocab_size": 288, "intermediate_size": 96}


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_adapter_and_merged_file_of_a_tiny_gguf(tmp_path: Path, architecture: str) -> None:
    """Every architecture that llama.cpp orders in its own way; all linears adapted."""
    base = tiny_gguf(tmp_path / "base.gguf", architecture, **TINY)
    run = make_run(tmp_path / "run", str(base), size=0.3)
    mine = load_for_inference(str(run))
    asked = prompts(mine.tokenizer, CONCEPTS[:2])
    export_run(run, "gguf-adapter")
    on_top = LlamaCpp(base, lora=run / "export/gguf-adapter/adapter-F32.gguf", context=4096)
    check(follow(mine.model, on_top, asked, 12), "F32")
    export_run(run, "merged-gguf", dtype="F32")
    merged = run / "export/merged-gguf/model-F32.gguf"
    check(follow(mine.model, LlamaCpp(merged, context=4096), asked, 12), "F32")
    with mine.model.without_adapter():
        assert follow(mine.model, on_top, asked, 12).largest_difference > 0.2, "the adapter hardly does anything"


def test_a_base_without_a_chat_template(tmp_path: Path) -> None:
    """The plain template goes along: in the merged file, and beside the adapter, where the base's own file has none."""
    base = tiny_gguf(tmp_path / "base.gguf", template=None, **TINY)
    run = make_run(tmp_path / "run", str(base), size=0.3)
    tokenizer = load_for_inference(str(run), lazy=True).tokenizer
    messages = [*ROLE.messages({"concept": CONCEPTS[1]}), {"role": "assistant", "content": "Sí."}]
    messages.append({"role": "user", "content": "¿Y?"})
    export_run(run, "merged-gguf", dtype="F32")
    export_run(run, "gguf-adapter")
    adapter = run / "export/gguf-adapter"
    assert "--chat-template-file chat_template.jinja" in (adapter / "PROMPT.md").read_text()
    template = (adapter / "chat_template.jinja").read_text()
    merged = LlamaCpp(run / "export/merged-gguf/model-F32.gguf", context=4096)
    on_top = LlamaCpp(base, lora=adapter / "adapter-F32.gguf", context=4096, chat_template=template)
    for llama_cpp in (merged, on_top):
        rendered = llama_cpp.chat(messages)
        assert llama_cpp.tokenize(rendered, add_special=False) == prompt_ids(messages, tokenizer)
    assert "a plain chat template" in (adapter / "PROMPT.md").read_text()


GEMMA = {"tie_word_embeddings": True, "head_dim": 32, "query_pre_attn_scalar": 32}
HF: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"rope": "llama3", "tie_word_embeddings": True}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"rope": "linear"}),
    ("llama", {"rope": "yarn"}),
    ("mistral", {"head_dim": 32}),
    ("qwen2", {}),
    ("qwen3", {"tie_word_embeddings": True}),
    ("granite", GRANITE),
    ("olmo2", {}),
    ("olmo3", {"rope": "yarn-full", "sliding_window": 4096, "num_hidden_layers": 4}),
    ("smollm3", {"num_hidden_layers": 5}),
    ("phi3", {}),
    ("phi3", {**PHI_LONG, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}),
    ("ministral3", {"rope": "ministral"}),
    ("gemma", {"hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True}),
    ("gemma3_text", {**GEMMA, "rope": "kinds", "sliding_window": 64, "num_hidden_layers": 7}),
    ("gemma2", {**GEMMA, "sliding_window": 64, "num_hidden_layers": 3}),
    ("gemma4_text", {**GEMMA4, "tie_word_embeddings": True, "sliding_window": 64, "final_logit_softcapping": 5.0}),
    ("gemma4_text", {**GEMMA4, "kinds": "sfsf", "num_kv_shared_layers": 2, "use_double_wide_mlp": False}),
]


@pytest.mark.parametrize(("architecture", "overrides"), HF)
def test_merged_file_of_a_hugging_face_base(tmp_path: Path, architecture: str, overrides: dict[str, Any]) -> None:
    base = tiny_hf(tmp_path / "base", architecture, **{**TINY, **overrides})
    run = make_run(tmp_path / "run", str(base), size=0.3)
    mine = load_for_inference(str(run))
    asked = prompts(mine.tokenizer, CONCEPTS[2:])
    export_run(run, "merged-gguf", dtype="F32")
    llama_cpp = LlamaCpp(run / "export/merged-gguf/model-F32.gguf", context=4096)
    check(follow(mine.model, llama_cpp, asked, 12), "F32")
    for concept in CONCEPTS:
        messages = ROLE.messages({"concept": concept})
        rendered = llama_cpp.chat(messages)
        assert llama_cpp.tokenize(rendered, add_special=False) == prompt_ids(messages, mine.tokenizer)


@pytest.mark.parametrize(
    ("architecture", "overrides"), [one for i, one in enumerate(HF) if one[0] not in {name for name, _ in HF[:i]}]
)
def test_adapter_on_a_quantized_file_of_each_family(
    tmp_path: Path, architecture: str, overrides: dict[str, Any]
) -> None:
    """A Q8_0 file, made by merging an adapter of zeros, read as a base again: its own answers, and those with an
    adapter on top of it."""
    nothing = make_run(
        tmp_path / "nothing", str(tiny_hf(tmp_path / "hf", architecture, **{**TINY, **overrides})), size=0.0
    )
    export_run(nothing, "merged-gguf", dtype="Q8_0")
    base = nothing / "export/merged-gguf/model-Q8_0.gguf"
    run = make_run(tmp_path / "run", str(base), size=0.3)
    mine = load_for_inference(str(run))
    assert mine.base.family.gguf == FAMILIES[architecture].gguf
    asked = prompts(mine.tokenizer, CONCEPTS[:2])
    with mine.model.without_adapter():
        check(follow(mine.model, LlamaCpp(base, context=4096), asked, 12), "Q8_0")
    export_run(run, "gguf-adapter")
    on_top = LlamaCpp(base, lora=run / "export/gguf-adapter/adapter-F32.gguf", context=4096)
    check(follow(mine.model, on_top, asked, 12), "Q8_0")
    with mine.model.without_adapter():
        assert follow(mine.model, on_top, asked, 12).largest_difference > 0.2, "the adapter hardly does anything"


@pytest.mark.parametrize(
    ("architecture", "overrides"), [one for one in HF if one[0] in ("phi3", "ministral3", "gemma3_text", "gemma4_text")]
)
def test_a_gguf_base_of_the_family(tmp_path: Path, architecture: str, overrides: dict[str, Any]) -> None:
    """A merged file is a base itself: its adapter in llama.cpp, its merged directory in transformers."""
    first = make_run(tmp_path / "first", str(tiny_hf(tmp_path / "hf", architecture, **{**TINY, **overrides})), size=0.1)
    export_run(first, "merged-gguf", dtype="F32")
    base = first / "export/merged-gguf/model-F32.gguf"
    run = make_run(tmp_path / "run", str(base), size=0.3, seed=9)
    mine = load_for_inference(str(run))
    asked = prompts(mine.tokenizer, CONCEPTS[:2])
    export_run(run, "gguf-adapter")
    on_top = LlamaCpp(base, lora=run / "export/gguf-adapter/adapter-F32.gguf", context=4096)
    check(follow(mine.model, on_top, asked, 12), "F32")
    with mine.model.without_adapter():
        assert follow(mine.model, on_top, asked, 12).largest_difference > 0.2, "the adapter hardly does anything"
    from transformers import AutoModelForCausalLM

    export_run(run, "merged", dtype="F32")
    theirs = AutoModelForCausalLM.from_pretrained(run / "export/merged", dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor([asked[0]])).logits[0]
    torch.testing.assert_close(mine.model.logits(torch.tensor(asked[0])), expected, rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("sample") / "run", "sample:smollm2", size=0.4)


@pytest.fixture(scope="module")
def served(sample: Path) -> list[tuple[str, LlamaCpp]]:
    """The three ways to serve the sample's run: adapter on the original (Q4_1), merged Q8_0, merged F16."""
    original = load_for_inference(str(sample), "bf16").base.path
    export_run(sample, "gguf-adapter")
    for dtype in ("Q8_0", "F16"):
        export_run(sample, "merged-gguf", dtype=dtype, output=sample / f"export/{dtype}")
    adapter = sample / "export/gguf-adapter/adapter-F32.gguf"
    return [
        ("Q4_1", LlamaCpp(original, lora=adapter, context=4096)),
        ("Q8_0", LlamaCpp(sample / "export/Q8_0/model-Q8_0.gguf", context=4096)),
        ("F16", LlamaCpp(sample / "export/F16/model-F16.gguf", context=4096)),
    ]


def test_the_sample(sample: Path, served: list[tuple[str, LlamaCpp]]) -> None:
    """SmolLM2-135M's own Q4_1 file, three validation prompts."""
    mine = load_for_inference(str(sample), "fp32")
    concepts = [str(record["concept"]) for record in read_records(VALIDATION)][:3]
    for precision, llama_cpp in served:
        check(follow(mine.model, llama_cpp, prompts(mine.tokenizer, concepts), 12), precision)
    with mine.model.without_adapter():
        found = follow(mine.model, llama_cpp, prompts(mine.tokenizer, concepts[:1]), 12)
    assert found.widest_tie > 1, "the adapter hardly does anything"


@pytest.mark.slow
@pytest.mark.timeout(
    1800
)  # 66 prompts through llama.cpp, which on a CPU without VNNI, or beside other work, takes long
def test_the_sample_on_all_validation_prompts(
    sample: Path, served: list[tuple[str, LlamaCpp]], capsys: pytest.CaptureFixture[str]
) -> None:
    mine = load_for_inference(str(sample), "fp32")
    concepts = [str(record["concept"]) for record in read_records(VALIDATION)]
    assert len(concepts) == 22
    for precision, llama_cpp in served:
        found = follow(mine.model, llama_cpp, prompts(mine.tokenizer, concepts), 12, share=True)
        with capsys.disabled():
            print(f"\n  {precision}: {found}")
        check(found, precision)
