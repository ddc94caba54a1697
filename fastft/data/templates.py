"""From a record to the text that is tokenised, and the characters of it that are to be learned.

With a chat template (`tokenizer.chat_template`) every record but plain text becomes a conversation and is rendered by
it. Without one:

    prompt, completion            {prompt}{completion}<eos>, joined as they are: no space is added
    instruction, input, output    ### Instruction:, ### Input: (if there is any) and ### Response:, each on a line above
                                  its text, an empty line between them, and <eos>. The target is the output: the line
                                  ### Response: is given to the model when it is used, so it is part of the prompt
                                  (keep_spans: '### Response:\\n' has it learned)
    messages                      refused: only a template knows how turns are written

Plain text is itself and <eos>, template or not. Tokens are what they are.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from transformers import PreTrainedTokenizerBase

from fastft.data.chat import ChatTemplate
from fastft.data.formats import Conversation, Instruction, PromptCompletion, Record, Text, Tokenised
from fastft.data.masking import Mask, Rendered, Span, Turn, kept_strings

NO_COLUMNS: Mapping[str, Any] = MappingProxyType({})


class Renderer:
    """Renders records for one tokenizer.

    Args:
        tokenizer: if it has a chat template, that is used.
        mask: whose `train_roles` are targets, and whose `keep_field` is looked for in a record's columns.
        chat_template_kwargs: what a chat template is told beside the messages, such as `enable_thinking`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        mask: Mask | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self._tokenizer, self._mask = tokenizer, mask or Mask()
        if chat_template_kwargs and not tokenizer.chat_template:
            raise ValueError(
                f"chat_template_kwargs: got {dict(chat_template_kwargs)!r} and no chat template to tell it"
            )
        self._chat = ChatTemplate(tokenizer, chat_template_kwargs) if tokenizer.chat_template else None

    def render(self, record: Record, origin: str, columns: Mapping[str, Any] = NO_COLUMNS) -> Rendered:
        """The text of a record. A blank completion or turn is no target.

        Args:
            columns: of the record as it was read, among which `keep_field` is looked for.

        Raises:
            ValueError: the chat template refuses the record or cannot be masked surely, a string to keep is not in the
                text, or tokens are none of the tokenizer's; names `origin`.
        """
        rendered = self._rendered(record, origin)
        if self._mask.keep_field is None:
            return rendered
        return replace(rendered, kept=kept_strings(columns, self._mask.keep_field, rendered.text, origin))

    def _rendered(self, record: Record, origin: str) -> Rendered:
        if isinstance(record, Tokenised):
            return self._tokenised(record, origin)
        if isinstance(record, Text):
            return _closed(record.text, 0, "", record.text.strip(), divisible=True)
        if self._chat is not None:
            return self._chat.render(_conversation(record), origin, self._mask)
        if isinstance(record, Conversation):
            raise ValueError(
                f"{origin}: messages need a chat template and this tokenizer has none; take an instruction-tuned "
                "model's tokenizer, set tokenizer.chat_template, or write the data as prompt and completion"
            )
        prompt, completion = _prompt_and_completion(record)
        return _closed(prompt + completion, len(prompt), "assistant", completion.strip())

    def _tokenised(self, record: Tokenised, origin: str) -> Rendered:
        ids, weights = list(record.input_ids), list(record.weights)
        size = len(self._tokenizer)
        strange = next((place for place, token in enumerate(ids) if not 0 <= token < size), None)
        if strange is not None:
            raise ValueError(
                f"{origin}: input_ids[{strange}] is {ids[strange]}, and the tokenizer has tokens 0 to {size - 1}; "
                "take the tokenizer that the tokens were made with"
            )
        opening = str(self._tokenizer.decode(ids[:20]))[:60]
        return Rendered("", (), closed=False, add_special_tokens=False, opening=opening, tokens=(ids, weights))


def _closed(text: str, start: int, role: str, target: str, *, divisible: bool = False) -> Rendered:
    """A text whose one target reaches from a character to the end token, unless that target is blank."""
    n = len(text)
    return Rendered(
        text,
        (Span(start, n + 1),) if target else (),
        closed=True,
        add_special_tokens=True,
        opening=text[:60],
        divisible=divisible,
        turns=(Turn(role, closing=n),) if target else (),
    )


def _conversation(record: PromptCompletion | Instruction | Conversation) -> Conversation:
    if isinstance(record, Conversation):
        return record
    if isinstance(record, Instruction):
        parts = (record.instruction, record.input) if record.input.strip() else (record.instruction,)
        user, assistant = "\n\n".join(parts), record.output
    else:
        user, assistant = record.prompt, record.completion
    return Conversation([{"role": "user", "content": user}, {"role": "assistant", "content": assistant}])


def _prompt_and_completion(record: PromptCompletion | Instruction) -> tuple[str, str]:
    if isinstance(record, PromptCompletion):
        return record.prompt, record.completion
    given = f"### Input:\n{record.input}\n\n" if record.input.strip() else ""
    return f"### Instruction:\n{record.instruction}\n\n{given}### Response:\n", record.output
