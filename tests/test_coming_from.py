"""docs/coming_from.md names keys that there are."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_key_on_the_right_is_one_of_ours():
    keys = (ROOT / "docs" / "keys.md").read_text()
    sections, rows = {}, re.split(r"^## ", keys, flags=re.M)
    for part in rows[1:]:
        name = re.match(r"`?(\w+)", part)[1]
        sections.setdefault(name, set()).update(re.findall(r"^\| `(\w+)` \|", part, flags=re.M))
    right = [
        line.split("|")[2] for line in (ROOT / "docs" / "coming_from.md").read_text().splitlines() if line.startswith("| `")
    ]
    named = [key.split(".") for cell in right for key in re.findall(r"`(\w+\.\w+)`", cell)]
    assert len(named) > 30
    assert [key for key in named if key[1] not in sections.get(key[0], ())] == []
