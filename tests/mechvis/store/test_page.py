"""The page on the store: its code runs, what it says of shapes is so, and its table of files is that of a store."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "store.md").read_text(encoding="utf-8")
CHECKS = """
assert sorted(store) == sorted(SITES)
assert rows.shape == (2176, 128) and rows.dtype == torch.bfloat16
assert rows[100:164].shape == (64, 128) and rows.of_images([3, 5]).shape == (2, 17, 128)
assert rows.unflatten(rows[100:164]).shape == (64, 4, 32)
assert store.types(token).tolist() == ["patch", "patch"] and store.images["id"][int(image[0])] == "scenes/7/000005"
assert live.n_rows == 2176 and position["row"] == 256
files = sorted(str(path.relative_to(store.folder)) for path in store.folder.rglob("*") if path.is_file())
assert [name for name in files if "/" not in name] == ["images.parquet", "store.json"]
assert {name.split("/")[0] for name in files if "/" in name} == {"shards", "pieces"}
print("done")
"""


def test_the_code_of_the_page_runs(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 5
    script = tmp_path / "page.py"
    script.write_text("\n".join(["import torch", "torch.set_num_threads(1)", *blocks, CHECKS]))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.stdout.strip().endswith("done"), done.stderr[-3000:]
    assert "Warning" not in done.stderr, done.stderr
    (told,) = re.findall(r"print\(file.name, what\)  +# (.*)", PAGE)
    assert told in done.stdout, done.stdout
