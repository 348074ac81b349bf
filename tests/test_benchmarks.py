"""The benchmark runs on a CPU and its figures belong together."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_throughput_of_the_tiny_preset(tmp_path):
    command = [sys.executable, "benchmarks/throughput.py", "--preset", "tiny", "--rounds", "2", "--seconds", "0.2"]
    done = subprocess.run([*command, "--json", str(tmp_path / "r.json")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "r.json").read_text())
    rates = result["clips_per_s"]
    assert all(r["min"] <= r["median"] <= r["max"] for r in rates.values())
    slower = min(("loader", "model"), key=lambda name: rates[name]["median"])
    assert result["bound_by"] == slower
    assert result["end_to_end_of_ceiling"] == rates["end_to_end"]["median"] / rates[slower]["median"]
    assert result["machine"]["cores"] >= 1 and "throughput.py --preset tiny" in result["command"]
    # forward and input gradient of the trunk, and the adapters': 4 layers of width 192, 17 tokens, 8 frames
    forward = 2 * 8 * 17 * 4 * 12 * 192**2
    assert 1.5 * forward < result["training_gflop_per_clip"] * 1e9 < 3 * forward


def test_a_wrong_config_is_one_sentence():
    command = [sys.executable, "benchmarks/throughput.py", "--config", "none.yaml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "none.yaml cannot be read" in done.stderr and "Traceback" not in done.stderr


def test_the_readme_holds_what_was_measured():
    from benchmarks.report import fill

    text = (ROOT / "README.md").read_text()
    assert fill(text) == text, "run benchmarks/report.py"
