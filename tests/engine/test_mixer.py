"""A layer that is no attention: a mixer with a recurrent state, and an MLP that routes rows to experts, as small as
they can be, go through the same layer, training step and decoder as every other model."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from rescoldo.engine.attend import Attend
from rescoldo.engine.config import LINEARS, DecoderConfig
from rescoldo.engine.generate import generate
from rescoldo.engine.layer import MIXERS, MLPS, Grads, Mlp, MlpSaved, Rows
from rescoldo.engine.lora import LoraGroup
from rescoldo.engine.model import LoraModel, evaluate_loss
from rescoldo.engine.reference import ReferenceDecoder
from rescoldo.engine.step import GradientStep
from rescoldo.engine.types import LoraConfig, Sampling
from tests.engine.common import distance, example, gradient, randomize, tiny_base

DECAY = 0.8
MIXED = ("decay", "attention", "decay")


def experts_of(rows: int, width: int) -> torch.Tensor:
    """(rows, width): 1 in the half of the columns that a row's expert has. Routed by nothing but the row's number: a
    router's choice is no more differentiable."""
    columns = torch.arange(width) >= width // 2
    return (columns[None, :] == (torch.arange(rows) % 2 == 1)[:, None]).float()


@dataclass
class DecaySaved:
    qkv: torch.Tensor
    before: torch.Tensor  # (T, K·d) the state before each row
    y: torch.Tensor | None
    z: tuple[torch.Tensor | None, torch.Tensor | None]


