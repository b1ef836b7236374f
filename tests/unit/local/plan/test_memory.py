"""The memory plan against published sizes and against what autograd really keeps; speed estimates; the
model's files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest
from tests.logged import Logged
from tests.paths import TINY

from orchestrate.costing import built_in, gpu_memory_bytes
from orchestrate.data import TrainingData
from orchestrate.errors import UsageError
from orchestrate.local import machine, speed
from orchestrate.local.model import files
from orchestrate.local.plan import ModelShape, throughput
from orchestrate.local.plan.memory import Setup, plan
from orchestrate.local.plan.throughput import Bench
from orchestrate.providers.local.provider import LocalProvider
from orchestrate.settings.config import HostConfig
from orchestrate.setup import doctor
from orchestrate.spec import JobSpec

LLAMA_8B = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
LLAMA_70B = {
    **LLAMA_8B,
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "intermediate_size": 28672,
    "num_attention_heads": 64,
}


def test_parameters_are_those_that_the_makers_state() -> None:
    assert ModelShape.of(LLAMA_8B).parameters == 8_030_261_248
    assert ModelShape.of(LLAMA_70B).parameters == 70_553_706_496
    assert ModelShape.of(LLAMA_8B).adapter_parameters(16) == 41_943_040
    assert ModelShape.like(8e9).parameters == pytest.approx(8e9, rel=0.05)
    assert ModelShape.like(27e9).parameters == pytest.approx(27e9, rel=0.05)


def test_70b_in_four_bits_is_about_40_gb_and_fits_one_80_gb_card() -> None:
    """Weights, adapter, its gradients and optimizer; activations come on top."""
    setup = Setup(longest=2048, gradient_checkpointing=True)
    found = plan(ModelShape.of(LLAMA_70B), setup, device="cuda", available_bytes=80 << 30)
    held = sum(found.parts[p] for p in ("weights", "adapter", "optimizer", "gradients"))
    assert held == pytest.approx(40e9, rel=0.1)
    assert found.fits and found.advice == ()


@pytest.mark.parametrize(
    "setup",
    [
        Setup(adapter="full", rows=4, longest=2048),
        Setup(adapter="lora", rows=8, longest=4096),
        Setup(rows=8, longest=2048),
        Setup(rows=4, longest=1024, pairs=True),
    ],
)
def test_advice_ends_in_what_fits(setup: Setup) -> None:
    """Each step names the total that it leads to; the totals fall, and the last one fits."""
    shape, room = ModelShape.of(LLAMA_8B), 16 << 30
    found = plan(shape, setup, device="cuda", available_bytes=room)
    assert found.fits is False
    totals = [float(m.group(1)) for a in found.advice if (m := re.search(r"\(([\d.]+) GiB", a))]
    assert [found.total_bytes / 2**30, *totals] == sorted([found.total_bytes / 2**30, *totals], reverse=True)
    assert found.advice[-1].endswith("fits)") and totals[-1] <= 16


def test_a_share_of_all_weights_is_counted_by_hand() -> None:
    """8.03e9 weights: 16 bytes each over 8 GPUs, embeddings and output layer whole with their gradients, two
    layers of weights and the gradient of one. In 4 bits each holds the constants of NF4 too."""
    shape, total = ModelShape.of(LLAMA_8B), 8_030_261_248
    outside = 2 * 128_256 * 4096
    layer = (total - outside) / 32
    parts = plan(shape, Setup(adapter="full", shares=8), device="cuda", available_bytes=80 << 30).parts
    held = sum(parts[name] for name in ("weights", "gradients", "optimizer"))
    assert held == pytest.approx(16 * total / 8, rel=1e-6)
    assert parts["gathered layers"] == pytest.approx(8 * outside + 12 * layer, rel=1e-6)
    parts = plan(shape, Setup(shares=2), device="cuda", available_bytes=80 << 30).parts
    few = total - outside - 65 * 4096
    packed, constants, rest = few / 2, few / 64 + few / 64 / 256 * 4, 2 * (total - few)
    assert parts["weights"] == pytest.approx((packed + rest) / 2 + constants, rel=1e-4)


def test_what_fits_nowhere_is_said() -> None:
    found = plan(ModelShape.of(LLAMA_70B), Setup(rows=2), device="cuda", available_bytes=24 << 30)
    assert found.advice[-1] == "use a smaller model or a larger machine"


def test_a_damaged_file_of_measurements_is_as_none(tmp_path: Path) -> None:
    throughput.bench_file(tmp_path).write_text("[{")
    assert throughput.read(tmp_path) == []


@pytest.mark.slow
def test_this_machine_can_be_measured(tmp_path: Path) -> None:
    found = speed.measure(tmp_path, model=TINY, threads=1, device="cpu", seconds=1.0)
    assert found.tokens_per_second > 100 and found.parameters > 1_000_000
    assert throughput.read(tmp_path) == [found]


def test_the_folder_of_a_model_is_checked(tmp_path: Path) -> None:
    assert files.open_folder(TINY).fingerprint() == files.open_folder(TINY).fingerprint()
    with pytest.raises(UsageError, match=r"no config\.json"):
        files.open_folder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UsageError, match=r"pytorch_model\.bin") as error:
        files.open_folder(tmp_path)
    assert "safe_serialization" in str(error.value.fix)


def test_a_name_that_is_no_model_is_explained() -> None:
    with pytest.raises(UsageError, match=r"and it is not a Hugging Face Hub id .owner/name."):
        files.fetch("/nowhere/at/all")


def test_no_hub_is_explained(tmp_path: Path) -> None:
    code = (
        "from orchestrate.errors import ConfigError\nfrom orchestrate.local.model import files as models\n"
        "try: models.fetch('nobody/has-this-model')\nexcept ConfigError as error: print(error, error.fix)"
    )
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    said = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    ).stdout
    assert "not on this machine, and the Hub cannot be reached (HF_HUB_OFFLINE is set)" in said
    assert "model folder" in said


# The report's tags and the sizes of the slices of 10 and 20 GB are those that people published of A100s with
# 80 GB. The rest is made up: the third slice is one whose size the driver does not say.
NVIDIA_SMI = """#!/bin/sh
[ "$1" = -q ] && { cat <<END
<?xml version="1.0" ?>
<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">
<nvidia_smi_log>
<gpu id="00000000:00:04.0"><mig_devices>None</mig_devices><uuid>GPU-aaaa</uuid></gpu>
<gpu id="00000000:00:05.0"><mig_devices>
<mig_device><index>0</index><gpu_instance_id>1</gpu_instance_id><compute_instance_id>0</compute_instance_id>
<fb_memory_usage><total>9728 MiB</total><reserved>0 MiB</reserved><used>12 MiB</used></fb_memory_usage>
</mig_device>
<mig_device><index>1</index><fb_memory_usage><total>19968 MiB</total></fb_memory_usage></mig_device>
<mig_device><index>2</index><fb_memory_usage><total>N/A</total></fb_memory_usage></mig_device>
</mig_devices><uuid>GPU-bbbb</uuid><fb_memory_usage><total>81920 MiB</total></fb_memory_usage></gpu>
</nvidia_smi_log>
END
exit; }
[ "$1" = -L ] && { cat <<END
GPU 0: NVIDIA L4 (UUID: GPU-aaaa)
GPU 1: NVIDIA A100-SXM4-80GB (UUID: GPU-bbbb)
  MIG 1g.10gb     Device  0: (UUID: MIG-cccc)
  MIG 2g.20gb+me  Device  1: (UUID: MIG-dddd)
  MIG 1c.3g.40gb  Device  2: (UUID: MIG-eeee)
END
exit; }
case "$1" in
*temperature*) echo "0, GPU-aaaa, 61, 97, 20480"; echo "1, GPU-bbbb, 35, 2, 400";;
*compute_cap*) echo "0, GPU-aaaa, 8.9"; echo "1, GPU-bbbb, 8.0";;
*memory.reserved*) echo "0, GPU-aaaa, NVIDIA L4, 23034, 475"
  echo "1, GPU-bbbb, NVIDIA A100-SXM4-80GB, 81920, 869";;
