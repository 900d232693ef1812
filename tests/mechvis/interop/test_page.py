"""The page on other tools: its code runs, as one script in a process of its own, and what it says of lists is so."""

import re
import subprocess
import sys
from pathlib import Path

from mechvis.interop.captum import METHODS, REFUSED

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "interop.md").read_text(encoding="utf-8")


def test_the_code_of_the_page_runs(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 15
    script = tmp_path / "page.py"  # nnsight reads the source of what it traces
    script.write_text("\n".join(["import torch", "torch.set_num_threads(1)", *blocks, "print('done')"]))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.stdout.strip().endswith("done"), done.stderr[-3000:]
    assert "Warning" not in done.stderr, done.stderr


def test_every_method_is_in_its_table():
    _, section = PAGE.split("**What is allowed.**")
    allowed, refused = section.split("**What is refused, and why.**")
    assert set(METHODS) <= set(re.findall(r"`(\w+)`", allowed))
    assert set(REFUSED) <= set(re.findall(r"`(\w+)`", refused))


def test_links_lead_somewhere():
    titles = {title.lower().replace(" ", "-") for title in re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)}
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGE):
        assert target.removeprefix("#") in titles or (ROOT / "docs" / target).exists(), target