class Decay:
    """state = DECAY · state + k ⊙ v; the output is o(q ⊙ state), the state repeated for the heads that share it."""

    def __init__(
        self, index: int, config: DecoderConfig, groups: Mapping[str, LoraGroup], norms: Mapping[str, torch.Tensor]
    ) -> None:
        self.index = index
        self.groups: Mapping[str, LoraGroup] = {site: groups[site] for site in ("qkv", "o")}
        self.repeats, self.width = config.n_heads // config.n_kv_heads, config.n_kv_heads * config.head_dim
        self.head_dim = config.head_dim

    def split(self, qkv: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return qkv.split([self.repeats * self.width, self.width, self.width], dim=1)

    def wide(self, state: torch.Tensor) -> torch.Tensor:
        """(T, K·d) → (T, H·d)"""
        return state.unflatten(1, (-1, self.head_dim)).repeat_interleave(self.repeats, 1).flatten(1)

    def forward(self, x: torch.Tensor, rows: Rows, attend: Attend) -> tuple[torch.Tensor | None, DecaySaved]:
        qkv, z1 = self.groups["qkv"].forward(x, rows.mask(self.index, "qkv"))
        q, k, v = self.split(qkv)
        start, ends = attend.start_state(self.index), []
        before, state = torch.empty(len(x), self.width), torch.empty(len(x), self.width)
        for i, (a, b) in enumerate(itertools.pairwise(attend.bounds)):
            now = torch.zeros(self.width) if start is None else start[i]
            for t in range(a, b):
                before[t] = now
                now = DECAY * now + k[t] * v[t]
                state[t] = now
            ends.append(now)
        attend.end_state(self.index, torch.stack(ends))
        if attend.stops_at_keys(self.index):
            return None, DecaySaved(qkv, before, None, (z1, None))
        mixed = q * self.wide(state)
        y, z2 = self.groups["o"].forward(mixed, rows.mask(self.index, "o"))
        return y, DecaySaved(qkv, before, mixed, (z1, z2))

    def backward(
        self,
        dy: torch.Tensor | None,
        x: Callable[[], torch.Tensor],
        saved: DecaySaved,
        rows: Rows,
        attend: Attend,
        gradients: Grads,
        want_input: bool,
    ) -> torch.Tensor | None:
        q, k, v = self.split(saved.qkv)
        dq, dstate = torch.zeros_like(q), torch.zeros(len(q), self.width)
        if dy is not None:
            assert saved.y is not None
            dmixed = self.groups["o"].backward(dy, saved.y, saved.z[1], rows.mask(self.index, "o"), gradients)
            assert dmixed is not None
            dq = dmixed * self.wide(DECAY * saved.before + k * v)
            dstate = (dmixed * q).unflatten(1, (-1, self.repeats, self.head_dim)).sum(2).flatten(1)
        ends, starts = attend.end_state_gradient(self.index), []
        for i, (a, b) in enumerate(itertools.pairwise(attend.bounds)):
            later = torch.zeros(self.width) if ends is None else ends[i]
            for t in reversed(range(a, b)):
                dstate[t] += later
                later = DECAY * dstate[t]
            starts.append(later)
        attend.start_state_gradient(self.index, torch.stack(starts))
        dqkv = torch.cat((dq, dstate * v, dstate * k), dim=1)
        mask = rows.mask(self.index, "qkv")
        return self.groups["qkv"].backward(dqkv, x(), saved.z[0], mask, gradients, want_input)


class Routed(Mlp):
    """Two experts, each with half of the MLP's columns. The row's position says which, also in decoding."""

    def chosen(self, rows: Rows, width: int) -> torch.Tensor:
        return experts_of(1 << 10, width)[rows.identity % (1 << 10)]

    def forward(self, x: torch.Tensor, rows: Rows, attend: Attend) -> tuple[torch.Tensor | None, MlpSaved]:
        gate_up, z1 = self.gate_up.forward(x, rows.mask(self.index, "gate_up"))
        a = self.activation.forward(gate_up)
        y, z2 = self.down.forward(a * self.chosen(rows, a.shape[1]), rows.mask(self.index, "down"))
        return y, MlpSaved(gate_up, (z1, z2))

    def backward(
        self,
        dy: torch.Tensor | None,
        x: Callable[[], torch.Tensor],
        saved: MlpSaved,
        rows: Rows,
        attend: Attend,
        gradients: Grads,
        want_input: bool,
    ) -> torch.Tensor | None:
        assert dy is not None
        chosen = self.chosen(rows, saved.gate_up.shape[1] // 2)
        a = self.activation.forward(saved.gate_up) * chosen
        da = self.down.backward(dy, a, saved.kept[1], rows.mask(self.index, "down"), gradients)
        assert da is not None
        self.activation.backward_(saved.gate_up, da * chosen)
        mask = rows.mask(self.index, "gate_up")
        return self.gate_up.backward(saved.gate_up, x(), saved.kept[0], mask, gradients, want_input)


class Reference(ReferenceDecoder):
    """The same formulas, for autograd."""

    def attention(self, x: torch.Tensor, i: int) -> torch.Tensor:
        if self.config.mixer(i) == "attention":
            return super().attention(x, i)
        c, layer = self.config, f"model.layers.{i}.self_attn"
        q, k, v = (self.linear(x, f"{layer}.{name}") for name in ("q_proj", "k_proj", "v_proj"))
        state, states = torch.zeros(k.shape[1]), []
        for t in range(len(x)):
            state = DECAY * state + k[t] * v[t]
            states.append(state.view(-1, c.head_dim).repeat_interleave(c.n_heads // c.n_kv_heads, 0).flatten())
        return self.linear(q * torch.stack(states), f"{layer}.o_proj")

    def mlp(self, x: torch.Tensor, i: int) -> torch.Tensor:
        if self.config.mlp == "gated":
            return super().mlp(x, i)
        layer = f"model.layers.{i}.mlp"
        a = torch.nn.functional.silu(self.linear(x, f"{layer}.gate_proj")) * self.linear(x, f"{layer}.up_proj")
        return self.linear(a * experts_of(*a.shape), f"{layer}.down_proj")


@pytest.fixture(params=[("decay",) * 3, MIXED, ("attention",) * 3], ids=["decay", "mixed", "attention"])
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> LoraModel:
    return make(request.param, monkeypatch)


def make(mixers: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, mlp: str = "routed") -> LoraModel:
    monkeypatch.setitem(MIXERS, "decay", Decay)
    monkeypatch.setitem(MLPS, "routed", Routed)
    base = tiny_base("llama", num_hidden_layers=3)
    base = replace(base, config=replace(base.config, mixers=mixers, mlp=mlp))
    lora = LoraConfig(rank=4, alpha=8, dropout=0.0, targets=LINEARS)
    model = LoraModel.load(base, "fp32", lora, seed=7)
    randomize(model)
    return model


def reference(model: LoraModel, parameters: Mapping[str, torch.Tensor] | None = None) -> Reference:
    base = tiny_base("llama", num_hidden_layers=3)
    return Reference(model.config, base.tensors, model.lora, dict(parameters or model.parameters))


EXAMPLES = [example(3 + i, 5 + 2 * i, seed=i, prefix=range(20)) for i in range(3)]  # they share 20 tokens


def exact(model: LoraModel) -> tuple[float, dict[str, torch.Tensor]]:
    parameters = {name: p.clone().requires_grad_() for name, p in model.parameters.items()}
    plain = reference(model, parameters)
    losses = [plain.loss(torch.tensor(one.tokens), one.n_prompt) for one in EXAMPLES]
    loss = torch.stack(losses).sum() / sum(one.n_targets for one in EXAMPLES)
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach()), {name: p.grad for name, p in parameters.items() if p.grad is not None}


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("keep", [0, 1, 3])
def test_the_gradient_is_autograds(model: LoraModel, share: bool, keep: int) -> None:
    """With a prefix that is shared and without, activations kept and recomputed; all examples at once and in turn."""
    wanted_loss, wanted = exact(model)
    model.share_prefix, model.keep_layers = share, keep
    for parts in ([[0, 1, 2]], [[2], [0, 1]]):
        loss, found = gradient(model, EXAMPLES, parts)
        assert loss == pytest.approx(wanted_loss, rel=1e-5)
        assert distance(found, wanted) < 1e-5
    sums = evaluate_loss(model, EXAMPLES)
    assert sum(loss for loss, _ in sums) / sum(n for _, n in sums) == pytest.approx(wanted_loss, rel=1e-5)


def test_a_step_is_resumed_between_two_micro_batches(model: LoraModel) -> None:
    _, whole = gradient(model, EXAMPLES, [[0], [1, 2]])
    first = GradientStep(model, EXAMPLES, step=0, seed=42)
    first.micro_batch([0])
    second = GradientStep(model, EXAMPLES, step=0, seed=42)
    second.load_state(first.state())
    second.micro_batch([1, 2])
    resumed = second.finish()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def decoded(model: LoraModel, prompts: Sequence[Sequence[int]], lengths: Sequence[int]) -> dict[int, list[int]]:
    """Greedy tokens of each prompt; prompt i ends by itself after lengths[i], and its row leaves the batch."""
    found: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        plain, tokens = reference(model), list(prompt)
        for _ in range(lengths[i]):
            tokens.append(int(plain.logits(torch.tensor(tokens))[-1].argmax()))
        found[i] = tokens[len(prompt) :]
    return found


def test_decoding_is_the_forward_pass_token_by_token(model: LoraModel) -> None:
    """Behind a shared prefix, in a batch from which rows leave at different times, the cache grown meanwhile."""
    prompts = [one.tokens[: one.n_prompt] for one in EXAMPLES]
    whole = decoded(model, prompts, [12, 12, 12])
    stop = whole[0][3]  # the first row ends here, others wherever they come to it
    wanted = {i: tokens[: tokens.index(stop)] if stop in tokens else tokens for i, tokens in whole.items()}
    answers = generate(model, prompts, Sampling(max_new_tokens=12), frozenset({stop}))
    assert {answer.index: answer.tokens for answer in answers} == wanted
    assert len(wanted[0]) < 12


def test_the_mixer_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the two changes the model: none of the tests above compares attention with itself."""
    tokens = torch.arange(12)
    attention = make(("attention",) * 3, monkeypatch, "gated").logits(tokens)
    for mixers, mlp in ((MIXED, "gated"), (("attention",) * 3, "routed")):
        other: Any = make(mixers, monkeypatch, mlp).logits(tokens)
        assert (other - attention).abs().max() > 1e-2
