"""A conversation as the text that a chat template makes of it, with its turns as targets.

It is rendered twice: as it is, and with marks that tell which characters came of which message (`marking`); `turns`
says where a turn begins and ends. If the template closes no turn, an end-of-sequence token closes the last one.

A template that writes the date (Llama 3.2) makes other samples each day, unless an option sets it (`date_string`).
"""

import inspect
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from fastft.data.formats import Conversation
from fastft.data.marking import Piece, Reading, instrument, numbered, read
from fastft.data.masking import Mask, Rendered, Span, Turn
from fastft.data.messages import Message, content, speaks, spoken, strings
from fastft.data.turns import PROBE, Finder, Found, Scene

GENERATION_TAG = re.compile(r"\{%[-+]?\s*generation\b")


class ChatTemplate:
    """The chat template of one tokenizer, with what has been found out about it.

    Args:
        tokenizer: it has a chat template.
        options: what the template is told beside the messages, such as `enable_thinking` or `date_string`.

    Raises:
        ValueError: an option that is none, or a template that leaves out what the assistant says.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any] | None = None) -> None:
        self._tokenizer, self._options = tokenizer, _checked(options or {}, tokenizer)
        self._source: str = tokenizer.get_chat_template()
        self._instrumented = instrument(self._source)
        user, assistant = {"role": "user", "content": "Q"}, {"role": "assistant", "content": PROBE}
        asked, prompted = (self._text([user], "tokenizer", prompt=prompt) for prompt in (False, True))
        probed = self._reading([user, assistant], "tokenizer")
        if PROBE not in probed.text:
            raise ValueError("tokenizer: the chat template leaves out what the assistant says; nothing can be learned")
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        special.update(tokenizer.all_special_tokens)
        written = probed.text + prompted + self._source
        control = sorted({token for token in special if token in written} | {tokenizer.eos_token} - {None})
        holding = (piece for piece in probed.pieces if PROBE in probed.text[piece.start : piece.end])
        _, start, end = next(holding, Piece(1, 0, 0))
        body, behind = probed.text[start:end], probed.text[end:]
        prompt = prompted.removeprefix(asked) if prompted.startswith(asked) else ""
        if not prompt and behind.strip() and body.startswith(behind):
            prompt = behind  # of a template that writes it whether it is wanted or not
        self._reserved = _any_of(control)
        self._closing = _closing(probed.text[start:].partition(PROBE)[2], control)
        believed = GENERATION_TAG.search(self._source) is not None
        self._finder = Finder(self._reading, control, self._closing, body.partition(PROBE)[0], prompt, believed)

    def render(self, conversation: Conversation, origin: str, mask: Mask) -> Rendered:
        """The conversation as text. Targets are the turns of roles that the mask trains, and those with a weight above
        0 of their own; blank turns are none. Those with a weight of 0 are looked for if the mask could learn them.

        Raises:
            ValueError: the template refuses the conversation or leaves out a tool call, a string in it holds a control
                token that the template writes itself, or a turn cannot be found surely; names `origin`.
        """
        messages, weights = spoken(conversation.messages)
        self._refuse_control(messages, origin)
        reading = self._reading(messages, origin)
        turns = [
            index
            for index, (message, weight) in enumerate(zip(messages, weights, strict=True))
            if (message["role"] in mask.train_roles if weight is None else weight or mask.mask != "prompt")
            and (content(message).strip() or message.get("tool_calls"))
        ]
        scene = Scene(messages, reading, origin)
        found = list(self._finder.find(scene, turns, mask.train_roles)) if turns else []
        _check_calls(scene, found)
        n, last = len(reading.text), len(messages) - 1
        closed = not self._closing and bool(found) and found[-1].message == last and speaks(messages[last])
        if closed:
            found[-1] = found[-1]._replace(span=Span(found[-1].span.start, n + 1), closing=n)
        asked = next((message for message in messages if message["role"] == "user"), messages[0])
        learnable = [each for each in found if weights[each.message] != 0]
        return Rendered(
            reading.text,
            tuple(each.span for each in learnable),
            closed,
            add_special_tokens=False,
            opening=content(asked)[:60],
            turns=tuple(Turn(messages[m]["role"], closing, weights[m], m) for m, _, closing in learnable),
            barred=tuple(each.span for each in found if weights[each.message] == 0),
        )

    def _refuse_control(self, messages: Sequence[Message], origin: str) -> None:
        for index, message in enumerate(messages):
            for text in strings(message):
                if reserved := self._reserved.search(text):
                    raise ValueError(
                        f"{origin}: message {index} ({message['role']}) holds {reserved[0]!r}, which the chat template "
                        "writes to tell turns apart; take it out of the data"
                    )

    def _reading(self, messages: Sequence[Message], origin: str) -> Reading:
        """The text, and which characters of it came of which message."""
        text = self._text(messages, origin)
        reading = read(self._text(numbered(messages), origin, template=self._instrumented))
        if reading.text != text:
            raise ValueError(
                f"{origin}: the chat template writes another text when marks tell its turns apart, so it cannot be "
                "masked surely; loop over the messages and mark turns by {% generation %} outside of filters and macros"
            )
        return reading

    def _text(
        self, messages: Sequence[Message], origin: str, *, prompt: bool = False, template: str | None = None
    ) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                list(messages),
                chat_template=template or self._source,
                tokenize=False,
                add_generation_prompt=prompt,
                **self._options,
            )
        except (TemplateError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{origin}: the chat template refuses the messages: {error}") from None
        assert isinstance(text, str)
        return text


def _check_calls(scene: Scene, found: Sequence[Found]) -> None:
    """That every tool that a turn calls is named in it."""
    text = scene.reading.text
    for turn in {each.message for each in found}:
        written = "".join(text[each.span.start : each.span.end] for each in found if each.message == turn)
        for call in scene.messages[turn].get("tool_calls") or ():
            name = call.get("function", call).get("name", "")
            if name not in written:
                raise ValueError(
                    f"{scene.where(turn)} calls the tool {name!r}, which the chat template leaves out; take a template "
                    "that writes tool calls, or write the call in the content"
                )


def _checked(options: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    taken = set(inspect.signature(tokenizer.apply_chat_template).parameters) | {"messages", "self"}
    for name in options:
        if name in taken:
            raise ValueError(f"chat_template_kwargs: {name!r} is no option of a template; it is set by the data")
    return dict(options)


def _closing(rest: str, control: Collection[str]) -> str:
    """What closes a turn: up to the first control token if there is only space before it, otherwise all of the text."""
    found = re.match(rf"\s*(?:{_any_of(control).pattern})", rest)
    return found[0] if found else rest.rstrip()


def _any_of(words: Collection[str]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(word) for word in sorted(words, key=len, reverse=True)) or r"(?!)")
