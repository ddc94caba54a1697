"""What is wrong with a run before it starts: each with what to do about it."""

from dataclasses import dataclass

from fastft.data import Stats
from fastft.trainer.inspection.facts import WEIGHTS, Counts
from fastft.trainer.inspection.words import percent
from fastft.trainer.tasks import Task

CUT_SHARE = 0.05  # of the samples: cut off more often than this is warned of
DROPPED_SHARE = 0.05  # of the records
PADDING_SHARE = 0.3  # of the batches' tokens
WHOLE_TARGETS = ("nsp", "sop", "seq2seq")  # objectives in which a mask leaves no more than what is given anyway


@dataclass(frozen=True)
class Finding:
    """fatal: the run would not learn what it is meant to. Otherwise a warning."""

    fatal: bool
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.problem}. {self.remedy}"


def findings(task: Task, kind: str, counts: Counts, padding: float, strict: bool) -> list[Finding]:
    """Of one task; kind: format of its records; strict: a record with nothing to learn stops the training."""
    return [
        *_mask(task, kind, counts),
        *_end(task, kind, counts),
        *_patterns(task, counts),
        *_weights(task, counts),
        *_left_out(task, counts, strict),
        *_padding(task, padding),
    ]


def nothing_to_learn(problem: str) -> Finding:
    """Where not a single sample is left."""
    return Finding(
        True, f"the mask is empty: {problem}", "Look at mask, train_roles, train_turns, format and max_length"
    )


def _mask(task: Task, kind: str, counts: Counts) -> list[Finding]:
    config = task.config
    if kind in ("text", "tokens") or config.mask == "none" or task.objective.name in WHOLE_TARGETS:
        return []
    of_one_token = any(len(e.prompt_ids) == 1 and e.prompt.strip() for e in task.train.examples)
    if counts.unmasked_samples and of_one_token:
        return [
            Finding(
                False,
                f"in {_of(counts.unmasked_samples, counts.samples, 'samples')} no token behind the first is masked",
                "That is right where a prompt is a single token; where it is empty, fill it or take the record out",
            )
        ]
    if counts.masked == 0:
        return [
            Finding(
                True,
                f"mask is {config.mask!r}, yet not one token is masked in {counts.samples:,} samples",
                f"Look at the prompts and at train_roles ({', '.join(config.train_roles)}); if every token is to be "
                "learned, say so with mask: none",
            )
        ]
    if counts.unmasked_samples:
        return [
            Finding(
                False,
                f"in {_of(counts.unmasked_samples, counts.samples, 'samples')} no token is masked, though mask is "
                f"{config.mask!r}",
                "Their prompts are empty: fill them or take these records out",
            )
        ]
    return []


def _end(task: Task, kind: str, counts: Counts) -> list[Finding]:
    config = task.config
    learnable = config.train_on_eot and config.mask != "completion" and kind not in ("text", "tokens")
    if not learnable or task.objective.name not in ("clm", "prefix_lm", "seq2seq"):
        return []
    whole = could_end(task, counts)
    if counts.ended == 0:
        cut = "" if whole else ", as all of them are cut off before it"
        return [
            Finding(
                True,
                f"the token that ends a turn is learned in none of {counts.records:,} records{cut}, although "
                "train_on_eot is true: the model would not learn to stop",
                "Raise max_length"
                if cut
                else "Look at the chat template, and at span_weights, or set train_on_eot to false",
            )
        ]
    if counts.ended < whole:
        return [
            Finding(
                False,
                f"the token that ends a turn is not learned in {_of(whole - counts.ended, whole, 'records')}",
                "Look at what closes their last turns, and at span_weights",
            )
        ]
    return []


def could_end(task: Task, counts: Counts) -> int:
    """Records that have an end token: all but those that were cut off before one."""
    cut = task.train.stats.truncated
    return counts.ended + max(0, counts.records - counts.ended - cut)


def _patterns(task: Task, counts: Counts) -> list[Finding]:
    config, matched = task.config, task.train.stats.matched
    given = [("keep_spans", config.keep_spans)] if config.keep_spans is not None else []
    given += [("span_weights", pattern) for pattern in config.span_weights or {}]
    return [
        Finding(
            False,
            f"{key}: /{pattern}/ matches nothing in {counts.records + task.train.stats.dropped:,} records",
            "It is a regular expression of the text as it is rendered: correct or remove it",
        )
        for key, pattern in given
        if not matched.get(pattern)
    ]


def _weights(task: Task, counts: Counts) -> list[Finding]:
    if len(counts.weights) == WEIGHTS:  # more than are told apart
        return []
    unmatched = [
        pattern
        for pattern, weight in (task.config.span_weights or {}).items()
        if task.train.stats.matched.get(pattern)
        and weight not in (0, 1)
        and not any(abs(weight - found) <= 1e-6 * weight for found in counts.weights)
    ]
    return [
        Finding(
            False,
            f"span_weights: no learned token has the weight of /{pattern}/",
            "The expression matches nothing that is learned, unless the data have weights too: correct or remove it",
        )
        for pattern in unmatched
    ]


def _left_out(task: Task, counts: Counts, strict: bool) -> list[Finding]:
    stats, found = task.train.stats, []
    if stats.truncated > CUT_SHARE * stats.samples:
        found.append(
            Finding(
                False,
                f"{_of(stats.truncated, stats.samples, 'samples')} are cut off at max_length "
                f"{task.objective.max_length:,}",
                "Raise max_length, or split what is longer",
            )
        )
    held_out = task.eval.stats if task.eval else Stats()
    for name, total, part in (
        ("records", counts.records, stats),
        ("held-out records", held_out.samples, held_out),
    ):
        records = total + part.dropped
        reasons = "; ".join(f"{reason} ({number:,})" for reason, number in part.drop_reasons.items())
        if strict and part.dropped:
            problem = f"{_of(part.dropped, records, name)} have nothing to learn, at which training would stop"
            found.append(Finding(True, f"{problem}: {reasons}", "Correct them, or drop them with on_empty: drop"))
        elif part.dropped > DROPPED_SHARE * records:
            remedy = "Correct the data, max_length or the mask if that is not meant"
            found.append(Finding(False, f"{_of(part.dropped, records, name)} are dropped: {reasons}", remedy))
    return found


def _padding(task: Task, padding: float) -> list[Finding]:
    config = task.config
    if padding <= PADDING_SHARE or config.packing:
        return []
    ways = ["group_by_length"] * (not config.group_by_length) + ["packing"] * task.objective.packs
    if not ways:
        return []
    return [
        Finding(
            False, f"{percent(padding)} of each batch is padding", f"Set {' or '.join(ways)} to true, which saves it"
        )
    ]


def _of(part: int, whole: int, things: str) -> str:
    return f"{part:,} of {whole:,} {things} ({percent(part / whole)})"
