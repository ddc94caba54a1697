import pytest
import torch

from fastft.trainer.device import describe, training_device, use_bf16

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_a_cpu_computes_in_bf16_only_if_told() -> None:
    assert [use_bf16(wanted, CPU) for wanted in (None, True, False)] == [False, True, False]
    assert describe(CPU) == f"CPU, {torch.get_num_threads()} threads"
    assert training_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("able", [True, False])
def test_a_gpu_computes_in_bf16_where_it_can(able: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: able)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old GPU")
    assert use_bf16(None, CUDA) is able
    assert use_bf16(False, CUDA) is False
    if able:
        assert use_bf16(True, CUDA)
    else:
        with pytest.raises(ValueError, match="Old GPU has no bf16"):
            use_bf16(True, CUDA)
