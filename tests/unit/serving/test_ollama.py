"""Templates for Go, learnt from chat templates of TRL's, rendered by Go itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import trl.chat_template_utils

from orchestrate.data.tokens.chat_templates import render
from orchestrate.errors import DataError, UsageError
from orchestrate.local.proof import probes
from orchestrate.serving.export.ollama import SHAPES, TemplatePieces, learn, modelfile, prove

TEMPLATES = Path(trl.chat_template_utils.__file__).parent / "chat_templates"
COMPILED = Path(tempfile.gettempdir()) / f"orchestrate-go-{os.getuid()}"
"""Of Go's own library, which takes half a minute: once for all tests, and for those of the next time."""
NAMES = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
GO = """
package main

import ("encoding/json"; "os"; "text/template")

type Message struct { Role, Content string }

func main() {
	var given struct { Template string; Conversations [][]Message }
	if err := json.NewDecoder(os.Stdin).Decode(&given); err != nil { panic(err) }
	parsed := template.Must(template.New("t").Parse(given.Template))
	var texts []string
	for _, messages := range given.Conversations {
		var out writer
		if err := parsed.Execute(&out, map[string]any{"Messages": messages}); err != nil { panic(err) }
		texts = append(texts, string(out))
	}
	json.NewEncoder(os.Stdout).Encode(texts)
}

type writer []byte

func (w *writer) Write(p []byte) (int, error) { *w = append(*w, p...); return len(p), nil }
"""


def shower(template: str) -> Callable[[Sequence[Any]], str | None]:
    def shown(messages: Sequence[Any]) -> str | None:
        try:
            return render(template, messages, names=NAMES, answer_next=True)[0]
        except DataError:
            return None

    return shown


def learnt(template: str) -> tuple[TemplatePieces, dict[str, tuple[Any, str | None]]]:
    """Raises `UsageError` where it is refused."""
    shown = shower(template)
    pieces = learn({k: shown([{"role": r, "content": c} for r, c in v]) for k, v in SHAPES.items()}, None)
    probed = {p.kind: (p.plain, shown(p.plain)) for p in probes(["<|im_end|>"]) if not p.tools}
    prove(pieces, probed, None)
    return pieces, probed


def split() -> tuple[dict[str, tuple[TemplatePieces, dict[str, tuple[Any, str | None]]]], list[str]]:
    taken, refused = {}, []
    for path in sorted(TEMPLATES.glob("*.jinja")):
        try:
            taken[path.stem] = learnt(path.read_text())
        except UsageError:
            refused.append(path.stem)
    return taken, refused


@pytest.mark.slow
def test_most_templates_are_learnt_and_the_others_refused() -> None:
    taken, refused = split()
    assert len(taken) >= 15, (len(taken), refused)
    for family in ("qwen2_5", "llama3"):
        assert family in taken, refused


def test_what_a_template_does_with_a_system_text_of_its_own_is_kept() -> None:
    template = (
        "{% if messages[0].role != 'system' %}[sys]You are kind.[/sys]{% endif %}"
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}[/{{ m.role }}]{% endfor %}[assistant]"
    )
    pieces, _ = learnt(template)
    without = pieces.rendered([{"role": "user", "content": "Hi"}])
    assert without == "[sys]You are kind.[/sys][user]Hi[/user][assistant]"
    with_system = [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"}]
    assert pieces.rendered(with_system) == "[system]S[/system][user]Hi[/user][assistant]"


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ loop.index }}: {{ m.content }}\n{% endfor %}Answer:",
        "{% for m in messages %}<{{ m.role }}>{{ m.content | upper }}{% endfor %}<answer>",
        "{% for m in messages[-1:] %}<{{ m.role }}>{{ m.content }}{% endfor %}<answer>",
    ],
)
def test_a_template_that_go_cannot_write_is_refused(template: str) -> None:
    with pytest.raises(
        UsageError, match="could not convert this model's chat template to an Ollama TEMPLATE:"
    ):
        learnt(template)


