"""docs/formats.md says what the readers say."""

import re
import subprocess
import sys

from daemon import readers
from tests.jobs import ROOT
from tools import formats_page


def test_the_page_is_what_the_tool_writes() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "formats_page.py", "--check"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


def test_the_page_tells_of_every_reader() -> None:
    text = formats_page.page()
    headings = re.findall(r"^### (.+)$", text.partition("## The formats")[2].partition("## What is refused")[0], re.M)
    told = {name for heading in headings for name in heading.split(", ")}
    assert told == {reader.name for reader in readers.READERS}
    assert "{{" not in text


def test_what_a_module_says_fits_in_the_page() -> None:
    for module in formats_page.modules():
        text = formats_page.about(module)
        assert text.startswith("**"), f"{module.__name__}: begins with the format's name in bold"
        assert text.count("```") % 2 == 0, module.__name__
        outside = re.sub(r"```.*?```", "", text, flags=re.S)
        assert not re.search(r"^#", outside, re.M), f"{module.__name__}: headings are the page's"


def test_a_page_that_is_not_true_is_noticed(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(formats_page, "PAGE", tmp_path / "formats.md")
    monkeypatch.setattr(sys, "argv", ["formats_page.py", "--check"])
    assert formats_page.main() == 1 and "formats_page.py" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["formats_page.py"])
    assert formats_page.main() == 0
    monkeypatch.setattr(sys, "argv", ["formats_page.py", "--check"])
    assert formats_page.main() == 0
    (tmp_path / "formats.md").write_text("old", encoding="utf-8")
    assert formats_page.main() == 1
