import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
SERVE = ROOT / "maypole" / "serve"

DATA = {
    "maypole/align/online_offline_gap/page.css",
    "maypole/align/online_offline_gap/page.html.jinja",
    "maypole/py.typed",
    "maypole/tour/report/report.css",
    "maypole/tour/report/report.html.jinja",
    *(f"maypole/serve/{path.relative_to(SERVE).as_posix()}" for path in (SERVE / "web").rglob("*") if path.is_file()),
    *(
        f"maypole/village/base/{checkpoint}/{name}"
        for checkpoint in ("village-1M", "village-4M-prose")
        for name in (
            "README.md",
            "chat_template.jinja",
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        )
    ),
}
"""What the package brings along besides its modules."""


def test_the_wheel_holds_the_modules_their_stubs_and_the_data_files_and_nothing_else(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    source = tmp_path / "source"
    shutil.copytree(ROOT / "maypole", source / "maypole", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([*build, str(source)], check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
        size = sum(info.compress_size for info in archive.infolist())
    modules = {p.relative_to(source).as_posix() for p in (source / "maypole").rglob("*.py*")}
    assert found == {name for name in modules if name.endswith((".py", ".pyi"))} | DATA
    assert size < 12e6
