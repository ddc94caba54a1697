"""What learns when: parameters by name, some frozen, some of those thawed at steps of the run."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from fastft.embedding.model import ROWS

WRAPPERS = ("base_model.model.", ".base_layer")  # what PEFT puts into names


class Learning:
    """Which parameters of a model learn at a step: a pure function of the step.

        those that can learn as the model comes, without what `freeze` names, and with what `unfreeze` names of any
        that cannot, each from its step on

    A name is that of a parameter or of a module, from its beginning or not, with `*` for anything: `layers.3`,
    `model.layers.*.mlp`, `*norm*`, `lm_head`, `*`. Chosen rows of a table (`TrainableRows`) always learn, and the rest
    of their table never does.

    Args:
        model: with adapters, before it is wrapped for several processes.
        freeze, unfreeze: of `TrainConfig`.
        max_steps: length of the run.

    Raises:
        ValueError: a name that fits no parameter (the nearest is named), or thaws none; a step that is never reached;
            nothing that learns at the first step.
    """

    def __init__(
        self, model: nn.Module, freeze: Sequence[str], unfreeze: Mapping[int, Sequence[str]] | None, max_steps: int
    ) -> None:
        names = names_of(model)
        able = {parameter for parameter in names if parameter.requires_grad}
        chosen = [module for module in model.modules() if ROWS in module._parameters]
        rows, tables = {module._parameters[ROWS] for module in chosen}, {module.weight for module in chosen}
        frozen = set[nn.Parameter]().union(*(matching(pattern, names, "freeze") for pattern in freeze))
        self._since: dict[nn.Parameter, int] = dict.fromkeys(able - (frozen - rows), 0)
        for step in sorted(unfreeze or {}):
            if not 0 <= step < max_steps:
                raise ValueError(f"unfreeze: step {step} is never reached; the run has steps 0 to {max_steps - 1}")
            for pattern in (unfreeze or {})[step]:
                thawed = matching(pattern, names, "unfreeze") - tables - self._since.keys()
                if not thawed:
                    raise ValueError(f"unfreeze: at step {step} {pattern!r} names nothing that is frozen still")
                self._since |= dict.fromkeys(thawed, step)
        if not any(step == 0 for step in self._since.values()):
            raise ValueError(
                "no parameter learns at step 0: the model comes frozen, or freeze names all of it; name what learns in "
                "unfreeze: {0: [...]}"
            )
        self._parameters = list(names)

    def apply(self, step: int) -> bool:
        """Set `requires_grad` as it is at a step; whether that changed anything."""
        changed = False
        for parameter in self._parameters:
            learns = self._since.get(parameter, step + 1) <= step
            changed |= parameter.requires_grad != learns
            parameter.requires_grad_(learns)
        return changed

    def ever(self) -> list[nn.Parameter]:
        """Parameters that learn at some step, in the model's order."""
        return [parameter for parameter in self._parameters if parameter in self._since]


def names_of(model: nn.Module) -> dict[nn.Parameter, list[str]]:
    """Every parameter with all of its names, a tied one has several, as they are without PEFT's wrappers."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        for wrapper in WRAPPERS:
            name = name.replace(wrapper, "", 1)
        names.setdefault(parameter, []).append(name)
    return names


def matching(pattern: str, names: Mapping[nn.Parameter, Iterable[str]], key: str) -> set[nn.Parameter]:
    """Parameters of which a name fits the pattern, see `Learning`.

    Raises:
        ValueError: there is none; key is the setting that is blamed.
    """
    found = {p for p, known in names.items() if any(fnmatchcase(f".{name}.", f"*.{pattern}.*") for name in known)}
    if not found:
        modules = sorted({name.rpartition(".")[0] for known in names.values() for name in known})
        near = difflib.get_close_matches(pattern, modules, n=3, cutoff=0.3) or modules[:3]
        raise ValueError(f"{key}: {pattern!r} fits no parameter of the model; modules are {', '.join(near)}, ...")
    return found
