"""Hook of MkDocs: pages of studies, whichever there are, stand under Results."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig


def on_config(config: MkDocsConfig) -> None:
    """Adds each page of docs/studies to the navigation."""
    docs = Path(config.docs_dir)
    pages = [path.relative_to(docs).as_posix() for path in sorted((docs / "studies").rglob("*.md"))]
    results = next(part["Results"] for part in config.nav or [] if "Results" in part)
    results += [page for page in pages if page not in results]
