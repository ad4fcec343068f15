"""Checks the links within a built site: every page, file and anchor that its HTML names.

    python docs/check_links.py site

Links to other sites are counted and not followed. Exit status 1 means that some lead nowhere.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes an element's links and its id."""
        for name, value in attrs:
            if value and name in ("href", "src") and tag not in ("base", "link"):
                self.links.append(value)
            if value and (name == "id" or (name == "name" and tag == "a")):
                self.anchors.add(value)


def check(site: Path) -> tuple[int, int, list[str]]:
    """Numbers of links within the site and to others, and a line for each that leads nowhere."""
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    inside, outside, dead = 0, 0, []
    for path, page in pages.items():
        if path.name == "404.html":  # its links are absolute paths of the published site
            continue
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                outside += 1
                continue
            inside += 1
            target = path
            if parts.path:
                target = Path(path.parent, unquote(parts.path)).resolve()
                target = target / "index.html" if target.is_dir() else target
            anchor = unquote(parts.fragment)
            known = pages.get(target)
            if not target.exists() or (anchor and known and anchor not in known.anchors):
                dead.append(f"{path.relative_to(site)}: {link}")
    return inside, outside, dead


def main() -> int:
    """Prints what was found; returns the exit status."""
    inside, outside, dead = check(Path(sys.argv[1]).resolve())
    print("\n".join([*dead, f"{inside} links within the site, {len(dead)} of them dead; "
                     f"{outside} to other sites, not followed"]))  # fmt: skip
    return int(bool(dead))


if __name__ == "__main__":
    sys.exit(main())
