"""What tells one machine, and the code that ran on it, from another: it stands in every row."""

import functools
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

LIBRARIES = ("torch", "torchvision", "sklearn", "sklearnex", "onnxruntime")


@functools.cache
def git_state() -> dict[str, Any]:
    """Commit of the code that runs, and whether tracked files differ from it; nulls without git,
    and in a copy that lies in another repository."""
    root = Path(__file__).parents[2]  # whose .git is named, and not looked for
    command = ["git", "--no-optional-locks", f"--git-dir={root / '.git'}", f"--work-tree={root}"]
    command += ["status", "--porcelain=v2", "--branch", "-uno"]  # which then writes nothing
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    with suppress(OSError, subprocess.CalledProcessError):  # no git
        done = subprocess.run(command, capture_output=True, env=env, check=True)
        lines = done.stdout.decode(errors="replace").splitlines()
        (*_, commit), *others = map(str.split, lines)
        if commit != "(initial)":  # something is committed
            return {"commit": commit, "dirty": any(words[0] != "#" for words in others)}
    return {"commit": None, "dirty": None}


def describe_machine(device: str | None = None) -> dict[str, Any]:
    """The machine and library versions behind a row, with the load average at this moment."""
    cpu, cpu_model = _cpu()
    affinity = getattr(psutil.Process(), "cpu_affinity", None)  # macOS has none
    env: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu,
        "cpu_model": cpu_model,
        "memory_bytes": psutil.virtual_memory().total,
        "cpu_count": os.cpu_count(),
        "cpu_affinity": len(affinity()) if affinity else None,
        "cpu_quota": _read("/sys/fs/cgroup/cpu.max") or None,
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or None,
        "load_average": list(psutil.getloadavg()),
    }
    used = [name for name in LIBRARIES if name in sys.modules]
    env |= {name: getattr(sys.modules[name], "__version__", "unknown") for name in used}
    if torch := sys.modules.get("torch"):
        env["threads"] = torch.get_num_threads()
        if device not in (None, "cpu"):
            env["device"] = getattr(getattr(torch, device), "get_device_name", lambda: device)()
    env.setdefault("device", cpu)
    return env


def machine_of(env: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells the machine of a row from others."""
    return tuple(env.get(name) for name in ("cpu", "cpu_model", "cpu_count"))


def timed_on(env: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells the machine and the device of a timing from others."""
    return (*machine_of(env), env.get("device"))


def timed_here(device: str | None) -> tuple[Any, ...] | None:
    """timed_on of this machine and a device; None where torch lacks it, or it is not there."""
    with suppress(AssertionError, AttributeError, RuntimeError):
        return timed_on(describe_machine(device))
    return None


def _read(file: str) -> str:
    with suppress(OSError):
        return Path(file).read_text("utf-8").strip()
    return ""


@functools.cache
def _cpu() -> tuple[str, str | None]:
    """The CPU's name, and what tells it from others of that name, as far as Linux says."""
    pairs = (line.partition(":") for line in _read("/proc/cpuinfo").split("\n\n")[0].splitlines())
    facts = {key.strip(): value.strip() for key, _, value in pairs}
    keys = [key for key in ("cpu family", "model", "stepping") if key in facts]
    model = ", ".join(f"{key.split()[-1]} {facts[key]}" for key in keys)
    return facts.get("model name") or platform.processor() or platform.machine(), model or None
