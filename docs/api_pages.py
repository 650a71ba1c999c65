"""Hook of MkDocs: a page for each package with its public modules, read from the sources by mkdocstrings."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

SOURCES = Path(__file__).parents[1] / "src"
PACKAGES = {  # page: folder of hydrec, and what the page says first
    "hydrec": ("", "What all parts share, and what runs, uses and judges a model."),
    "layers": ("layers", "Mathematics that models share."),
    "models": ("models", "One paper, one file: source, what differs from it, equations."),
    "data": ("data", "From raw files to batches: readers, protocols, features."),
    "explain": ("explain", "What a trained model does, from its run folder."),
    "sweep": ("sweep", "Runs studies: plan, search, ledger, launchers."),
    "study": ("study", "Reads run folders: results, tests of significance, tables, the report."),
}


def modules(folder: str) -> list[str]:
    """Public modules of a folder of hydrec, by dotted name."""
    paths = sorted((SOURCES / "hydrec" / folder).glob("[a-z]*.py"))
    names = [".".join(path.relative_to(SOURCES).with_suffix("").parts) for path in paths]
    return names if folder else ["hydrec", *names]


def on_config(config: MkDocsConfig) -> None:
    """Adds the pages to the navigation."""
    config.nav = [*(config.nav or []), {"API": [{name: f"api/{name}.md"} for name in PACKAGES]}]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages."""
    for name, (folder, says) in PACKAGES.items():
        parts = [f"# {name}", says]
        for module in modules(folder):
            shown = (
                ["    options: {show_submodules: false}"]
                if module != "hydrec"
                else ["    options: {members: [load]}"]
            )
            parts.append("\n".join([f"::: {module}", *shown]))
        files.append(File.generated(config, f"api/{name}.md", content="\n\n".join(parts) + "\n"))
    return files
