"""Where the assistant speaks in a text that a chat template wrote.

Templates trim contents, merge messages, and write a turn differently when others follow it. So neither searching for
the content nor rendering a shorter conversation finds a turn surely. What does: render once more with only this content
replaced, by a word found nowhere else. What stands before and after that word stands at the start and at the end of
the real text too, and encloses what the content became there.

The turn of an assistant then reaches
    from  the end of what the template writes as a prompt for generation at this point, where the real text begins with
          it: what a model is given when it is used. (So Qwen3's empty <think> block, which follows that prompt, is
          learned.) Otherwise from the start of the content;
    to    the end of the closing that the template writes after an assistant's content (`<|im_end|>`), without the
          line break behind it. If it writes none, an end-of-sequence token closes the last turn.

A template that marks the turns itself, by {% generation %}, is believed, and a missing closing is added. Whenever
renderings do not fit together, a ValueError says so: no mask is better than a wrong one.
"""

import re
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from fastft.data.formats import Conversation
from fastft.data.masking import Rendered, Span

Messages = list[dict[str, Any]]

PROBE = "Zqxjprobe"  # a word that no template looks for; lengthened until the text does not contain it
OPEN, CLOSE = "\ue000", "\ue001"  # private-use characters, put around {% generation %} blocks
GENERATION_TAG = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")