*) echo "0, GPU-aaaa, NVIDIA L4, 23034"; echo "1, GPU-bbbb, NVIDIA A100-SXM4-80GB, 81920";;
esac
"""


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A program on the path that answers as nvidia-smi does on a machine with two cards."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(NVIDIA_SMI)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    caches = (machine.gpus, machine.capability, machine.mig_slices)
    hung: list[tuple[subprocess.Popen[str], float]] = []
    monkeypatch.setattr(machine, "_HUNG", hung)
    for cache in caches:
        cache.cache_clear()
    yield tool
    for child, _ in hung:
        child.wait(10)
    for cache in caches:
        cache.cache_clear()


L4 = machine.Gpu(name="NVIDIA L4", memory_bytes=(23034 - 475) << 20)
A100 = machine.Gpu(name="NVIDIA A100-SXM4-80GB", memory_bytes=(81920 - 869) << 20)


def test_the_driver_s_tool_is_read(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.gpus() == (L4, A100)
    load = machine.gpu_load()
    assert (load.gpu_temperature_c, load.gpu_use_percent, load.gpu_memory_bytes) == (61, 97, 20480 << 20)
    assert machine.gpu_load(2) == machine.GpuLoad()
    monkeypatch.setenv("PATH", str(driver.parent / "empty"))
    assert machine.gpu_load() == machine.GpuLoad()


def test_a_driver_that_hangs_is_waited_for_once_and_told(
    driver: Path, monkeypatch: pytest.MonkeyPatch, logged: Logged
) -> None:
    driver.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(machine, "ANSWER_S", 0.5)
    begun = time.monotonic()
    assert machine.gpus() == () and machine.capability() is None and machine.gpu_load() == machine.GpuLoad()
    assert time.monotonic() - begun < 5
    [line] = [r.getMessage() for r in logged.records if "nvidia-smi" in r.getMessage()]
    assert "did not answer within 0.5 seconds" in line
    [gpu] = [one for one in doctor.machine() if one.check == "GPU"]
    assert gpu.ok is False and "did not answer" in gpu.detail and gpu.fix is not None


def test_without_what_the_driver_reserves_a_card_has_what_cuda_gives(driver: Path) -> None:
    """ "A total capacity of 22.03 GiB" is CUDA's own word of an L4, and 79.14 that of an A100 of 80 GB."""
    assert [round(gpu.memory_bytes / 2**30, 1) for gpu in machine.gpus()] == [22.0, 79.2]
    known = [gpu_memory_bytes(name) or 0 for name in ("NVIDIA L4", "A100-SXM4-80GB")]
    assert all(0.99 < size / gpu.memory_bytes <= 1 for size, gpu in zip(known, machine.gpus(), strict=True))


