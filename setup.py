"""The two things pyproject.toml cannot say: compiled modules, and what to do where links did not survive.

src/snapfs/ holds links to the real folders fs/, repo/ and cli/.  A clone, an sdist and an unzipped download have them (an
sdist has plain folders in their place); pip given a zip file, or git without core.symlinks, leaves small text files
instead.  These become links again, or copies where there are none.
"""

import shutil
from pathlib import Path

from setuptools import Extension, setup

COMPILED = ("backup/_earlier", "backup/_gear", "backup/_reading", "format/_parity", "restore/_making")

for layer in ("fs", "repo", "cli"):
    link = Path("src/snapfs", layer)
    if not link.is_dir():
        link.unlink(missing_ok=True)
        try:
            link.symlink_to(Path("../..", layer))
        except OSError:
            shutil.copytree(layer, link)

setup(
    ext_modules=[
        Extension(
            f"snapfs.repo.{name.replace('/', '.')}",
            [f"src/snapfs/repo/{name}.pyx"],
            extra_compile_args=["-O3", "-g0"],
        )
        for name in COMPILED
    ],
)
