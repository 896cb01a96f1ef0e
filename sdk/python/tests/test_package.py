"""The wheel: its files, and its installation."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import sluice

ROOT = Path(__file__).resolve().parents[1]
PIP = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        # It uses the installed build backend, so that the test needs no network.
        [*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", str(directory), str(ROOT)],
        check=True,
        timeout=300,
    )
    (wheel,) = directory.iterdir()
    return wheel


def test_its_files(wheel: Path) -> None:
    assert wheel.name == f"sluice_client-{sluice.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith("/METADATA"))
        text = archive.read(metadata).decode()
    assert "sluice/py.typed" in names
    assert {name.split("/")[0] for name in names} == {
        "sluice",
        f"sluice_client-{sluice.__version__}.dist-info",
    }
    assert any(name.endswith("licenses/LICENSE") for name in names)
    for line in (
        "Name: sluice-client",
        "Requires-Python: >=3.10",
        "License-Expression: Apache-2.0",
    ):
        assert line in text.splitlines()
    assert "Requires-Dist" not in text


def test_it_can_be_installed(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "--no-index", str(wheel)], check=True, timeout=300
    )
    program = """
import importlib.resources, sluice
assert "site-packages" in sluice.__file__, sluice.__file__
assert importlib.resources.files(sluice).joinpath("py.typed").is_file()
print(sluice.__version__)
"""
    done = subprocess.run(
        [python, "-I", "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.strip() == sluice.__version__


def test_exports() -> None:
    for name in sluice.__all__:
        thing = getattr(sluice, name)
        if getattr(thing, "__module__", "").startswith("sluice"):
            assert thing.__doc__
