"""Where each turn stands in the output of a chat template, given which characters came of which message.

A turn is learned
    from  the end of what the template writes as a prompt for generation, where the assistant's characters begin with
          it: what a model is given when it is used, so the header of a response is not learned, and Qwen3's empty
          <think> block, which follows the prompt, is. Otherwise, and for any other role, from the start of the content,
          which is found by rendering once more with a word in its place;
    to    the end of the message's characters less the space there, so with the control tokens that close it.

A template that marks turns itself, by {% generation %}, is believed, and a missing closing is added. Whenever
renderings do not fit together, a ValueError says so: no mask is better than a wrong one.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fastft.data.marking import Piece, Reading
from fastft.data.masking import Span
from fastft.data.messages import Message, content, speaks

PROBE = "Zqxjprobe"  # a word that no template looks for; lengthened until the text does not contain it


class Found(NamedTuple):
    """Characters of a turn, and the one at which its closing begins, if it has any; `message` is its number."""

    message: int
    span: Span
    closing: int | None


class Scene(NamedTuple):
    """A conversation, what was read of its rendering, and where it came from."""

    messages: Sequence[Message]
    reading: Reading
    origin: str

    def body(self, piece: Piece) -> str:
        return self.reading.text[piece.start : piece.end]

    def piece(self, turn: int) -> Piece:
        """All that the template made of a message."""
        found = [piece for piece in self.reading.pieces if piece.message == turn and self.body(piece).strip()]
        if len(found) != 1:
            raise self.unsure(turn, f"writes it in {len(found)} places of its loops over the messages")
        return found[0]

    def unsure(self, turn: int, problem: str) -> ValueError:
        return ValueError(
            f"{self.where(turn)}: the chat template {problem}, so its place is not sure; mark it in the template by "
            "{% generation %} ... {% endgeneration %}"
        )

    def where(self, turn: int) -> str:
        return f"{self.origin}: message {turn} ({self.messages[turn]['role']})"


@dataclass
class Finder:
    """Finds turns in what one template wrote.

    Attributes:
        read: renders messages; the second argument is named by its errors.
        control: control tokens that the template writes.
        closing: what it writes behind the content of an assistant's last turn; empty if nothing.
        header: what it writes of the assistant's message before the content.
        prompt: what it writes for generation, at which point an assistant's turn begins; empty if nothing.
        believed: it marks turns by {% generation %}.
    """

    read: Callable[[Sequence[Message], str], Reading]
    control: Sequence[str]
    closing: str
    header: str
    prompt: str
    believed: bool
    _shapes: set[Any] = field(default_factory=set)

    def find(self, scene: Scene, wanted: Sequence[int], roles: Collection[str]) -> Iterator[Found]:
        """These turns, in order. One that a template marks in several blocks is found as several.

        Raises:
            ValueError: it cannot be done surely; names origin and message.
        """
        blocks = _blocks(scene, roles) if self.believed else {}
        pieces = {turn: scene.piece(turn) for turn in wanted if turn not in blocks}
        self._check_shape(scene, pieces)
        asked = {turn for turn, piece in pieces.items() if self._is_prompted(scene, piece)}
        unasked = [turn for turn in pieces if turn not in asked and content(scene.messages[turn]).strip()]
        around = self._around(scene, unasked) if unasked else {}
        for turn in wanted:
            if turn in blocks:
                *_, last = blocks[turn]
                yield from (self._closed(scene, turn, span, ends=span == last) for span in blocks[turn])
                continue
            piece, body = pieces[turn], scene.body(pieces[turn])
            stripped = piece.start + len(body.rstrip())
            if turn in asked:
                span = Span(piece.start + len(self.prompt), stripped)
            elif turn in around:
                span = _between(scene, piece, *around[turn])
            elif body.startswith(self.header):
                span = Span(piece.start + len(self.header), stripped)
            elif not self.header.strip():
                span = Span(piece.start, stripped)
            else:
                raise scene.unsure(turn, "writes no content by which to find it")
            yield self._closed(scene, turn, span)

    def _closed(self, scene: Scene, turn: int, span: Span, *, ends: bool = True) -> Found:
        """The turn in these characters, without the space behind its closing, or with a closing that follows them."""
        text, (start, end) = scene.reading.text, span
        inside = start + len(text[start:end].rstrip())
        closing = inside
        while token := next((token for token in self.control if text.endswith(token, start, closing)), ""):
            closing -= len(token)
        if closing == inside and self.closing and text.endswith(self.closing, start, inside):
            closing -= len(self.closing)
        if closing < inside:
            return Found(turn, Span(start, inside), closing)
        if self.closing and text.startswith(self.closing, end):
            return Found(turn, Span(start, end + len(self.closing)), end)
        if ends and self.closing and turn == len(scene.messages) - 1 and speaks(scene.messages[turn]):
            raise ValueError(f"{scene.origin}: the chat template closes this conversation not by {self.closing!r}")
        return Found(turn, span, None)

    def _is_prompted(self, scene: Scene, piece: Piece) -> bool:
        """Whether the characters of a turn begin with what a model is given before it speaks."""
        prompted = bool(self.prompt) and scene.reading.text.startswith(self.prompt, piece.start, piece.end)
        return prompted and speaks(scene.messages[piece.message])

    def _check_shape(self, scene: Scene, pieces: Mapping[int, Piece]) -> None:
        """That a turn holds its own content, and no other message; once for each sequence of roles and keys."""
        messages, _, origin = scene
        shape = (tuple((m["role"], *m, bool(content(m).strip())) for m in messages), tuple(pieces))
        if shape in self._shapes or not pieces:
            return
        probed = [{**m, "content": f"{PROBE}{index}x"} if content(m).strip() else m for index, m in enumerate(messages)]
        probe = Scene(messages, self.read(probed, origin), origin)
        for turn in pieces:
            piece = probe.piece(turn)
            held = [int(number) for number in re.findall(rf"{PROBE}(\d+)x", probe.body(piece))]
            speaking = bool(content(messages[turn]).strip())
            if speaking and turn not in held:
                calls = " beside its tool calls; empty it" if messages[turn].get("tool_calls") else ""
                raise ValueError(f"{scene.where(turn)}: the chat template leaves out its content{calls}")
            if held.count(turn) > 1:
                raise scene.unsure(turn, f"writes its content {held.count(turn)} times")
            learned = held if not speaking or self._is_prompted(probe, piece) else held[held.index(turn) :]
            nested = any(
                p.message != turn and piece.start <= p.start < p.end <= piece.end for p in probe.reading.pieces
            )
            if nested or set(learned) - {turn}:
                raise scene.unsure(turn, "writes another message within it")
        self._shapes.add(shape)

    def _around(self, scene: Scene, turns: Sequence[int]) -> dict[int, tuple[str, str]]:
        """What the template writes of each of these messages before its content and behind it."""
        word = PROBE
        while word in scene.reading.text:
            word += "q"
        probed = [{**m, "content": word} if index in turns else m for index, m in enumerate(scene.messages)]
        probe = Scene(scene.messages, self.read(probed, scene.origin), scene.origin)
        around = {}
        for turn in turns:
            body = probe.body(probe.piece(turn))
            if body.count(word) != 1:
                raise scene.unsure(turn, f"writes its content {body.count(word)} times")
            before, _, after = body.partition(word)
            around[turn] = before, after
        return around


def _between(scene: Scene, piece: Piece, before: str, after: str) -> Span:
    """From the content of a turn to its end, given what a template writes around any content."""
    body = scene.body(piece)
    if not body.endswith(after) or len(body) < len(before) + len(after):
        raise scene.unsure(piece.message, "writes what follows it differently for a different content")
    if not body.startswith(before):
        raise scene.unsure(piece.message, "writes what precedes it differently for a different content")
    return Span(piece.start + len(before), piece.end - len(after) + len(after.rstrip()))


def _blocks(scene: Scene, roles: Collection[str]) -> dict[int, list[Span]]:
    """Characters in {% generation %} of each message that has any; what is behind the loop belongs to its last."""
    messages, (_, pieces, marked), origin = scene
    speakers = [turn for turn, message in enumerate(messages) if speaks(message)]
    blocks: dict[int, list[Span]] = {}
    if not pieces and len(marked) == len(speakers):
        blocks = {turn: [Span(*block)] for turn, block in zip(speakers, marked, strict=True)}
    elif pieces:
        for start, end in marked:
            owners = [piece.message for piece in pieces if piece.start <= start and end <= piece.end]
            before = [piece.message for piece in pieces if piece.end <= start]
            blocks.setdefault((owners or [max(before, default=0)])[0], []).append(Span(start, end))
    strange = [turn for turn in blocks if turn not in speakers and messages[turn]["role"] not in roles]
    missing = [turn for turn in speakers if turn not in blocks and content(messages[turn]).strip()]
    if strange or missing:
        raise ValueError(
            f"{origin}: the chat template's {{% generation %}} blocks do not match the {len(speakers)} assistant "
            "turns; it cannot be masked surely: correct the template, or take the tags out of it"
        )
    return blocks
