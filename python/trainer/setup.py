"""The wheel holds a program: it is of one kind of machine, and of no Python in particular."""

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel


class Program(Distribution):
    def has_ext_modules(self) -> bool:
        return True


class Wheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(distclass=Program, cmdclass={"bdist_wheel": Wheel})
