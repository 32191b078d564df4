"""What pyproject.toml cannot say: the numbers of `data/` are the package `lumoe.data`, beside those found in `src`."""

from setuptools import find_packages, setup

setup(packages=[*find_packages("src"), "lumoe.data"], package_dir={"": "src", "lumoe.data": "data"})