@pytest.mark.parametrize("answer", ["exit 2", 'echo "0, GPU-aaaa, NVIDIA L4, 23034, [N/A]"'])
def test_where_a_driver_does_not_say_what_it_reserves_all_memory_counts(driver: Path, answer: str) -> None:
    driver.write_text(
        NVIDIA_SMI.replace("case", f'case "$1" in *memory.reserved*) {answer}; exit;; esac; case')
    )
    assert machine.gpus()[0] == machine.Gpu(name="NVIDIA L4", memory_bytes=23034 << 20)


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        ("1", (A100,)),
        ("1,0", (A100, L4)),
        ("GPU-bbbb", (A100,)),
        ("GPU-b, 0", (A100, L4)),
        ("MIG-cccc", (machine.Gpu(name=A100.name, memory_bytes=9728 << 20),)),
        ("MIG-dddd", (machine.Gpu(name=A100.name, memory_bytes=19968 << 20),)),
        ("MIG-eeee", (machine.Gpu(name=A100.name, memory_bytes=40 << 30),)),
        ("", ()),
        ("-1", ()),
        ("0,7,1", (L4,)),  # what is behind a name without a card is hidden too
        ("GPU-", ()),  # both begin so
    ],
)
def test_the_plan_is_of_the_cards_that_the_run_may_use(
    driver: Path, monkeypatch: pytest.MonkeyPatch, visible: str, found: tuple[machine.Gpu, ...]
) -> None:
    """As CUDA reads the variable; the driver's tool lists every card whatever it says."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.gpus() == found
    load = machine.gpu_load()
    assert load.gpu_temperature_c == (None if not found else 61 if found[0] == L4 else 35)
    assert (load.gpu_memory_bytes is None) == (not found or visible.startswith("MIG-")), "it is the card's"
    assert machine.capability() == (None if not found else 8.9 if found[0] == L4 else 8.0)
    planned = plan(ModelShape.of(LLAMA_8B), Setup())
    assert planned.device == ("cuda" if found else "cpu")
    assert not found or planned.available_bytes == found[0].memory_bytes


def test_where_every_card_is_cut_the_plan_is_of_the_first_slice(driver: Path) -> None:
    """As in a container that was given one slice. Without the variable, CUDA uses one slice."""
    without = (line for line in NVIDIA_SMI.splitlines() if "NVIDIA L4 (" not in line)
    driver.write_text("\n".join(without).replace('echo "0, GPU-aaaa', ': "'))
    assert machine.gpus() == (machine.Gpu(name=A100.name, memory_bytes=9728 << 20),)
    assert machine.capability() == 8.0
    assert plan(ModelShape.of(LLAMA_8B), Setup()).available_bytes == 9728 << 20


def test_a_card_cut_into_slices_says_no_utilization_but_its_temperature(driver: Path) -> None:
    driver.write_text(NVIDIA_SMI.replace("35, 2, 400", "35, [N/A], [Insufficient Permissions]"))
    assert machine.gpu_load(1) == machine.GpuLoad(gpu_temperature_c=35)


def test_a_driver_without_the_report_of_slices_leaves_the_size_in_their_names(
    driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-cccc")
    driver.write_text(NVIDIA_SMI.replace("</nvidia_smi_log>", ""))
    assert machine.gpus() == (machine.Gpu(name=A100.name, memory_bytes=10 << 30),)


@pytest.mark.parametrize("cell", ["[N/A]", "[Not Supported]"])
def test_a_gpu_that_shares_the_system_s_memory_has_all_of_it(driver: Path, cell: str) -> None:
    """A DGX Spark: its driver answers [N/A] for memory (NVIDIA's DGX Spark user guide, known issues)."""
    driver.write_text(
        '#!/bin/sh\n[ "$1" = -L ] && { echo "GPU 0: NVIDIA GB10 (UUID: GPU-aaaa)"; exit; }\ncase "$1" in\n'
        f'*temperature*) echo "0, GPU-aaaa, 41, 96, {cell}";;\n'
        f'*memory.reserved*) echo "0, GPU-aaaa, NVIDIA GB10, {cell}, {cell}";;\nesac\n'
    )
    shared = machine.Gpu(name="NVIDIA GB10", memory_bytes=machine.memory_bytes(), unified=True)
    assert machine.gpus() == (shared,)
    assert machine.gpu_load() == machine.GpuLoad(gpu_temperature_c=41, gpu_use_percent=96)
    planned = plan(ModelShape.of(LLAMA_8B), Setup())
    assert (planned.device, planned.available_bytes) == ("cuda", machine.memory_bytes())
    assert any(note.startswith("NVIDIA GB10 shares the system's memory") for note in planned.notes)
    assert any("shared with the system" in check.detail for check in doctor.machine())


def test_a_quote_takes_the_measured_speed_and_says_so(tmp_path: Path) -> None:
    train = tmp_path / "train.jsonl"
    row = '{"messages": [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "red"}]}\n'
    train.write_text(row * 40)
    provider = LocalProvider(HostConfig(name="local", options={"home": str(tmp_path), "device": "cpu"}))
    spec = JobSpec.parse({"model": str(TINY), "train": str(train), "epochs": 3, "adapter": "qlora"})
    data = TrainingData.open(str(train), None)
    modelled = provider.quote(spec, data, provider.translate(spec), built_in())
    slow = Bench(
        device="cpu",
        threads=machine.cores(),
        model="tiny-chat",
        parameters=1_000_000,
        tokens_per_second=20.0,
        operations_per_second=20 * 4 * 1e6,
        measured_on=date(2026, 11, 1),
    )
    throughput.remember(provider.home, slow)
    throughput.remember(provider.home, slow)
    assert throughput.read(provider.home) == [slow]
    measured = provider.quote(spec, data, provider.translate(spec), built_in())
    assert measured.expected_usd > modelled.expected_usd
    said = [" ".join(q.assumptions) for q in (modelled, measured)]
    assert "to measure the speed: orchestrate local bench" in said[0]
    assert "measured on this machine with tiny-chat on 2026-11-01" in said[1]


def test_the_plan_counts_with_the_sizes_of_the_engines_attention() -> None:
    from orchestrate.local.model.shortcuts import kernels
    from orchestrate.local.model.shortcuts import kernels as blocks
    from orchestrate.local.plan import memory

    assert (memory.SHORT_ROW, memory.BLOCK) == (kernels.SHORT_ROW, blocks.BLOCK)
