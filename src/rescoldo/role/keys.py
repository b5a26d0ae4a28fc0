"""The keys that a line or message of a conversation may have in addition to those that are read.

A key may say that an answer must not be learned, that it is a bad one, or that the text is only a part of the example.
So a key that is neither read nor a known annotation is refused; `metadata` is the place for everything else. A key with
an empty value is never refused.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from rescoldo.role.fault import Finding

# The origin of a line or message, and people's notes about it. None of these changes what is learned.
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
_THOUGHTS = "thinking is learned only as a part of the assistant's messages"
_TOOLS = "calls belong in the assistant's messages, their ids in the tools' results, definitions in the line"
_MASKS = ["mask", "masks", "loss_mask", "label_mask", "labels_mask", "target_mask", "completion_mask"]
_MASKS += ["assistant_mask", "assistant_masks", "assistant_tokens_mask", "ignore", "ignored", "skip"]
_MASKS += ["exclude", "excluded"]
_BAD = "marks a bad answer, but answers are learned unchanged here"
MEANINGS = {
    **dict.fromkeys(("tools", "functions", "tool_calls", "function_call", "tool_call_id"), _TOOLS),
    "tool_choice": "a forced choice of tools cannot be learned here",
    **dict.fromkeys(("image", "images", "video", "videos", "audio", "audios", "media", "pixel_values"), _TEXT_ONLY),
    **dict.fromkeys(
        ("chosen", "rejected", "chosen_messages", "rejected_messages", "preferred_output", "non_preferred_output"),
        _PREFERENCES,
    ),
    **dict.fromkeys(("reasoning_content", "reasoning", "thinking", "thought", "thoughts"), _THOUGHTS),
    **dict.fromkeys(("completions", "labels", "reward", "rewards"), "graded answers cannot be learned here"),
    **dict.fromkeys(_MASKS, "use the `weight` (0 or 1) of each message to say which messages are learned"),
    **dict.fromkeys(("train_detail", "training_detail"), "parts of an answer cannot be excluded from learning"),
    "documents": "documents in addition to the messages are not supported here yet",
    "chat_template_kwargs": "settings of the chat template for a single line are not supported here yet",
    "name": "names belong in messages",
    "refusal": "a refusal outside of the content cannot be learned here: put it into the content",
}
JUDGED = ("label", "kto_tag")  # keys of a line: true for a good answer, false for a bad one
LEARNED = ("weight", "train", "training", "loss", "loss_weight")  # keys of a message: whether it is learned


UNREVIEWED = ("draft", "rejected")  # values of a line's `status` with which it is not learned


def unreviewed(line: dict[str, Any]) -> list[Finding]:
    """The fault of a line that must not be learned yet because no person has accepted it."""
    status = line.get("status")
    if not isinstance(status, str) or status.strip().lower() not in UNREVIEWED:
        return []
    what = "is a draft that nobody has accepted yet: `data review` shows it to a person"
    return [Finding("status", "draft", what if status.strip().lower() == "draft" else "says that it was rejected")]


def is_empty(value: Any) -> bool:
    """Whether a key's value is empty: null, an empty text, list or object, also written as text."""
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null", "None")
    return value is None or (isinstance(value, list | dict) and not value)


def findings(holder: dict[str, Any], read: Collection[str], path: str = "") -> list[Finding]:
    """Faults in the keys of a line or message that are not in `read`; `path` is its place in the line."""
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
        return Finding(
            where, "meaning", "is a weight of the line, which is not supported here yet: all lines count the same"
        )
    if name in MEANINGS:
        return Finding(where, "meaning", f"changes what the line means: {MEANINGS[name]}")
    what = "is unknown and may change what the line means: leave it out, or move it into `metadata`"
    return Finding(where, "unknown-key", what)


def weight(message: dict[str, Any], where: str) -> tuple[float | None, list[Finding]]:
    """A message's own weight in the loss (0 or 1); None if it has none."""
    found: float | None = None
    for key in LEARNED:
        value = message.get(key)
        if value is None:
            continue
        if isinstance(value, str) or value not in (0, 1):
            return None, [Finding(f"{where}.{key}", "meaning", f"is {value!r:.40}: expected 0 or 1 (false or true)")]
        if found is not None and found != value:
            return None, [Finding(f"{where}.{key}", "meaning", "contradicts the message's other weight")]
        found = float(value)
    return found, []
