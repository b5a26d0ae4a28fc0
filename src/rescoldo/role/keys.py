"""Which keys a conversation's line and its messages may hold beside what is read of them.

A key may say that an answer is not to be learned, that it is a bad one, or that the text is only a part of the example.
So one that is neither read nor known as an annotation is refused; `metadata` is the place for everything else. An empty
value says nothing and is never refused.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from rescoldo.role.fault import Finding

# Where a line or message comes from, and what people note about it. None of these changes what is to be learned.
_NOTED = """
    id idx index uid uuid guid hash sha256 row_idx prompt_id message_id conversation_id conv_id thread_id session_id
    example_id record_id question_id task_id parent_id tree_id concept_id user_id
    source sources origin dataset dataset_name subset split url link file filename file_name path license citation
    author annotator annotators worker created created_at updated_at create_time update_time date timestamp time version
    model model_name generator engine provider seed temperature
    category categories topic topics tag tags domain subject task task_name task_type subtask skill difficulty level
    quality score scores rating ratings upvotes downvotes likes toxicity emotion lang language locale
    num_turns n_turns turn_count length tokens num_tokens token_count usage finish_reason stop_reason logprobs
    metadata meta extra extra_info info comment comments note notes title status reviewed verified type markdown
    cache_control annotations parallel_tool_calls __index_level_0__ provenance
"""
ANNOTATIONS = frozenset(_NOTED.split())
_TEXT_ONLY = "only text can be learned here"
_PREFERENCES = "a preferred and a rejected answer are learned with --objective dpo or another one for preferences"
_THOUGHTS = "thinking is learned as a part of the assistant's messages"
_TOOLS = "calls belong to the assistant's messages, their ids to the tools' results, definitions to the line"
_MASKS = ["mask", "masks", "loss_mask", "label_mask", "labels_mask", "target_mask", "completion_mask"]
_MASKS += ["assistant_mask", "assistant_masks", "assistant_tokens_mask", "ignore", "ignored", "skip"]
_MASKS += ["exclude", "excluded"]
_BAD = "marks a bad answer, and answers are learned here as they stand"
MEANINGS = {
    **dict.fromkeys(("tools", "functions", "tool_calls", "function_call", "tool_call_id"), _TOOLS),
    "tool_choice": "a choice of tools that is forced cannot be learned here",
    **dict.fromkeys(("image", "images", "video", "videos", "audio", "audios", "media", "pixel_values"), _TEXT_ONLY),
    **dict.fromkeys(
        ("chosen", "rejected", "chosen_messages", "rejected_messages", "preferred_output", "non_preferred_output"),
        _PREFERENCES,
    ),
    **dict.fromkeys(("reasoning_content", "reasoning", "thinking", "thought", "thoughts"), _THOUGHTS),
    **dict.fromkeys(("completions", "labels", "reward", "rewards"), "graded answers cannot be learned here"),
    **dict.fromkeys(_MASKS, "what is learned of a conversation says the `weight` (0 or 1) of each of its messages"),
    **dict.fromkeys(("train_detail", "training_detail"), "parts of an answer cannot be left out of what is learned"),
    "documents": "documents beside the messages cannot be given to the model here yet",
    "chat_template_kwargs": "settings of the chat template for one line cannot be given here yet",
    "name": "names belong to messages",
    "refusal": "a refusal beside the content cannot be learned here: put it into the content",
}
JUDGED = ("label", "kto_tag")  # of a line: true for a good answer, false for a bad one
LEARNED = ("weight", "train", "training", "loss", "loss_weight")  # of a message: whether it is learned


UNREVIEWED = ("draft", "rejected")  # values of a line's `status` that keep it from being learned


def unreviewed(line: dict[str, Any]) -> list[Finding]:
    """Why a line may not be learned yet: it is a draft of a model's that no person has accepted."""
    status = line.get("status")
    if not isinstance(status, str) or status.strip().lower() not in UNREVIEWED:
        return []
    what = "is a draft that nobody has accepted yet: `data review` asks a person"
    return [Finding("status", "draft", what if status.strip().lower() == "draft" else "says that it was rejected")]


def is_empty(value: Any) -> bool:
    """Whether a key's value says nothing: null, an empty text, list or object, also written as text."""
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null", "None")
    return value is None or (isinstance(value, list | dict) and not value)


def findings(holder: dict[str, Any], read: Collection[str], path: str = "") -> list[Finding]:
    """What is wrong with the keys of a line or message that are not `read`; `path` is its place in the line."""
    return [finding for key in holder if key not in read and (finding := _finding(key, holder[key], path))]


def _finding(key: str, value: Any, path: str) -> Finding | None:
    name, where = key.strip().lower(), f"{path}.{key}" if path else key
    if name in ANNOTATIONS or name.startswith("unnamed:") or is_empty(value):
        return None
    if name in JUDGED and isinstance(value, bool):
        return (
            None if value else Finding(where, "meaning", f"is false, which {_BAD} (--objective kto learns from both)")
        )
    if name in LEARNED and not path:
        if value == 1:
            return None
        return Finding(where, "meaning", "is the weight of a line, which cannot be given here yet: all count alike")
    if name in MEANINGS:
        return Finding(where, "meaning", f"changes what the line means: {MEANINGS[name]}")
    what = "is not known here and may change what the line means: leave it out, or move it into `metadata`"
    return Finding(where, "unknown-key", what)


def weight(message: dict[str, Any], where: str) -> tuple[float | None, list[Finding]]:
    """How much a message counts in the loss (0 or 1), as it says itself; None if it says nothing."""
    found: float | None = None
    for key in LEARNED:
        value = message.get(key)
        if value is None:
            continue
        if isinstance(value, str) or value not in (0, 1):
            return None, [Finding(f"{where}.{key}", "meaning", f"is {value!r:.40}: expected 0 or 1 (false or true)")]
        if found is not None and found != value:
            return None, [Finding(f"{where}.{key}", "meaning", "says the contrary of the message's other weight")]
        found = float(value)
    return found, []
