"""The packages that rules of `data` use, if they are on. Standard library only, until then."""

import importlib.metadata
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass

from llmtrain.config.groups.clean import CleanConfig
from llmtrain.config.groups.data import DataConfig
from llmtrain.errors import did_you_mean, require


@dataclass(frozen=True)
class Library:
    """A package, and what to type where it is missing."""

    package: str
    module: str
    """The name that it is imported by."""
    install: str = "'llmtrain[clean]'"
    """What pip is to be told."""


CLEANING = {
    "html": Library("resiliparse", "resiliparse"),
    "mojibake": Library("ftfy", "ftfy"),
    "mask_phone": Library("phonenumberslite", "phonenumbers"),
    "scripts": Library("regex", "regex"),
}
"""By rule of data.clean."""

# Installed with llmtrain; an environment that was made before it was needed may lack it.
SKETCHES = Library("rensa", "rensa", "'rensa>=0.5,<0.6'")


def check_libraries(config: DataConfig) -> None:
    """Refuse rules whose package is not installed, and countries that it does not know.

    Raises:
        ConfigError: names the setting, the package and what to type.
    """
    for setting, instead, library in _used(config):
        require(
            importlib.util.find_spec(library.module) is not None,
            f"{setting} needs the package {library.package}: pip install {library.install}, or "
            f"{instead}.",
        )
    if config.clean.mask_phone:
        _check_regions(config.clean)


def library_versions(config: DataConfig) -> dict[str, str]:
    """Return the versions of the packages in use: they decide on what is kept, and on its text."""
    return {
        library.package: importlib.metadata.version(library.package)
        for _, _, library in _used(config)
    }


def _used(config: DataConfig) -> Iterator[tuple[str, str, Library]]:
    """Yield each setting that needs a package, what to do without, and the package."""
    for rule, library in CLEANING.items():
        if getattr(config.clean, rule):
            yield f"data.clean.{rule}", f"leave data.clean.{rule} out", library
    if config.dedup == "near":
        yield "data.dedup=near", "set data.dedup=exact", SKETCHES


def _check_regions(config: CleanConfig) -> None:
    from phonenumbers import SUPPORTED_REGIONS

    for region in config.phone_regions:
        require(
            region in SUPPORTED_REGIONS,
            f"data.clean.phone_regions has {region}, which is no country that numbers are "
            f"known of.{did_you_mean(region, SUPPORTED_REGIONS)}",
        )