class ChatTemplate:
    """The chat template of one tokenizer, with what has been found out about it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._source: str = tokenizer.get_chat_template()
        self._marked = GENERATION_TAG.sub(_mark, self._source)
        user, assistant = {"role": "user", "content": "Q"}, {"role": "assistant", "content": PROBE}
        prompted = self._text([user], "tokenizer", prompt=True)
        self._has_generation_prompt = prompted != self._text([user], "tokenizer")
        probed = self._text([user, assistant], "tokenizer")
        if PROBE not in probed:
            raise ValueError("tokenizer: the chat template leaves out what the assistant says; nothing can be learned")
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        special.update(tokenizer.all_special_tokens)
        self._closing = _closing(probed.rpartition(PROBE)[2], special)
        reserved = {token for token in special if token in probed + prompted} | {tokenizer.eos_token}
        self._reserved = _any_of(reserved - {None})

    def render(self, conversation: Conversation, origin: str) -> Rendered:
        """The conversation as text, with its assistant turns as targets; blank turns are none.

        Raises:
            ValueError: the template refuses the conversation, a content holds a control token that the template
                writes itself, or a turn cannot be found surely; names `origin`.
        """
        messages = conversation.messages
        for index, message in enumerate(messages):
            reserved = self._reserved.search(message["content"])
            if reserved:
                raise ValueError(
                    f"{origin}: message {index} ({message['role']}) holds {reserved[0]!r}, which the chat template "
                    "writes to tell turns apart; take it out of the data"
                )
        text = self._text(messages, origin)
        turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        spoken = [turn for turn in turns if messages[turn]["content"].strip()]
        if self._marked != self._source:
            blocks = dict(zip(turns, self._generation_blocks(text, messages, len(turns), origin), strict=True))
            spans = {turn: self._without_closing(text, blocks[turn]) for turn in spoken}
        else:
            spans = {turn: self._turn(text, messages, turn, origin) for turn in spoken}
        last = len(messages) - 1
        closed = not self._closing and last in spans
        targets = []
        for turn, span in spans.items():
            end = len(text) + 1 if closed and turn == last else self._end(text, span, turn == last, origin)
            targets.append(Span(span.start, end))
        asked = next((message for message in messages if message["role"] == "user"), messages[0])
        return Rendered(text, tuple(targets), closed, add_special_tokens=False, opening=asked["content"][:60])

    def _turn(self, text: str, messages: Messages, turn: int, origin: str) -> Span:
        """Characters of one assistant turn, its closing not yet included, by difference of renderings."""
        extra = [
            name for name, value in messages[turn].items() if name not in ("role", "content") and value is not None
        ]
        if extra:
            raise ValueError(
                f"{origin}: message {turn} (assistant) has {', '.join(extra)} beside its content; only a chat "
                "template with {% generation %} tells where that is written, and this one has none"
            )
        word = PROBE
        while word in text:
            word += "q"
        replaced = [*messages[:turn], {**messages[turn], "content": word}, *messages[turn + 1 :]]
        before, _, after = (probed := self._text(replaced, origin)).partition(word)
        if probed.count(word) != 1:
            raise _unsure(origin, turn, f"writes its content {probed.count(word)} times")
        end = len(text) - len(after)
        if not text.endswith(after) or end < 0:
            raise _unsure(origin, turn, "writes what follows it differently for a different content")
        start = len(before) if text.startswith(before) and len(before) <= end else None
        prompt = self._generation_prompt(messages[:turn], origin)
        if prompt and text.startswith(prompt) and len(prompt) <= end:
            start = len(prompt)
        if start is None:
            raise _unsure(origin, turn, "writes what precedes it differently for a different content")
        return Span(start, end)

    def _generation_prompt(self, messages: Messages, origin: str) -> str:
        """Everything a model is given before the next assistant turn; empty if the template has no prompt for it."""
        if not messages or not self._has_generation_prompt:
            return ""
        try:
            return self._text(messages, origin, prompt=True)
        except ValueError:  # refused as a conversation of its own: the turn is then found by its content alone
            return ""

    def _generation_blocks(self, text: str, messages: Messages, turns: int, origin: str) -> list[Span]:
        """Characters inside each {% generation %} block, in order."""
        marked = self._text(messages, origin, template=self._marked)
        pieces = re.split(f"[{OPEN}{CLOSE}]", marked)
        order = "".join(re.findall(f"[{OPEN}{CLOSE}]", marked))
        if "".join(pieces) != text or order != (OPEN + CLOSE) * turns:
            raise ValueError(
                f"{origin}: the chat template's {{% generation %}} blocks do not match the {turns} assistant turns; "
                "it cannot be masked surely: correct the template, or take the tags out of it"
            )
        ends = [sum(map(len, pieces[: count + 1])) for count in range(len(pieces))]
        return [Span(ends[2 * turn], ends[2 * turn + 1]) for turn in range(turns)]

    def _without_closing(self, text: str, span: Span) -> Span:
        """The same characters, less the closing at their end and the space behind it."""
        inside = text[span.start : span.end].rstrip()
        closed = self._closing and inside.endswith(self._closing)
        return Span(span.start, span.start + len(inside) - len(self._closing)) if closed else span

    def _end(self, text: str, span: Span, last: bool, origin: str) -> int:
        """Where the turn ends, its closing included."""
        if text.startswith(self._closing, span.end):
            return span.end + len(self._closing)
        if last:
            raise ValueError(f"{origin}: the chat template closes this conversation not by {self._closing!r}")
        return span.end

    def _text(self, messages: Messages, origin: str, *, prompt: bool = False, template: str | None = None) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=prompt
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise ValueError(f"{origin}: the chat template refuses the messages: {error}") from None
        assert isinstance(text, str)
        return text


def _unsure(origin: str, turn: int, problem: str) -> ValueError:
    return ValueError(
        f"{origin}: message {turn} (assistant): the chat template {problem}, so its place is not sure; mark it in "
        "the template by {% generation %} ... {% endgeneration %}"
    )


def _closing(rest: str, special: set[str]) -> str:
    """What closes a turn: up to the first control token if there is only space before it, otherwise all of the text."""
    found = re.match(rf"\s*(?:{_any_of(special).pattern})", rest)
    return found[0] if found else rest.rstrip()


def _any_of(words: set[str]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(word) for word in sorted(words, key=len, reverse=True)) or r"(?!)")


def _mark(tag: re.Match[str]) -> str:
    """A {% generation %} tag with a mark inside it; the block around the body keeps whitespace as it was."""
    left, is_end, right = tag.groups()
    if is_end:
        return f"{{%{left} endif %}}{{{{ '{CLOSE}' }}}}{{% endgeneration {right}%}}"
    return f"{{%{left} generation %}}{{{{ '{OPEN}' }}}}{{% if true {right}%}}"
