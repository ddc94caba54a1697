"""From a record to the text that is tokenised, and the characters of it that are to be learned.

With a chat template (`tokenizer.chat_template`) every record but plain text becomes a conversation and is rendered by
it. Without one:

    prompt, completion            {prompt}{completion}<eos>, joined as they are: no space is added
    instruction, input, output    ### Instruction:, ### Input: (if there is any) and ### Response:, each on a line above
                                  its text, an empty line between them, and <eos>
    messages                      refused: only a template knows how turns are written

Plain text is itself and <eos>, template or not.
"""

from transformers import PreTrainedTokenizerBase

from fastft.data.chat import ChatTemplate
from fastft.data.formats import Conversation, Instruction, PromptCompletion, Record, Text
from fastft.data.masking import Rendered, Span


class Renderer:
    """Renders records for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._chat = ChatTemplate(tokenizer) if tokenizer.chat_template else None

    def render(self, record: Record, origin: str) -> Rendered:
        """The text of a record. A blank completion or assistant turn is no target.

        Raises:
            ValueError: the chat template refuses the record or cannot be masked surely; names `origin`.
        """
        if isinstance(record, Text):
            targets = (Span(0, len(record.text) + 1),) if record.text.strip() else ()
            return Rendered(
                record.text, targets, closed=True, add_special_tokens=True, opening=record.text[:60], divisible=True
            )
        if self._chat is not None:
            return self._chat.render(_conversation(record), origin)
        if isinstance(record, Conversation):
            raise ValueError(
                f"{origin}: messages need a chat template and this tokenizer has none; take an instruction-tuned "
                "model's tokenizer, set tokenizer.chat_template, or write the data as prompt and completion"
            )
        prompt, completion = _prompt_and_completion(record)
        text = prompt + completion
        targets = (Span(len(prompt), len(text) + 1),) if completion.strip() else ()
        return Rendered(text, targets, closed=True, add_special_tokens=True, opening=text[:60])


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