def test_the_engines_own_first_token_is_not_written_twice() -> None:
    shown = shower("<bos>{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<answer>")
    shapes = {k: shown([{"role": r, "content": c} for r, c in v]) for k, v in SHAPES.items()}
    messages = [{"role": "user", "content": "Hi"}]
    assert learn(shapes, "<bos>").rendered(messages) == "<user>Hi<answer>"
    assert prove(learn(shapes, "<bos>"), {"plain": (messages, shown(messages))}, "<bos>") == []


def test_a_modelfile_stops_where_a_turn_ends() -> None:
    pieces, _ = learnt("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<answer>")
    written = modelfile("m.gguf", pieces, ["<|im_end|>", '<"e">', "a\nb"], 4096)
    assert written.startswith("FROM ./m.gguf\n") and "num_ctx 4096" in written
    # Ollama's reader takes what stands between the quotes as it is: `unquote` in its parser/parser.go.
    assert 'stop "<|im_end|>"\nPARAMETER stop """<"e">"""\nPARAMETER stop "a\nb"\n' in written


@pytest.mark.parametrize("stop", ['a"""b', 'a"', "a\u200bb", "a\x07"])
def test_a_stop_word_that_a_modelfile_cannot_hold_is_refused(stop: str) -> None:
    pieces, _ = learnt("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<answer>")
    with pytest.raises(UsageError, match="cannot contain the stop sequence"):
        modelfile("m.gguf", pieces, [stop], 4096)


@pytest.mark.slow
def test_what_ollamas_reader_would_drop_is_an_escape_to_go(tmp_path: Path) -> None:
    """It keeps printable characters alone; Go writes them all."""
    if shutil.which("go") is None:
        pytest.skip("no Go on this machine (Debian: golang-go)")
    odd = '\u200b\u00a0\U000e0001\U0001f600\u007f"\\\t'
    pieces, _ = learnt(
        "{% for m in messages %}" + odd + "<{{ m.role }}>{{ m.content }}{% endfor %}" + odd + "<answer>"
    )
    template = pieces.template()
    assert template.replace("\n", "").isprintable()
    messages = [{"role": "user", "content": "Hi"}]
    assert rendered_by_go(template, [messages], tmp_path) == [f"{odd}<user>Hi{odd}<answer>"]


def rendered_by_go(template: str, conversations: Sequence[Sequence[Any]], scratch: Path) -> list[str]:
    """By Go's text/template, as Ollama does."""
    program = scratch / "render"
    if not program.exists():
        (scratch / "main.go").write_text(GO)
        env = {"HOME": str(scratch), "PATH": "/usr/bin:/bin:/usr/local/go/bin", "GOFLAGS": "-mod=mod"}
        env["GOCACHE"] = str(COMPILED)
        built = ["go", "build", "-o", str(program), str(scratch / "main.go")]
        subprocess.run(built, check=True, env=env, cwd=scratch)
    shaped = [[{"Role": m["role"], "Content": m["content"]} for m in c] for c in conversations]
    given = json.dumps({"Template": template, "Conversations": shaped}).encode()
    done = subprocess.run([program], input=given, capture_output=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.slow
def test_go_writes_what_the_chat_template_writes(tmp_path: Path) -> None:
    if shutil.which("go") is None:
        pytest.skip("no Go on this machine (Debian: golang-go)")
    taken, _ = split()
    for name, (pieces, probed) in taken.items():
        cases = [(kind, messages, text) for kind, (messages, text) in probed.items() if text is not None]
        texts = rendered_by_go(pieces.template(), [messages for _, messages, _ in cases], tmp_path)
        for (kind, messages, text), written in zip(cases, texts, strict=True):
            assert written == pieces.rendered(messages), (name, kind)
            if kind != "white space":
                assert written == text, (name, kind)
