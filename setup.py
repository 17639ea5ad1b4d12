"""The two things pyproject.toml cannot say: a compiled module, and what to do where links did not survive.

src/snapfs/ holds links to the real folders fs/, repo/ and cli/.  A clone, an sdist and an unzipped download have them (an
sdist has plain folders in their place); pip given a zip file, or git without core.symlinks, leaves small text files
instead.  Then the folders are mapped one by one.
"""

from pathlib import Path

from setuptools import Extension, find_packages, setup

LAYERS = ("fs", "repo", "cli")
COMPILED = ("backup._earlier", "backup._gear", "backup._reading")

if all(Path("src/snapfs", layer).is_dir() for layer in LAYERS):
    package_dir = {"": "src"}
    packages = find_packages("src")
    engine = "src/snapfs/repo"
else:
    package_dir = {"": "src"} | {f"snapfs.{layer}": layer for layer in LAYERS}
    found = find_packages(".", include=[*LAYERS, *(f"{layer}.*" for layer in LAYERS)])
    packages = ["snapfs", *(f"snapfs.{name}" for name in found)]
    engine = "repo"

setup(
    package_dir=package_dir,
    packages=packages,
    ext_modules=[
        Extension(
            f"snapfs.repo.{name}",
            [f"{engine}/{name.replace('.', '/')}.pyx"],
            extra_compile_args=["-O3", "-g0"],
        )
        for name in COMPILED
    ],
)
